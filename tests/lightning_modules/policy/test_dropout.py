"""Updates without dropout, whether activations are recomputed or not, for whatever a family calls it."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from lightning_modules.policy.dropout import disable_dropout, evaluating
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import ScoredCausalLM, build_policy

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
DROPPING = {
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
    "biogpt": {"intermediate_size": 64, "hidden_dropout_prob": 0.5, "activation_dropout": 0.5, "layerdrop": 0.5},
    "qwen2": {"intermediate_size": 64, "num_key_value_heads": 2, "attention_dropout": 0.5},
}


def scores(policy):
    ids = torch.arange(5, 25)[None]
    return policy(ids[:, :-1], torch.arange(19)[None], ids[:, 1:]).logprobs


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", DROPPING)
def test_a_model_scores_with_gradients_what_it_scores_in_eval_mode(family, recompute):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES | DROPPING[family]))
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = ScoredCausalLM(model).eval()
    want = scores(policy)
    gradients = torch.autograd.grad(want.sum(), model.get_input_embeddings().weight)
    policy.train()
    assert not torch.allclose(scores(policy), want)
    disable_dropout(policy)
    passes = []
    first = next(module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    first.register_forward_pre_hook(lambda *_: passes.append(1))  # recomputing stops before the end
    got = scores(policy)
    assert torch.equal(got, want)
    assert torch.equal(torch.autograd.grad(got.sum(), model.get_input_embeddings().weight)[0], gradients[0])
    assert len(passes) == 1 + recompute


def test_adapters_drop_nothing_either(tiny_model_dir):
    policy = build_policy(str(tiny_model_dir), lora=LoRA(r=2, dropout=0.5))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                parameter.fill_(0.1)
    want = scores(policy.eval())
    assert not torch.allclose(scores(policy.train()), want)
    disable_dropout(policy)
    assert torch.equal(scores(policy), want)


def test_each_module_is_in_its_own_mode_again_after_an_evaluation_even_one_that_fails():
    policy = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout()).train()
    policy[1].eval()
    with pytest.raises(RuntimeError), evaluating(policy):
        assert not any(module.training for module in policy.modules())
        raise RuntimeError
    assert [module.training for module in policy.modules()] == [True, True, False]

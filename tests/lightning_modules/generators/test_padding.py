"""Families with states, positions, masks or caches of their own generate in batches what they generate alone."""

import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_modules.generators import HFGenerator
from lightning_modules.generators.padding import GenerationMode, find_mode
from lightning_modules.policy.model import ScoredCausalLM

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
DELTA = HYBRID | {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 2, "mamba_chunk_size": 16}
GPT = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128}
FAMILIES = {
    "qwen2": {},
    "qwen3_5_text": DELTA,
    "qwen3_next": DELTA | EXPERTS | {"shared_expert_intermediate_size": 32},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8,
        "n_groups": 2, "chunk_size": 16,
    },
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "granitemoehybrid": MAMBA | {
        "layer_types": ["mamba", "attention"], "num_local_experts": 4, "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
    },
    "minimax": HYBRID | {"block_size": 16, "num_local_experts": 4},
    "jamba": {
        "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2,
        "num_experts": 2, "use_mamba_kernels": False, "mamba_d_state": 8,
    },
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "kimi_linear": HYBRID | EXPERTS | {
        "linear_head_dim": 8, "linear_num_heads": 4, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
        "v_head_dim": 8, "num_key_value_heads": 4, "mlp_layer_types": ["dense", "dense"],
    },
    "recurrent_gemma": {"lru_width": 32, "block_types": ["recurrent", "attention"], "attention_window_size": 64},
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 16},
    "xlstm": {"num_heads": 4},
    "rwkv": {"attention_hidden_size": 32},
    "opt": {"ffn_dim": 64, "max_position_embeddings": 128, "word_embed_proj_dim": 32, "init_std": 0.2},
    "gpt2": GPT,
    "gpt_neox": {},
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "init_std": 0.2},
    "biogpt": {},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
PROMPTS = [[5, 6, 7], [30, 31, 32, 33, 34, 35, 36], [12, 13], [50, 60, 70, 80, 90]]
# What transformers gets wrong today; a version that mends one of these may take it out of the list.
NOT_PADDED = {"minimax", "recurrent_gemma", "rwkv", "xlstm"}
NOT_CACHED = {"xlstm"}


def tiny(family):
    """A random model of a family: also biases, which start at zero, have values."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES | FAMILIES[family])).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def plain_greedy(model, prompt, count):
    """The oracle: whole forward passes of one row, without cache, mask or padding."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_of_unlike_prompts_equal_each_alone(family):
    policy = ScoredCausalLM(tiny(family))
    generator = HFGenerator(max_new_tokens=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        greedy = generator(policy, PROMPTS, stop_ids=[])
    assert [row[0].token_ids for row in greedy] == [plain_greedy(policy.causal_lm, prompt, 5) for prompt in PROMPTS]
    stop = {greedy[0][0].token_ids[1], *range(48)}  # rows end at different places, the others go on
    sampled = generator(policy, PROMPTS, n=2, stop_ids=stop, temperature=1.0)
    for i, prompt in enumerate(PROMPTS):
        assert generator(policy, [prompt], [i], n=2, stop_ids=stop, temperature=1.0) == [sampled[i]]
    said = " ".join(str(warning.message) for warning in caught)
    assert ("only prompts of equal length are generated together" in said) == (family in NOT_PADDED)
    assert ("with its cache (so it does without" in said) == (family in NOT_CACHED)


def test_what_is_found_out_once_serves_every_call(monkeypatch):
    policy, generator, asked = ScoredCausalLM(tiny("minimax")), HFGenerator(max_new_tokens=1), []
    monkeypatch.setattr(
        "lightning_modules.generators.hf.find_mode", lambda model: asked.append(model) or GenerationMode(True, False)
    )
    rows = []
    original = generator._generate
    monkeypatch.setattr(
        generator, "_generate", lambda policy, prompts, *rest: rows.append(prompts) or original(policy, prompts, *rest)
    )
    for _ in range(2):
        generator(policy, [[5, 6], [7, 8, 9], [10, 11]], n=2, stop_ids=[])
    generator(ScoredCausalLM(tiny("minimax")), [[5, 6]], stop_ids=[])  # another of the same configuration
    assert len(asked) == 1
    assert rows[:2] == [[[7, 8, 9]] * 2, [[5, 6], [5, 6], [10, 11], [10, 11]]] and len(rows) == 5


def test_rounding_is_no_reason_and_a_forward_pass_that_no_way_follows_is_refused():
    assert find_mode(tiny("bamba").to(torch.bfloat16)) == GenerationMode(cached=True, padded=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert find_mode(tiny("qwen2")) == GenerationMode(cached=True, padded=True)
    with pytest.warns(
        UserWarning, match="MiniMaxForCausalLM does not generate what its forward pass predicts when pad"
    ):
        assert find_mode(tiny("minimax").to(torch.bfloat16)) == GenerationMode(cached=True, padded=False)
    model = tiny("qwen2")
    model.generate = None
    with pytest.raises(
        ValueError,
        match=r"^init_from: .* Qwen2ForCausalLM does not generate .* \(TypeError: 'NoneType' object .*; give",
    ):
        find_mode(model)


def test_models_of_few_positions():
    model = tiny("gpt2")
    model.config.n_positions = 40
    seen = []
    model.register_forward_hook(lambda module, args, kwargs, out: seen.append(out.logits.shape[1]), with_kwargs=True)
    assert find_mode(model) == GenerationMode(cached=True, padded=True)
    assert max(seen) <= 40

"""Weights cast once: the same numbers to the last bit, and every layer has its own back."""

import pytest
import torch

from lightning_modules.generators.casting import cast_once
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy

IDS = torch.tensor([[5, 6, 7, 30, 31]])


@pytest.fixture(params=[None, LoRA(r=2)], ids=["all weights", "lora"])
def policy(request, tiny_model_dir):
    policy = build_policy(str(tiny_model_dir), lora=request.param).eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_" in name:  # A would be other numbers each time, and now and then large ones
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return policy


@torch.no_grad()
def test_logits_are_equal_to_the_last_bit(policy):
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        want = policy.causal_lm(IDS).logits
        with cast_once(policy.causal_lm):
            head, embedding = policy.causal_lm.get_output_embeddings(), policy.causal_lm.get_input_embeddings()
            assert head(torch.ones(1, 32)).dtype == torch.bfloat16 and embedding.weight.dtype == torch.float32
            assert torch.equal(policy.causal_lm(IDS).logits, want)


@torch.no_grad()
def test_in_float32_weights_are_packed_and_logits_differ_by_the_order_of_sums(policy):
    want = policy.causal_lm(IDS).logits
    with cast_once(policy.causal_lm):
        head, hidden = policy.causal_lm.get_output_embeddings(), torch.ones(1, 32)
        torch.testing.assert_close(policy.causal_lm(IDS).logits, want, rtol=1e-4, atol=1e-4)
        own = head(hidden)
        head.weight.mul_(2)  # what is multiplied by is the copy
        assert torch.equal(head(hidden), own)
        head.weight.div_(2)
    assert "forward" not in vars(head)


def test_layers_that_do_more_than_multiply_keep_their_forward(policy):
    layer = policy.causal_lm.get_decoder().layers[0].mlp.down_proj
    layer.forward = hooked = lambda x: x  # as accelerate hooks a layer
    with cast_once(policy.causal_lm):
        assert layer.forward is hooked
    assert layer.forward is hooked
    del layer.forward


def test_weights_are_put_back_after_an_exception_and_without_autocast_nothing_changes(policy):
    own = dict(policy.named_parameters(remove_duplicate=False))
    with pytest.raises(KeyError), torch.autocast("cpu", torch.bfloat16), cast_once(policy.causal_lm):
        raise KeyError
    assert all(own[name] is value for name, value in policy.named_parameters(remove_duplicate=False))
    with cast_once(policy.causal_lm):
        assert all(own[name] is value for name, value in policy.named_parameters(remove_duplicate=False))
    assert not any("forward" in vars(module) for module in policy.modules())

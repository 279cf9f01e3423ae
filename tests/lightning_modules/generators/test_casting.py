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
            if ".lora_B." in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    return policy


@torch.no_grad()
def test_logits_are_equal_to_the_last_bit(policy):
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        want = policy.causal_lm(IDS).logits
        with cast_once(policy.causal_lm):
            head, embedding = policy.causal_lm.get_output_embeddings(), policy.causal_lm.get_input_embeddings()
            assert head.weight.dtype == torch.bfloat16 and embedding.weight.dtype == torch.float32
            assert torch.equal(policy.causal_lm(IDS).logits, want)


def test_weights_are_put_back_after_an_exception_and_without_autocast_nothing_changes(policy):
    own = dict(policy.named_parameters(remove_duplicate=False))
    with pytest.raises(KeyError), torch.autocast("cpu", torch.bfloat16), cast_once(policy.causal_lm):
        raise KeyError
    assert all(own[name] is value for name, value in policy.named_parameters(remove_duplicate=False))
    with cast_once(policy.causal_lm):
        assert all(own[name] is value for name, value in policy.named_parameters(remove_duplicate=False))

"""Copies of a policy to generate with are the policy itself, adapters included; merged weights are rounded once."""

import pytest
import torch

from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.unshard import merged_weights, unsharded_copy

IDS = torch.arange(3, 60)[None]


def learnt(folder, dtype, size=1e-5):
    """A policy whose adapters change a weight by `size` on average, as those of a young run do."""
    policy = build_policy(str(folder), LoRA(r=4, alpha=4), dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if ".lora_A." in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) / 2)  # a sum of 4 squares of 1 / 2 is 1
            elif ".lora_B." in name:
                weight.copy_(size * torch.randn(weight.shape, generator=generator))
    return policy.eval()


def logits(policy):
    with torch.no_grad():
        return policy.causal_lm(IDS).logits


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_copy_is_the_policy_to_the_bit_and_shares_nothing_with_it(tiny_model_dir, lora, dtype):
    policy = learnt(tiny_model_dir, dtype) if lora else build_policy(str(tiny_model_dir), dtype=dtype).eval()
    random = torch.get_rng_state()
    copy = unsharded_copy(policy, None, torch.device("cpu"))
    assert torch.equal(logits(copy), logits(policy))
    assert {n: w.dtype for n, w in copy.state_dict().items()} == {n: w.dtype for n, w in policy.state_dict().items()}
    assert not {w.data_ptr() for w in copy.parameters()} & {w.data_ptr() for w in policy.parameters()}
    assert not copy.training and not any(weight.requires_grad for weight in copy.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_copy_in_bfloat16_keeps_what_adapters_have_learnt(tiny_model_dir):
    policy, oracle = (learnt(tiny_model_dir, dtype) for dtype in (torch.float32, torch.bfloat16))
    copy = unsharded_copy(policy, torch.bfloat16, torch.device("cpu"))
    assert torch.equal(logits(copy), logits(oracle))
    assert policy.causal_lm.config.dtype == torch.float32  # which the export names
    for name, weight in policy.named_parameters():
        if ".lora_" in name:
            assert torch.equal(copy.get_parameter(name), weight)


def test_merged_weights_are_rounded_once(tiny_model_dir):
    policy = learnt(tiny_model_dir, torch.bfloat16, size=1e-2)
    name = "model.layers.0.mlp.up_proj"
    layer = policy.causal_lm.get_submodule(name)
    up, down = (getattr(layer, f"lora_{half}")["default"].weight.double() for half in "BA")
    exact = layer.base_layer.weight.double() + up @ down  # alpha / r is 1
    assert torch.equal(dict(merged_weights(policy))[f"{name}.weight"], exact.bfloat16())

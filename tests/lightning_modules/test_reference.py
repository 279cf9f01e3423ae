import pytest
import torch
from torch import nn

from lightning_modules.models import LoRA, build_policy
from lightning_modules.reference import (
    check_reference,
    drop_reference,
    fingerprint,
    frozen_copy,
    reference_policy,
    restore_reference,
)

BATCH = [torch.tensor([[5, 6, 7, 8]]), torch.arange(4)[None], torch.tensor([[6, 7, 8, -100]])]


def nudge(module):
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)


def test_copy_stays_where_the_run_started(tiny_model_dir):
    policy = build_policy(str(tiny_model_dir))
    frozen = frozen_copy(policy)
    before = policy(*BATCH).logprobs
    nudge(policy)
    with reference_policy(policy, frozen) as reference:
        assert torch.equal(reference(*BATCH).logprobs, before)
    assert not torch.equal(policy(*BATCH).logprobs, before)
    assert not any(p.requires_grad for p in frozen.parameters()) and all(p.requires_grad for p in policy.parameters())


def test_without_its_adapters_a_lora_policy_is_where_it_started(tiny_model_dir):
    policy = build_policy(str(tiny_model_dir), lora=LoRA(r=2))
    start = build_policy(str(tiny_model_dir))(*BATCH).logprobs
    nudge(policy)
    with reference_policy(policy, None) as reference:
        assert torch.equal(reference(*BATCH).logprobs, start)
    assert not torch.allclose(policy(*BATCH).logprobs, start)  # and back on


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fingerprint_sees_one_bit_and_no_more(dtype):
    torch.manual_seed(0)
    model = nn.Linear(5, 7).to(dtype)
    before = fingerprint(model)
    assert fingerprint(frozen_copy(model)) == before
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[model.weight.element_size()]
    model.weight.detach().view(bits)[3, 2] ^= 1
    assert fingerprint(model) != before


def test_checkpoint_without_the_copy_and_back():
    frozen = frozen_copy(nn.Linear(2, 2))
    state = {"policy.w": torch.ones(1), "reference.weight": frozen.weight, "reference.bias": frozen.bias}
    checkpoint = {"state_dict": dict(state)}
    drop_reference(checkpoint, "runs/srml/version_0", frozen)
    assert list(checkpoint["state_dict"]) == ["policy.w"]
    check_reference(checkpoint, "elsewhere/same", frozen)
    restore_reference(checkpoint, frozen)
    assert checkpoint["state_dict"].keys() == state.keys()
    other = frozen_copy(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"model\.init_from other .*runs/srml/version_0"):
        check_reference(checkpoint, "other", other)

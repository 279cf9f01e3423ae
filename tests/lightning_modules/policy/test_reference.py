import torch

from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.reference import frozen_copy, reference_policy

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


def test_a_copy_for_shards_takes_no_memory_of_its_own(tiny_model_dir):
    policy = build_policy(str(tiny_model_dir))
    frozen = frozen_copy(policy, shared=True)
    assert {p.data_ptr() for p in frozen.parameters()} == {p.data_ptr() for p in policy.parameters()}
    assert not any(p.requires_grad for p in frozen.parameters()) and all(p.requires_grad for p in policy.parameters())
    assert frozen.causal_lm.get_input_embeddings().weight is frozen.causal_lm.get_output_embeddings().weight


def test_without_its_adapters_a_lora_policy_is_where_it_started(tiny_model_dir):
    policy = build_policy(str(tiny_model_dir), lora=LoRA(r=2))
    start = build_policy(str(tiny_model_dir))(*BATCH).logprobs
    nudge(policy)
    with reference_policy(policy, None) as reference:
        assert torch.equal(reference(*BATCH).logprobs, start)
    assert not torch.allclose(policy(*BATCH).logprobs, start)  # and back on

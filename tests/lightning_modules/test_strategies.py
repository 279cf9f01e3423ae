"""What a sharded forward pass gathers, counted under a process group that communicates nothing."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_modules.objectives import logprobs
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.strategies import allocate, blocks_of


@pytest.fixture
def two_ranks():
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("block", [1000, 50])
def test_a_pass_gathers_each_layer_and_the_head_once_however_many_tiles_there_are(
    two_ranks, tiny_model_dir, block, monkeypatch
):
    monkeypatch.setattr(logprobs, "BLOCK", block)
    policy = build_policy(str(tiny_model_dir))
    for block in blocks_of(policy, None):
        fully_shard(block, mesh=two_ranks)
    fully_shard(policy, mesh=two_ranks)
    ids = torch.arange(3, 20)[None]
    with CommDebugMode() as counted:
        scored = policy(ids, torch.arange(17)[None], ids.roll(-1), entropy=True)
    gathered = sum(n for op, n in counted.get_comm_counts().items() if "allgather" in str(op))
    assert gathered == 3  # two layers, and what is left: embedding, norm, head
    with CommDebugMode() as counted:
        scored.logprobs.sum().backward()
    counts = {str(op): n for op, n in counted.get_comm_counts().items()}
    assert sum(n for op, n in counts.items() if "allgather" in op) == 2  # the head's group has stayed whole
    assert sum(n for op, n in counts.items() if "reduce_scatter" in op) == 3


@pytest.mark.parametrize("lora", [None, LoRA(r=2)])
def test_an_empty_model_gets_memory_and_keeps_what_is_shared_and_what_is_no_weight(tiny_model_dir, lora):
    whole, empty = (build_policy(str(tiny_model_dir), lora=lora, empty=empty) for empty in (False, True))
    assert all(parameter.is_meta for parameter in empty.parameters())
    allocate(empty, torch.device("cpu"))
    shapes = [[(n, p.shape, p.requires_grad) for n, p in policy.named_parameters()] for policy in (whole, empty)]
    assert shapes[0] == shapes[1]  # a tied head is not named apart
    empty.load_state_dict(whole.state_dict())
    ids = torch.arange(3, 20)[None]
    arguments = (ids, torch.arange(17)[None], ids.roll(-1))
    assert torch.equal(whole(*arguments).logprobs, empty(*arguments).logprobs)

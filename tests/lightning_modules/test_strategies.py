"""What sharded models gather, counted under a process group that communicates nothing; how long ranks may wait."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_modules.checkpointing.identity import fingerprint
from lightning_modules.objectives import logprobs
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.reference import PREFIX, frozen_copy
from lightning_modules.policy.shard import blocks_of
from lightning_modules.policy.unshard import named_state
from lightning_modules.strategies import DDP, FSDP1, FSDP2, warn_of_one_rank


@pytest.fixture
def two_ranks():
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    torch.distributed.destroy_process_group()


def sharded(policy, mesh):
    for part in (*blocks_of(policy, None), policy):
        fully_shard(part, mesh=mesh)
    return policy


@pytest.mark.parametrize("block", [1000, 50])
def test_a_pass_gathers_each_layer_and_the_head_once_however_many_tiles_there_are(
    two_ranks, tiny_model_dir, block, monkeypatch
):
    monkeypatch.setattr(logprobs, "BLOCK", block)
    policy = sharded(build_policy(str(tiny_model_dir)), two_ranks)
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


@pytest.mark.parametrize("save_sharded", [True, False])
def test_a_checkpoint_gathers_none_of_the_reference(two_ranks, tiny_model_dir, save_sharded):
    module, policy = nn.Module(), build_policy(str(tiny_model_dir))
    module.reference = sharded(frozen_copy(policy, shared=True), two_ranks)
    module.policy = sharded(policy, two_ranks)
    module.is_derived = lambda name: name.startswith(PREFIX)
    strategy = FSDP2(save_sharded=save_sharded)
    strategy.model = strategy._lightning_module = module
    with CommDebugMode() as counted:
        saved = strategy.lightning_module_state_dict()
    assert saved.keys() == {f"policy.{name}" for name in policy.state_dict()}
    assert counted.get_total_counts() == (0 if save_sharded else len(saved))  # one gather of each weight
    with CommDebugMode() as counted:
        fingerprint(module.reference.state_dict())
    assert {str(op) for op in counted.get_comm_counts()} == {"c10d_functional.all_reduce"}  # of a number for each


def test_fsdp1_gives_shards_of_every_weight(two_ranks, tiny_model_dir):
    whole = build_policy(str(tiny_model_dir))
    layers = ModuleWrapPolicy({type(block) for block in blocks_of(whole, None)})
    options = {"device_mesh": two_ranks, "device_id": torch.device("cpu"), "use_orig_params": True}
    shapes = {name: weight.shape for name, weight in whole.causal_lm.state_dict().items()}
    state = named_state(FullyShardedDataParallel(whole, auto_wrap_policy=layers, **options))
    assert {name: weight.shape for name, weight in state.items()} == shapes
    for weight in state.values():
        assert isinstance(weight, DTensor) and weight.to_local().shape[0] == -(-weight.shape[0] // 2)


def hybrid(nodes, gpus):
    strategy = FSDP1(sharding_strategy="HYBRID_SHARD")
    strategy.accelerator, strategy.cluster_environment = CPUAccelerator(), LightningEnvironment()
    strategy.num_nodes, strategy.parallel_devices = nodes, [torch.device("cpu")] * gpus
    return strategy


def test_hybrid_shards_of_fsdp1_are_of_the_ranks_of_a_node(tiny_model_dir):
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    try:
        strategy = hybrid(nodes=2, gpus=4)
        strategy.setup_environment()
        with strategy.model_sharded_context():
            policy = strategy.shard(build_policy(str(tiny_model_dir)))
    finally:
        torch.distributed.destroy_process_group()
    wrapped = [part for part in policy.modules() if isinstance(part, FullyShardedDataParallel)]
    assert len(wrapped) == 3  # two layers, and what is left
    for part in wrapped:
        assert part.sharding_strategy == ShardingStrategy.HYBRID_SHARD
        assert part.process_group.size() == 4 and part._inter_node_pg.size() == 2


def test_hybrid_shards_of_nodes_of_one_rank_are_refused():
    with pytest.raises(ValueError, match=r"^trainer\.strategy: sharding_strategy HYBRID_SHARD .* give FULL_SHARD\.$"):
        hybrid(nodes=2, gpus=1).setup_environment()  # FSDP1 would shard nothing, and average no gradients


@pytest.mark.parametrize("strategy", [DDP, FSDP1, FSDP2])
def test_how_long_ranks_wait_for_each_other_is_a_setting(strategy):
    assert strategy()._timeout == timedelta(hours=1) and strategy(timeout_minutes=0.5)._timeout == timedelta(seconds=30)
    with pytest.raises(ValueError, match=r"trainer.strategy: timeout_minutes is 0; give a number greater than 0"):
        strategy(timeout_minutes=0)


@pytest.mark.parametrize("lora", [None, LoRA(r=2)], ids=["all weights", "adapters"])
def test_fsdp1_says_that_it_computes_gradients_of_frozen_weights(tiny_model_dir, monkeypatch, recwarn, lora):
    monkeypatch.setattr("lightning_modules.strategies.wrap", lambda policy, **options: policy)
    strategy = FSDP1()
    strategy.parallel_devices = [torch.device("cpu")]
    strategy.shard(build_policy(str(tiny_model_dir), lora))
    told = [str(warning.message) for warning in recwarn if "also computes gradients" in str(warning.message)]
    assert bool(told) == bool(lora) and all("of what model.lora freezes; FSDP2" in words for words in told)


def test_a_single_device_is_told_that_fsdp_only_copies(tiny_model_dir, recwarn):
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        strategy = FSDP2()
        strategy.parallel_devices, strategy.mesh = [torch.device("cpu")], init_device_mesh("cpu", (1,))
        with pytest.warns(UserWarning, match=r"^FSDP2 has one device to shard over: .*configs/trainer/gpu\.yaml"):
            strategy.shard(build_policy(str(tiny_model_dir)))
    finally:
        torch.distributed.destroy_process_group()
    recwarn.clear()
    warn_of_one_rank(strategy, offload=True)  # which is what a single device may want FSDP for
    warn_of_one_rank(SimpleNamespace(world_size=2), offload=False)
    assert not recwarn.list

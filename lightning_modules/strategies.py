"""DDP, FSDP1 and FSDP2 as Lightning strategies; FSDP shards weights, gradients and optimizer states over ranks.

Lightning's FSDP would shard the whole LightningModule. Here the policy is the root of its own shards, and so is a
frozen reference: every forward pass enters through one of them, and as many forward and backward passes as a step needs
may follow each other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffload,
    CPUOffloadPolicy,
    FSDPModule,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    OffloadPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy, wrap

from lightning_modules.checkpointing.sharded import ReshardableCheckpoints
from lightning_modules.mesh import WAIT, make_mesh, waiting
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.shard import allocate, blocks_of, dtypes_of, set_dtypes


def move_rest(module: LightningModule, device: torch.device) -> None:
    """Move a module to a device but for its sharded models, and set `module.device`."""
    for child in module.children():
        if not isinstance(child, FSDPModule | FullyShardedDataParallel):
            child.to(device)
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(device)
    module._device = device  # what `to` would note; nothing public sets it alone


def warn_of_one_rank(strategy: "FSDP1 | FSDP2", offload: bool) -> None:
    """Say that a single rank has nobody to share with: FSDP copies weights then, to compute and to generate."""
    if strategy.world_size == 1 and not offload:
        rank_zero_warn(
            f"{type(strategy).__name__} has one device to shard over: it copies each layer before it computes with it, "
            "and the whole model to generate; --config configs/trainer/gpu.yaml does neither."
        )


class DDP(DDPStrategy):
    """A full copy of the model on each rank; gradients are averaged.

    Args:
        timeout_minutes: How long a rank waits for the others before the run ends with an error.
        process_group_backend: "nccl", "gloo"; by the accelerator when None.
    """

    def __init__(self, timeout_minutes: float = WAIT, process_group_backend: str | None = None) -> None:
        super().__init__(timeout=waiting(timeout_minutes), process_group_backend=process_group_backend)


class FSDP2(ReshardableCheckpoints, ModelParallelStrategy):
    """FSDP2 (`fully_shard`) over the policy's decoder layers and then the rest of it.

    Weights are kept and updated as `trainer.precision` has them; with bf16-mixed they are gathered and multiplied in
    bfloat16. Gradients are always reduced in float32.

    Args:
        shard_size: Ranks that share one copy of the weights; groups of so many ranks replicate it (hybrid sharding: as
            many as a node has GPUs). All ranks when None.
        wrap: Class names of the modules that are gathered one at a time; the model's decoder layers when None.
        save_sharded: Whether each rank writes its shard into a folder, or rank 0 everything into one file.
        cpu_offload: Keep shards and optimizer states in the memory of the CPU, and update them there.
        accumulate_unsharded: Reduce gradients once per optimizer step and not after every micro-batch: less
            communication, for a whole copy of the gradients on each rank.
        timeout_minutes: How long a rank waits for the others before the run ends with an error.
        process_group_backend: "nccl", "gloo"; by the accelerator when None.
    """

    def __init__(
        self,
        shard_size: int | None = None,
        wrap: list[str] | None = None,
        save_sharded: bool = True,
        cpu_offload: bool = False,
        accumulate_unsharded: bool = False,
        timeout_minutes: float = WAIT,
        process_group_backend: str | None = None,
    ) -> None:
        self.timeout = waiting(timeout_minutes)
        super().__init__(
            save_distributed_checkpoint=save_sharded,
            process_group_backend=process_group_backend,
            timeout=self.timeout,
        )
        self.shard_size, self.wrap, self.save_sharded = shard_size, wrap, save_sharded
        self.cpu_offload, self.accumulate_unsharded = cpu_offload, accumulate_unsharded
        self.mesh: DeviceMesh | None = None

    def setup_environment(self) -> None:
        """Start the process group, and make the device mesh.

        Raises:
            ValueError: If `shard_size` does not divide the number of ranks.
        """
        ranks = self.num_nodes * self.num_processes
        self._data_parallel_size, self._tensor_parallel_size = ranks, 1  # "auto" would count nodes
        shared = self.shard_size or ranks
        if shared < 1 or ranks % shared:
            raise ValueError(
                f"trainer.strategy: shard_size {shared} does not divide the {ranks} ranks of this run; give a divisor, "
                "such as the number of GPUs of a node."
            )
        if self.cpu_offload and self.root_device.type == "cuda":  # norms of offloaded shards are reduced on the CPU
            self._process_group_backend = self._process_group_backend or "cpu:gloo,cuda:nccl"
        super().setup_environment()
        sizes = (ranks,) if shared == ranks else (ranks // shared, shared)
        self.mesh = make_mesh(self.root_device, sizes, self.timeout)

    def shard(self, policy: ScoredCausalLM) -> ScoredCausalLM:
        """Shard the policy in place, so that this rank keeps its part of each weight.

        Only the first rank's has to hold weights: it sends the others theirs, so that the machine's memory need not
        hold the model once for each of its GPUs; nor once, where they are still in their files.
        """
        warn_of_one_rank(self, self.cpu_offload)
        weights = policy.state_dict() if self.global_rank == 0 else {}
        if self.world_size > 1:
            allocate(policy, torch.device("meta"))  # rank 0 sends itself its own, too
            set_dtypes(policy, self.broadcast(dtypes_of(policy)))
        half = self.precision_plugin.precision.startswith("bf16")
        precision = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32 if half else None
        )
        options = {
            "mesh": self.mesh,
            "mp_policy": precision,
            "offload_policy": CPUOffloadPolicy() if self.cpu_offload else OffloadPolicy(),
        }
        for part in (*blocks_of(policy, self.wrap), policy):  # the policy last: it takes what the blocks have left
            allocate(part, self.root_device)
            fully_shard(part, **options)
        if self.world_size > 1:
            sent = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=self.cpu_offload)
            set_model_state_dict(policy, weights, options=sent)
        return policy

    def model_to_device(self) -> None:
        """Move what is not sharded to the device; shards that are offloaded stay on the CPU."""
        if self.cpu_offload:
            move_rest(self.lightning_module, self.root_device)
        else:
            super().model_to_device()

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Context that reduces no gradients, if `accumulate_unsharded` is set."""
        roots = [m for m in self.lightning_module.children() if isinstance(m, FSDPModule)]
        for root in roots:
            root.set_requires_gradient_sync(not self.accumulate_unsharded)
        yield
        for root in roots:
            root.set_requires_gradient_sync(True)


class FSDP1(ReshardableCheckpoints, FSDPStrategy):
    """FSDP1 (`FullyShardedDataParallel`) over the policy's decoder layers and then the rest of it; prefer `FSDP2`.

    Gradients are reduced in float32. With adapters it computes the gradients of frozen weights, too, which `FSDP2` does
    not; and every rank reads the whole model.

    Args:
        sharding_strategy: "FULL_SHARD"; "SHARD_GRAD_OP" keeps the weights whole between forward and backward pass;
            "HYBRID_SHARD" shards inside a node and replicates over nodes.
        wrap: Class names of the modules that are gathered one at a time; the model's decoder layers when None.
        save_sharded: Whether each rank writes its shard into a folder, or rank 0 everything into one file.
        cpu_offload: Keep shards and optimizer states in the memory of the CPU, and update them there.
        accumulate_unsharded: Reduce gradients once per optimizer step and not after every micro-batch: less
            communication, for a whole copy of the gradients on each rank.
        timeout_minutes: How long a rank waits for the others before the run ends with an error.
    """

    def __init__(
        self,
        sharding_strategy: Literal["FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD"] = "FULL_SHARD",
        wrap: list[str] | None = None,
        save_sharded: bool = True,
        cpu_offload: bool = False,
        accumulate_unsharded: bool = False,
        timeout_minutes: float = WAIT,
    ) -> None:
        self.timeout = waiting(timeout_minutes)
        super().__init__(
            timeout=self.timeout,
            cpu_offload=CPUOffload(offload_params=cpu_offload),
            state_dict_type="sharded" if save_sharded else "full",
        )
        self.sharding_strategy = ShardingStrategy[sharding_strategy]  # given it, Lightning asks for a mesh at once
        self.wrap, self.save_sharded, self.accumulate_unsharded = wrap, save_sharded, accumulate_unsharded

    def setup_environment(self) -> None:
        """Start the process group, and make the device mesh: with one, state dicts hold shards as FSDP2's do.

        Raises:
            ValueError: If nodes of one rank each are to shard inside a node: FSDP1 would not average their gradients.
        """
        hybrid = self.sharding_strategy == ShardingStrategy.HYBRID_SHARD
        if hybrid and self.num_nodes > 1 and self.num_processes == 1:
            raise ValueError(
                "trainer.strategy: sharding_strategy HYBRID_SHARD shards over the GPUs of a node, and each node of "
                "this run has one; give FULL_SHARD."
            )
        super().setup_environment()
        sizes = (self.num_nodes, self.num_processes) if hybrid else (self.world_size,)
        self.kwargs["device_mesh"] = make_mesh(self.root_device, sizes, self.timeout)

    @property
    def mixed_precision_config(self) -> MixedPrecision | None:
        """Lightning's mixed precision, but gradients are reduced and buffers kept in float32 (positions, too)."""
        if not self.precision_plugin.precision.startswith("bf16"):
            return None
        return MixedPrecision(torch.bfloat16, reduce_dtype=torch.float32, buffer_dtype=torch.float32)

    def shard(self, policy: ScoredCausalLM) -> nn.Module:
        """Wrap the policy in FSDP; Lightning's context, inside which this is called, knows how."""
        warn_of_one_rank(self, self.cpu_offload.offload_params)
        if policy.has_adapters:
            rank_zero_warn(
                "FSDP1 also computes gradients of what model.lora freezes; FSDP2 (configs/trainer/fsdp2.yaml) does not."
            )
        classes = {type(block) for block in blocks_of(policy, self.wrap)}
        where = {"device_id": self.root_device}  # Lightning gives its number, which the CPU has not
        return wrap(policy, auto_wrap_policy=ModuleWrapPolicy(classes), use_orig_params=True, **where)

    def _setup_model(self, model: LightningModule) -> LightningModule:
        model = super()._setup_model(model)  # leaves a module with wrapped models inside as it is
        move_rest(model, self.root_device)
        return model

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Context that reduces no gradients, if `accumulate_unsharded` is set."""
        policy = self.lightning_module.policy
        if not self.accumulate_unsharded or not isinstance(policy, FullyShardedDataParallel):
            yield
            return
        with policy.no_sync():
            yield

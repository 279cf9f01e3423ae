"""Weights, gradients and optimizer states in shards over ranks: FSDP1 and FSDP2, with checkpoints that move.

Lightning's strategies would shard the whole LightningModule. Here the policy is the root of its own shards, and so is a
frozen reference: every forward pass enters through one of them, and as many forward and backward passes as a step needs
may follow each other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.distributed.checkpoint import load as load_shards
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffload,
    CPUOffloadPolicy,
    FSDPModule,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy, wrap
from torch.optim import Optimizer

from lightning_modules.checkpoints import (
    OPTIMIZER,
    WEIGHTS,
    check_shards,
    is_folder_of_shards,
    load,
    save_file,
    save_shards,
    shapes_in,
)
from lightning_modules.models import ScoredCausalLM


def blocks_of(policy: ScoredCausalLM, names: list[str] | None) -> list[nn.Module]:
    """The modules that are gathered one at a time.

    Args:
        policy: The model.
        names: Class names; those of the model's decoder layers when None.

    Raises:
        ValueError: If the model has no module of one of these classes.
    """
    model = policy.causal_lm
    wanted = names if names is not None else list(model._no_split_modules or [])
    found = [module for module in model.modules() if type(module).__name__ in wanted]
    unknown = set(wanted) - {type(module).__name__ for module in found}
    if unknown or not found:
        layers = sorted({type(m).__name__ for m in model.modules() if type(m).__name__.endswith("Layer")})
        raise ValueError(
            f"trainer.strategy: wrap names {', '.join(sorted(unknown)) or 'nothing'}, and "
            f"{type(model).__name__} has no such modules; its layers are {', '.join(layers)}."
        )
    return found


class _MovingCheckpoints:
    """The part of a strategy that saves and loads; weights and optimizer states are known by name."""

    save_sharded: bool

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights: this rank's shards, or, where one file is saved, all of them on rank 0."""
        return get_model_state_dict(self.model, options=self._options())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state by name, sharded or whole as the weights."""
        optimizer = getattr(optimizer, "_optimizer", optimizer)  # without Lightning's wrapper
        return get_optimizer_state_dict(self.model, optimizer, options=self._options())

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint of the kind asked for; a collective."""
        path = Path(self.broadcast(filepath))
        if self.save_sharded:
            optimizer = (checkpoint.pop("optimizer_states", None) or [None])[0]
            save_shards(checkpoint.pop("state_dict"), optimizer, checkpoint, path, self.global_rank)
        elif self.global_rank == 0:
            save_file(checkpoint, path)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load weights and optimizer state from either kind of checkpoint; gives the rest.

        Raises:
            ValueError: If it is one of another model or tokenizer; no weight has been changed then.
            FileNotFoundError: If a part of it is missing.
        """
        path = Path(self.broadcast(checkpoint_path))
        module, fitting = self.lightning_module, self.lightning_module.trainer.state.fn == TrainerFn.FITTING
        optimizers = self.optimizers if fitting else []
        if is_folder_of_shards(path):
            check_shards(path)
            rest = torch.load(path / "meta.pt", map_location="cpu", weights_only=True)
            module.check_checkpoint(rest, shapes_in(path))
            weights = {k: v for k, v in get_model_state_dict(self.model).items() if not module.is_derived(k)}
            load_shards({WEIGHTS: weights}, checkpoint_id=path)
            set_model_state_dict(self.model, weights, options=StateDictOptions(strict=False))
            for optimizer in optimizers:
                state = {OPTIMIZER: get_optimizer_state_dict(self.model, optimizer)}
                load_shards(state, checkpoint_id=path)
                set_optimizer_state_dict(self.model, optimizer, state[OPTIMIZER])
            return rest
        rest = load(path)
        weights, states = rest.pop("state_dict"), rest.pop("optimizer_states", [])
        module.check_checkpoint(rest, {name: tuple(weight.shape) for name, weight in weights.items()})
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(self.model, weights, options=options)
        for optimizer, state in zip(optimizers, states, strict=False):
            set_optimizer_state_dict(self.model, optimizer, state, options=options)
        return rest

    def _options(self) -> StateDictOptions:
        return StateDictOptions(full_state_dict=not self.save_sharded, cpu_offload=True)


class FSDP2(_MovingCheckpoints, ModelParallelStrategy):
    """FSDP2 (`fully_shard`): every decoder layer of the policy, then what is left of it.

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
        process_group_backend: "nccl", "gloo"; by the accelerator when None.
    """

    def __init__(
        self,
        shard_size: int | None = None,
        wrap: list[str] | None = None,
        save_sharded: bool = True,
        cpu_offload: bool = False,
        accumulate_unsharded: bool = False,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(save_distributed_checkpoint=save_sharded, process_group_backend=process_group_backend)
        self.shard_size, self.wrap, self.save_sharded = shard_size, wrap, save_sharded
        self.cpu_offload, self.accumulate_unsharded = cpu_offload, accumulate_unsharded
        self.mesh: DeviceMesh | None = None

    def setup_environment(self) -> None:
        """Start the processes' group, and lay out the ranks.

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
        super().setup_environment()
        kind, hybrid = self.root_device.type, ("replicate", "shard")
        self.mesh = init_device_mesh(kind, (ranks // shared, shared), mesh_dim_names=hybrid)
        if shared == ranks:
            self.mesh = self.mesh["shard"]

    def shard(self, policy: ScoredCausalLM) -> ScoredCausalLM:
        """Keep this rank's shard of each weight; the model is changed in place."""
        half = self.precision_plugin.precision.startswith("bf16")
        precision = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32 if half else None
        )
        options = {
            "mesh": self.mesh,
            "mp_policy": precision,
            "offload_policy": CPUOffloadPolicy() if self.cpu_offload else OffloadPolicy(),
        }
        for block in blocks_of(policy, self.wrap):
            fully_shard(block, **options)
        return fully_shard(policy, **options)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Leave gradients unreduced inside, if that is what `accumulate_unsharded` asks for."""
        roots = [m for m in self.lightning_module.children() if isinstance(m, FSDPModule)]
        for root in roots:
            root.set_requires_gradient_sync(not self.accumulate_unsharded)
        yield
        for root in roots:
            root.set_requires_gradient_sync(True)


class FSDP1(_MovingCheckpoints, FSDPStrategy):
    """FSDP1 (`FullyShardedDataParallel`): every decoder layer of the policy, then what is left of it.

    Needs an accelerator. Gradients are reduced in float32.

    Args:
        sharding_strategy: "FULL_SHARD"; "SHARD_GRAD_OP" keeps the weights whole between forward and backward pass;
            "HYBRID_SHARD" shards inside a node and replicates over nodes.
        wrap: Class names of the modules that are gathered one at a time; the model's decoder layers when None.
        save_sharded: Whether each rank writes its shard into a folder, or rank 0 everything into one file.
        cpu_offload: Keep shards and optimizer states in the memory of the CPU, and update them there.
        accumulate_unsharded: Reduce gradients once per optimizer step and not after every micro-batch: less
            communication, for a whole copy of the gradients on each rank.
    """

    def __init__(
        self,
        sharding_strategy: Literal["FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD"] = "FULL_SHARD",
        wrap: list[str] | None = None,
        save_sharded: bool = True,
        cpu_offload: bool = False,
        accumulate_unsharded: bool = False,
    ) -> None:
        super().__init__(
            sharding_strategy=sharding_strategy,
            cpu_offload=CPUOffload(offload_params=cpu_offload),
            state_dict_type="sharded" if save_sharded else "full",
        )
        self.wrap, self.save_sharded, self.accumulate_unsharded = wrap, save_sharded, accumulate_unsharded

    @property
    def mixed_precision_config(self) -> MixedPrecision | None:
        """Lightning's, but gradients are reduced in float32, and bfloat16 does not round positions."""
        if not self.precision_plugin.precision.startswith("bf16"):
            return None
        return MixedPrecision(torch.bfloat16, reduce_dtype=torch.float32, buffer_dtype=torch.float32)

    def shard(self, policy: ScoredCausalLM) -> nn.Module:
        """The policy wrapped; Lightning's context, inside which this is called, knows how."""
        classes = {type(block) for block in blocks_of(policy, self.wrap)}
        return wrap(policy, auto_wrap_policy=ModuleWrapPolicy(classes), use_orig_params=True)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Leave gradients unreduced inside, if that is what `accumulate_unsharded` asks for."""
        policy = self.lightning_module.policy
        if not self.accumulate_unsharded or not isinstance(policy, FullyShardedDataParallel):
            yield
            return
        with policy.no_sync():
            yield

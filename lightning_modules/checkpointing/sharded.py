"""Checkpoints of strategies that shard: saved as shards or one file, loaded from either on any number of ranks."""

from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from datamodules.system.files import atomic_write
from lightning_modules.checkpointing.background import Background, snapshot
from lightning_modules.checkpointing.formats import (
    OPTIMIZER,
    REST,
    WEIGHTS,
    AnyCheckpointIO,
    check_shards,
    is_folder_of_shards,
    load,
    save_file,
    shapes_in,
)
from lightning_modules.checkpointing.reading import State, first_cause, load_file, load_shards
from lightning_modules.policy.unshard import unshard


class ReshardableCheckpoints:
    """Mix-in for strategies that shard, to save and load either kind of checkpoint; it comes first in the bases.

    Attributes:
        save_sharded: Whether to write folders of shards, or files.
        timeout: How long ranks wait for each other.
        group: The ranks, where they write in the background; None where they do not.
    """

    save_sharded: bool
    timeout: timedelta
    group: ProcessGroup | None = None

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Weights of a checkpoint on the CPU: this rank's shards, or where one file is saved all of them on rank 0.

        What checkpoints leave out, such as a frozen reference, is neither copied nor gathered (FSDP1 has to gather a
        layer at a time to cut it in shards).
        """
        every = get_model_state_dict(self.model)
        kept = {name: weight for name, weight in every.items() if not self.lightning_module.is_derived(name)}
        if self.save_sharded:
            return kept if self.background else {name: weight.cpu() for name, weight in kept.items()}
        unsharded = ((name, unshard(weight)) for name, weight in kept.items())  # one at a time, on every rank
        return {name: weight.cpu() for name, weight in unsharded if self.global_rank == 0}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Optimizer state by parameter name, sharded or full as the weights are."""
        optimizer = getattr(optimizer, "_optimizer", optimizer)  # without Lightning's wrapper
        return get_optimizer_state_dict(self.model, optimizer, options=self._options())

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write shards or one file, as `save_sharded` says, or begin to; a collective."""
        path = Path(self.broadcast(filepath))
        if self.background and self.group is None:  # of its own, so that no collective of the run comes between
            self.group = torch.distributed.new_group(backend="gloo", timeout=self.timeout)
        state = snapshot(checkpoint) if self.background else checkpoint
        if self.save_sharded:
            optimizer = (state.pop("optimizer_states", None) or [None])[0]
            write = partial(save_shards, state.pop("state_dict"), optimizer, state, path, self.fsync, self.group)
        else:
            write = partial(save_file, state, path, self.fsync) if self.global_rank == 0 else partial(dict)
        if self.background:
            self.background.start(write)
        else:
            write()

    def teardown(self) -> None:
        """Wait for a checkpoint that is being written, and end."""
        self.checkpoint_io.teardown()
        super().teardown()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load weights and optimizer state from either kind of checkpoint, and return the rest of it.

        Raises:
            ValueError: If it is one of another model or tokenizer, and no weight has been changed; or see `load_file`.
            FileNotFoundError: If a part of it is missing.
        """
        path = Path(self.broadcast(checkpoint_path))
        module = self.lightning_module
        optimizers = self.optimizers if module.fitting else []
        if is_folder_of_shards(path):
            check_shards(path)
            rest = load_file(path / REST)
            module.check_checkpoint(rest, shapes_in(path))
            weights = {k: v for k, v in get_model_state_dict(self.model).items() if not module.is_derived(k)}
            load_shards(path, {WEIGHTS: weights})
            set_model_state_dict(self.model, weights, options=StateDictOptions(strict=False))
            for optimizer in optimizers:
                state = {OPTIMIZER: get_optimizer_state_dict(self.model, optimizer)}
                load_shards(path, state)
                set_optimizer_state_dict(self.model, optimizer, state[OPTIMIZER])
            return rest
        rest = load(path)
        weights, states = rest.pop("state_dict"), rest.pop("optimizer_states", [])
        module.check_checkpoint(rest, {name: tuple(weight.shape) for name, weight in weights.items()})
        shards = get_model_state_dict(self.model)  # of a whole state dict FSDP1 would take no part
        cut = {name: shard_as(weight, shards[name]) for name, weight in weights.items()}
        set_model_state_dict(self.model, cut, options=StateDictOptions(strict=False))
        for optimizer, state in zip(optimizers, states, strict=False):
            whole = StateDictOptions(full_state_dict=True, strict=False)
            set_optimizer_state_dict(self.model, optimizer, state, options=whole)
        return rest

    @property
    def fsync(self) -> bool:
        """Whether to wait until a checkpoint is on the disk, as the run's `AnyCheckpointIO` says."""
        return not isinstance(self.checkpoint_io, AnyCheckpointIO) or self.checkpoint_io.fsync

    @property
    def background(self) -> Background | None:
        """What checkpoints are written by while the run goes on; None where it waits for them."""
        return getattr(self.checkpoint_io, "background", None)

    def _options(self) -> StateDictOptions:
        copied = self.background is not None and self.save_sharded  # to the CPU by `snapshot`
        return StateDictOptions(full_state_dict=not self.save_sharded, cpu_offload=not copied)


def shard_as(weight: Tensor, other: Tensor) -> Tensor:
    """This rank's part of a weight, cut as another tensor of its shape is; every rank holds the whole."""
    if not isinstance(other, DTensor):
        return weight
    device = other.device_mesh.device_type
    return distribute_tensor(weight.to(device), other.device_mesh, other.placements, src_data_rank=None)


def save_shards(
    weights: State,
    optimizer: State | None,
    rest: State,
    folder: Path,
    fsync: bool = True,
    group: ProcessGroup | None = None,
) -> None:
    """Write a sharded checkpoint atomically; a collective.

    Args:
        weights: By name; each rank gives its shards.
        optimizer: State by name, as `get_optimizer_state_dict` gives it; None without one.
        rest: Everything else, written by rank 0.
        folder: Where to.
        fsync: See `atomic_write`.
        group: All ranks, in a group that communicates on the CPU; the default group when None.

    Raises:
        OSError: On every rank, if any could not write.
    """
    with ExitStack() as stack:
        name = on_rank_zero(lambda: str(stack.enter_context(atomic_write(folder, fsync))), group)
        shards = {WEIGHTS: weights} | ({OPTIMIZER: optimizer} if optimizer else {})
        # All is on the CPU. Copying ahead takes a stream, for which a background thread would open a context on GPU 0.
        writer = dcp.FileSystemWriter(name, sync_files=fsync, per_thread_copy_ahead=0)
        try:
            dcp.save(shards, storage_writer=writer, process_group=group)
        except CheckpointException as error:
            raise first_cause(error) from error

        def complete() -> None:
            torch.save(rest, Path(name) / REST)
            stack.close()

        on_rank_zero(complete, group)


def on_rank_zero(act: Callable[[], Any], group: ProcessGroup | None = None) -> Any:
    """Run a function on rank 0, and return its result or raise its error of the disk on all; a collective."""
    outcome: list[Any] = [None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome = [act()]
        except (OSError, RuntimeError) as error:  # torch has the latter for a full disk
            outcome = [error]
    torch.distributed.broadcast_object_list(outcome, group=group)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]

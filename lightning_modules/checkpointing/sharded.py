"""Checkpoints of strategies that shard: saved as shards or one file, loaded from either on any number of ranks."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from datamodules.system.files import atomic_write
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


class ReshardableCheckpoints:
    """Mix-in for strategies that shard, to save and load either kind of checkpoint; it comes first in the bases.

    Attributes:
        save_sharded: Whether to write folders of shards, or files.
    """

    save_sharded: bool

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """State dict of the weights: this rank's shards, or all of them on rank 0 where one file is saved."""
        return get_model_state_dict(self.model, options=self._options())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Optimizer state by parameter name, sharded or full as the weights are."""
        optimizer = getattr(optimizer, "_optimizer", optimizer)  # without Lightning's wrapper
        return get_optimizer_state_dict(self.model, optimizer, options=self._options())

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write shards or one file, as `save_sharded` says; a collective."""
        path = Path(self.broadcast(filepath))
        if self.save_sharded:
            optimizer = (checkpoint.pop("optimizer_states", None) or [None])[0]
            save_shards(checkpoint.pop("state_dict"), optimizer, checkpoint, path, self.global_rank, self.fsync)
        elif self.global_rank == 0:
            save_file(checkpoint, path, self.fsync)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load weights and optimizer state from either kind of checkpoint, and return the rest of it.

        Raises:
            ValueError: If it is one of another model or tokenizer, and no weight has been changed; or see `load_file`.
            FileNotFoundError: If a part of it is missing.
        """
        path = Path(self.broadcast(checkpoint_path))
        module, fitting = self.lightning_module, self.lightning_module.trainer.state.fn == TrainerFn.FITTING
        optimizers = self.optimizers if fitting else []
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
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(self.model, weights, options=options)
        for optimizer, state in zip(optimizers, states, strict=False):
            set_optimizer_state_dict(self.model, optimizer, state, options=options)
        return rest

    @property
    def fsync(self) -> bool:
        """Whether to wait until a checkpoint is on the disk, as the run's `AnyCheckpointIO` says."""
        return not isinstance(self.checkpoint_io, AnyCheckpointIO) or self.checkpoint_io.fsync

    def _options(self) -> StateDictOptions:
        return StateDictOptions(full_state_dict=not self.save_sharded, cpu_offload=True)


def save_shards(
    weights: State, optimizer: State | None, rest: State, folder: Path, rank: int, fsync: bool = True
) -> None:
    """Write a sharded checkpoint atomically; a collective.

    Args:
        weights: By name; each rank gives its shards.
        optimizer: State by name, as `get_optimizer_state_dict` gives it; None without one.
        rest: Everything else, written by rank 0.
        folder: Where to.
        rank: This one.
        fsync: See `atomic_write`.

    Raises:
        OSError: On every rank, if any could not write.
    """
    with ExitStack() as stack:
        name = on_rank_zero(rank, lambda: str(stack.enter_context(atomic_write(folder, fsync))))
        shards = {WEIGHTS: weights} | ({OPTIMIZER: optimizer} if optimizer else {})
        try:
            dcp.save(shards, storage_writer=dcp.FileSystemWriter(name, sync_files=fsync))
        except CheckpointException as error:
            raise first_cause(error) from error

        def complete() -> None:
            torch.save(rest, Path(name) / REST)
            stack.close()

        on_rank_zero(rank, complete)


def on_rank_zero(rank: int, act: Callable[[], Any]) -> Any:
    """Run a function on rank 0, and return its result or raise its error of the disk on all; a collective."""
    told: list[Any] = [None]
    if rank == 0:
        try:
            told = [act()]
        except (OSError, RuntimeError) as error:  # torch has the latter for a full disk
            told = [error]
    torch.distributed.broadcast_object_list(told)
    if isinstance(told[0], Exception):
        raise told[0]
    return told[0]

"""Checkpoint formats: one file or a folder of shards, and either resumes on any number of ranks with any strategy.

Both kinds hold weights and optimizer states by parameter name, so that whatever reads them puts each state where it
belongs, however the parameters are grouped and sharded there (by place, as torch's optimizers have them, they would
land on others).
"""

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.load import _METADATA_FILENAME as REST
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from datamodules.system.files import atomic_write
from lightning_modules.checkpointing.background import Background, snapshot
from lightning_modules.checkpointing.reading import CONTENTS, ShardReader, State, load_file, load_shards

WEIGHTS, OPTIMIZER = "state_dict", "optimizer_0"  # what of a folder lies in shards; the rest is one file


def is_folder_of_shards(path: str | Path) -> bool:
    """Whether a path is a sharded checkpoint."""
    return (Path(path) / CONTENTS).is_file()


def check_shards(folder: Path) -> None:
    """Raise if a part of a sharded checkpoint is missing.

    Raises:
        FileNotFoundError: If a file is not there or is shorter than what lies in it.
        ValueError: See `ShardReader.read_metadata`.
    """
    places = ShardReader(folder).read_metadata().storage_data.values()
    ends: dict[str, int] = {REST: 1}
    for place in places:
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    for name, end in sorted(ends.items()):
        file = folder / name
        if not file.is_file() or file.stat().st_size < end:
            state = "is cut short" if file.is_file() else "is missing"
            raise FileNotFoundError(f"--ckpt_path {folder}: its part {name} {state}; copy the whole folder again.")


def shapes_in(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in a sharded checkpoint, read from its table of contents alone."""
    contents = ShardReader(folder).read_metadata().state_dict_metadata
    return {
        name.removeprefix(f"{WEIGHTS}."): tuple(entry.size)
        for name, entry in contents.items()
        if isinstance(entry, TensorStorageMetadata) and name.startswith(f"{WEIGHTS}.")
    }


def save_file(checkpoint: State, path: Path, fsync: bool = True) -> None:
    """Write a checkpoint of one file atomically.

    Raises:
        OSError: Naming the file, if it cannot be written.
    """
    try:
        with atomic_write(path, fsync) as unfinished:
            torch.save(checkpoint, unfinished)
    except (OSError, RuntimeError) as error:  # torch has the latter for a full disk
        raise OSError(f"{path} cannot be written; is its disk full? ({error})") from error


def load(path: str | Path) -> State:
    """Load a checkpoint of either kind on the CPU, as what one file would hold; shards are put together.

    Raises:
        FileNotFoundError: See `check_shards`.
        ValueError: See `load_file`.
    """
    path = Path(path)
    if not is_folder_of_shards(path):
        return load_file(path)
    check_shards(path)
    checkpoint = load_shards(path) | load_file(path / REST)
    if OPTIMIZER in checkpoint:
        checkpoint["optimizer_states"] = [checkpoint.pop(OPTIMIZER)]
    return checkpoint


def check_parts(checkpoint: Any, path: str | Path) -> None:
    """Raise if what was read is no Lightning checkpoint, before Lightning looks for its parts.

    Raises:
        ValueError: Naming the file and the part that is missing or of another kind.
    """
    parts = checkpoint if isinstance(checkpoint, dict) else {}
    kinds = {"state_dict": dict, "loops": dict, "epoch": int, "global_step": int, "pytorch-lightning_version": str}
    odd = [name for name, kind in kinds.items() if not isinstance(parts.get(name), kind)]
    if not odd and not re.match(r"\d+\.\d+", parts["pytorch-lightning_version"]):
        odd = ["pytorch-lightning_version"]
    if not odd and not all(isinstance(weight, Tensor) for weight in parts["state_dict"].values()):
        odd = ["weights"]
    if odd:
        raise ValueError(f"--ckpt_path {path} is no checkpoint of a run: its {odd[0]} is missing or of another kind.")


class AnyCheckpointIO(TorchCheckpointIO):
    """Checkpoint I/O for strategies that do not shard: reads both kinds, and writes files atomically.

    Args:
        fsync: Whether to wait until a checkpoint is on the disk; see `atomic_write`.
        asynchronous: Whether to write in the background.
    """

    def __init__(self, fsync: bool = True, asynchronous: bool = False) -> None:
        self.fsync = fsync
        self.background = Background() if asynchronous else None

    def save_checkpoint(self, checkpoint: State, path: str | Path, storage_options: Any | None = None) -> None:
        """Write a file, or begin to; see `save_file`."""
        if self.background:
            self.background.start(partial(save_file, snapshot(checkpoint), Path(path), self.fsync))
        else:
            save_file(checkpoint, Path(path), self.fsync)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint, once the one that takes its place is written."""
        remove = partial(super().remove_checkpoint, path)
        if self.background:
            self.background.follow(remove)
        else:
            remove()

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> State:
        """Read either kind, whatever `weights_only` asks for; see `load`."""
        self.teardown()
        checkpoint = load(path)
        check_parts(checkpoint, path)
        return checkpoint

    def teardown(self) -> None:
        """Wait for what is being written."""
        if self.background:
            self.background.wait()


def optimizer_state_to_names(state: State, groups: Iterable[Iterable[str]]) -> State:
    """An optimizer's state dict with parameter names in place of indices.

    Args:
        state: An optimizer's `state_dict()`.
        groups: Names of the parameters of each of its groups, in their order.
    """
    names = [name for group in groups for name in group]
    return {
        "state": {names[place]: values for place, values in state["state"].items()},
        "param_groups": [g | {"params": [names[place] for place in g["params"]]} for g in state["param_groups"]],
    }


def optimizer_state_to_places(state: State, groups: Iterable[Iterable[str]]) -> State:
    """The inverse of `optimizer_state_to_names`, for an optimizer whose groups may come in another order.

    Raises:
        ValueError: If the saved groups hold other parameters.
    """
    ours = [list(group) for group in groups]
    saved = {frozenset(group["params"]): group for group in state["param_groups"]}
    places = {name: place for place, name in enumerate(name for group in ours for name in group)}
    if {frozenset(group) for group in ours} != saved.keys():
        raise ValueError(
            "The checkpoint's optimizer trains other parameters than this run's: resume with the model, LoRA settings "
            "and module of the run that wrote it."
        )
    return {
        "state": {places[name]: values for name, values in state["state"].items()},
        "param_groups": [saved[frozenset(group)] | {"params": [places[name] for name in group]} for group in ours],
    }


def group_names(module: LightningModule, groups: list[State]) -> list[list[str]]:
    """Names of the parameters in each of an optimizer's groups."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in groups]

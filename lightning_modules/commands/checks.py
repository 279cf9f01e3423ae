"""Checks of a run's settings before anything is built; each raises one sentence that names the key."""

import os
import pkgutil
from collections.abc import Iterable
from dataclasses import is_dataclass
from typing import Any, get_args

import torch
from jsonargparse import Namespace
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.trainer import Trainer

from datamodules.system.files import check_writable
from lightning_modules.checkpointing.sharded import ReshardableCheckpoints
from lightning_modules.commands.options import parameters

LEAST = {"check_val_every_n_epoch": 1, "log_every_n_steps": 0, "num_sanity_val_steps": -1, "min_steps": 0}
LEAST |= {"min_epochs": 0, "val_check_interval": 0, "limit_train_batches": 0}
"""Settings of Lightning that it takes less of, and fails or does nothing."""
SHARES = {
    "val_check_interval": "give a share of an epoch or a number of steps",
    "limit_train_batches": "nothing would be trained on",
}
LAUNCHED = {"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "0", "JSM_NAMESPACE_RANK": "0", "WORLD_SIZE": "1"}
"""What launchers tell a process of its place among others, and what they tell one that is alone."""
PER_CORE = 8  # processes that share a core without being a slip


def check_sections(config: Namespace, names: Iterable[str]) -> None:
    """Refuse a group of settings that holds none, as `trainer: null` does.

    Args:
        config: The settings.
        names: Of the groups.

    Raises:
        ValueError: Naming the group.
    """
    for name in names:
        if not isinstance(config[name], Namespace):
            raise ValueError(f"{name} must hold settings, and is {config[name]}: leave it out for its defaults")


def check_seed(seed: Any) -> None:
    """Refuse a seed that not every generator of random numbers takes.

    Raises:
        ValueError: Naming the range.
    """
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        raise ValueError(f"seed_everything is {seed}; give a number from 0 to {2**32 - 1:,}.")


def check_trainer_settings(trainer: Namespace) -> None:
    """Refuse numbers on which Lightning fails, and its settings for which this project has others.

    Raises:
        ValueError: Naming the first, and what to set instead.
    """
    for name, least in LEAST.items():
        value = trainer[name]
        if isinstance(value, int | float) and not isinstance(value, bool) and value < least:
            raise ValueError(f"trainer.{name} is {value}; give at least {least}.")
        if name in SHARES and value == 0:
            raise ValueError(f"trainer.{name} is 0: {SHARES[name]}.")
    if not isinstance(every := trainer["val_check_interval"], int | float | None):
        raise ValueError(f"trainer.val_check_interval is {every}, a time: {SHARES['val_check_interval']}.")
    if trainer["gradient_clip_val"] is not None or trainer["gradient_clip_algorithm"] is not None:
        raise ValueError("trainer.gradient_clip_val and gradient_clip_algorithm are not used: set model.max_grad_norm")
    if trainer["accumulate_grad_batches"] != 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches: {trainer['accumulate_grad_batches']} is not used: data.batch_size sets "
            "the rows of an optimizer step, data.micro_batch_tokens (with rollouts model.micro_batch_tokens) those of "
            "one pass"
        )


def check_dirpaths(config: Namespace) -> None:
    """Refuse checkpoints where none can be written; on another machine, before Lightning asks for what reaches it.

    Raises:
        ValueError: Naming the callback.
    """
    callbacks = config["trainer"]["callbacks"] or []
    given = callbacks if isinstance(callbacks, list) else [callbacks]
    chosen = [(one.class_path, one.get("init_args")) for one in given if isinstance(one, Namespace)]
    for path, settings in (("ModelCheckpoint", config["best_checkpoint"]), *chosen):
        if settings and isinstance(place := settings.get("dirpath"), str | os.PathLike):
            check_writable(f"dirpath of {path.rpartition('.')[2]}", place)


def check_processes(trainer: Trainer) -> None:
    """Refuse more processes on CPU cores than a slip of the pen explains.

    Raises:
        ValueError: Naming both numbers.
    """
    cores = os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > PER_CORE * cores:
        raise ValueError(
            f"trainer.devices: {trainer.num_devices} processes are too many for {cores} cores: give at most "
            f"{PER_CORE * cores}"
        )


def check_alone(trainer: Trainer) -> None:
    """Refuse a run of one process that its environment says to be one of several, as a job that has ended may leave it.

    Lightning would keep its events and warnings to itself, for those of another process. And of processes that a
    launcher has started each would train on its own.

    Raises:
        ValueError: Naming the variables.
    """
    found = {name: os.environ[name] for name, alone in LAUNCHED.items() if os.environ.get(name, alone) != alone}
    if trainer.world_size == 1 and found:
        told = " ".join(f"{name}={value}" for name, value in found.items())
        raise ValueError(
            f"the environment says that this process is one of several ({told}), and trainer.devices and "
            "trainer.num_nodes make a run of one: set these if a launcher has started several, else `unset "
            f"{' '.join(found)}`"
        )


def check_attention(kernel: str, device: torch.device) -> None:
    """Refuse kernels of attention that are written for GPUs where a run has none.

    Raises:
        ValueError: Naming the kernel.
    """
    if kernel.startswith("flash_attention") and device.type == "cpu":
        raise ValueError(
            f"model.attn_implementation: {kernel} runs on GPUs alone, and this run is on the CPU: leave it out"
        )


def check_shards_by_model(strategy: Strategy) -> None:
    """Refuse Lightning's own FSDP, which shards the module as a whole.

    Raises:
        ValueError: Naming the overlay to take.
    """
    whole = isinstance(strategy, FSDPStrategy | ModelParallelStrategy)
    if whole and not isinstance(strategy, ReshardableCheckpoints):
        raise ValueError(
            f"trainer.strategy: {type(strategy).__name__} of Lightning would shard the whole module, in which several "
            "passes of a step do not work: add --config configs/trainer/fsdp2.yaml"
        )


def check_reads_safely(strategy: Strategy) -> None:
    """Refuse to resume a checkpoint with a strategy that reads it in a way of its own.

    Raises:
        ValueError: Lightning's FSDP and DeepSpeed would run code that a checkpoint holds.
    """
    if type(strategy).load_checkpoint not in (Strategy.load_checkpoint, ReshardableCheckpoints.load_checkpoint):
        raise ValueError(
            f"trainer.strategy: {type(strategy).__name__} would run code that is hidden in --ckpt_path; take FSDP2 or "
            "FSDP1 of lightning_modules.strategies, ddp or auto, which all read checkpoints of one another"
        )


def refuse_nulls(key: str, kind: Any, settings: Any) -> None:
    """Refuse `null` where a class takes none; jsonargparse lets it pass for anything.

    Args:
        key: What the settings are under.
        kind: The class that they are for, unless they name it in `class_path`.
        settings: Its arguments, or `class_path` and `init_args`.

    Raises:
        ValueError: Naming the first such setting.
    """
    if isinstance(settings, Namespace) and "class_path" in settings:
        kind, settings = pkgutil.resolve_name(settings["class_path"]), settings.get("init_args")
    if not isinstance(settings, Namespace) or not isinstance(kind, type):
        return
    wanted = parameters(kind)
    for name, value in vars(settings).items():
        kinds = get_args(wanted.get(name)) or (wanted.get(name, Any),)
        if value is None and not {None, type(None), Any} & {*kinds} and not any(isinstance(k, str) for k in kinds):
            raise ValueError(f"{key}.{name} is null, and must have a value: leave it out for its default")
        refuse_nulls(f"{key}.{name}", next(filter(is_dataclass, kinds), None), value)

"""Resuming a run: find the checkpoint, and restore what Lightning leaves out or restores too late."""

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from datamodules.loading import ResumableLoader
from datamodules.system.arguments import declared
from datamodules.system.files import clear_unfinished
from lightning_modules.ranks import of_every_rank


def resolve_checkpoint(path: str) -> str:
    """Find the checkpoint meant by `--ckpt_path`.

    Args:
        path: A `.ckpt` file, a sharded checkpoint folder, or a run folder: its newest checkpoint.

    Returns:
        The file or sharded folder.

    Raises:
        ValueError: For Lightning's words "last", "best" and "hpc", which look into the new run's empty folder.
        FileNotFoundError: If there is no checkpoint at `path`.
    """
    if path in ("last", "best", "hpc"):
        raise ValueError(f"--ckpt_path {path}: give a path, to a .ckpt or to the folder of the run to resume.")
    found = Path(os.path.expanduser(path))
    for folder in (found.parent, found, found / "checkpoints"):
        clear_unfinished(folder)
    if found.is_file() or (found / ".metadata").is_file():
        return str(found)
    checkpoints = [*found.glob("checkpoints/*.ckpt"), *found.glob("*.ckpt")]
    if not checkpoints:
        raise FileNotFoundError(f"--ckpt_path {path}: no such checkpoint, and no run folder with checkpoints in it.")
    # of one step the last: the best may be of a validation after the epoch was cut short and counted as done
    return str(max(checkpoints, key=lambda file: (_step(file), file.name.startswith("last-"), file.stat().st_mtime)))


def step_of(model: str) -> int:
    """Optimizer step of a model, by the names of its checkpoints.

    Args:
        model: A checkpoint, its exported `hf-NAME/`, a run folder or its `hf/`, or any other model.

    Returns:
        The step of the checkpoint, or of the run's newest; 0 where no name tells.
    """
    path = Path(os.path.expanduser(model))
    run = path.parent if path.name == "hf" else path
    alone = path.suffix == ".ckpt" or (path.name.startswith("hf-") and path.is_dir())
    named = [path] if alone else run.glob("checkpoints/*.ckpt")
    return max(0, 0, *map(_step, named))


def _step(checkpoint: Path) -> int:
    """The step in a name like `last-000120.ckpt`; -1 for other names."""
    digits = checkpoint.stem.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1


@declared
class LastCheckpoint(ModelCheckpoint):
    """Saves the newest state of a run: every so many steps, at its end, and where an exception or SIGTERM ends it.

    On one rank Lightning ends a run that received SIGTERM after its step. On several its handler starts a collective
    wherever the signal finds the rank, which can be between any two others; here the ranks agree at the end of a step.

    Args:
        every_n_train_steps: Optimizer steps between two checkpoints.
        fsync: Whether a checkpoint of the run, of any callback, has to be on the disk before the one before is deleted,
            so that a power cut leaves one of them. Off, a save ends once the system has taken the bytes.
        asynchronous: Copy a checkpoint of the run, of any callback, to the memory of the CPU and go on while it is
            written; the next one, and the end of the run, wait for it.
    """

    def __init__(self, every_n_train_steps: int = 50, fsync: bool = True, asynchronous: bool = False) -> None:
        super().__init__(
            filename="last-{step:06d}",
            auto_insert_metric_name=False,
            enable_version_counter=False,
            every_n_train_steps=every_n_train_steps,
            save_on_exception=True,
        )
        self.fsync, self.asynchronous = fsync, asynchronous
        self.terminated = False  # whether this rank of several has received SIGTERM
        self.begun = False  # whether the run has been put where it goes on from

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note that nothing has begun."""
        super().setup(trainer, pl_module, stage)
        self.begun = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the place of Lightning's handler, which puts back the one before it when the run is over."""
        super().on_train_start(trainer, pl_module)
        self.begun = True
        if trainer.is_global_zero and not self.fsync:
            print(
                "last_checkpoint.fsync is off: a power cut may take the newest checkpoint and the one before with it."
            )
        if trainer.world_size > 1:
            signal.signal(signal.SIGTERM, self._note)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Save every so many steps, where the run ends within an epoch, and when any rank has received SIGTERM.

        Raises:
            SIGTERMException: On every rank, if any has received SIGTERM.
        """
        super().on_train_batch_end(trainer, pl_module, *args, **kwargs)
        if ends_within_epoch(trainer):
            self._save(trainer)
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(self.terminated, all=False):
            self._save(trainer)
            raise SIGTERMException

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save where early stopping has ended the run within an epoch."""
        super().on_validation_end(trainer, pl_module)
        if ends_within_epoch(trainer):
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the run, so that more epochs can follow."""
        self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save where a training is broken off, and not a test of its model, which is at a step of its own, too.

        A run that cannot go on from a checkpoint has its weights and step by then, and not its place among the rows.
        """
        if trainer.state.fn == TrainerFn.FITTING and self.begun:
            super().on_exception(trainer, pl_module, exception)

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, Tensor]:
        """What the name is made of; the `step` logged last may be of the step before one that an error broke off."""
        return super()._monitor_candidates(trainer) | {"step": torch.tensor(trainer.global_step)}

    def _note(self, *_: Any) -> None:
        self.terminated = True

    def _save(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


def ends_within_epoch(trainer: Trainer) -> bool:
    """Whether the step just taken is the run's last, by `max_steps`, `max_time` or early stopping, but no epoch's.

    It has to be saved there: at the end of training Lightning has counted that epoch as done, and a run that went on
    from there would leave its rest out. `Timer` and `EarlyStopping`, which ranks stop by together, come before
    checkpoints in the order of the callbacks.
    """
    loop = trainer.fit_loop
    ends = trainer.global_step == trainer.max_steps or (trainer.should_stop and loop._can_stop_early)
    return ends and not loop.epoch_loop.batch_progress.is_last_batch


class ExactResume(Callback):
    """Makes resuming bit-exact: saves the random states of every rank, and restores them and the data position in time.

    The states are plain numbers and tensors, which `weights_only` loads.
    """

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []  # of every rank of the saved run; empty once restored
        self.position: dict[str, Any] | None = None  # of the training loader; None once restored
        self.begun: tuple[int, dict[str, Any]] | None = None  # the step under way and the random states at its start
        self.reached: tuple[int, int] | None = None  # epoch and batch of the training loader after the last whole step
        self.validated = -1  # step of the last validation of this run that was not broken off

    def state_dict(self) -> dict[str, Any]:
        """Gather the states of all ranks, each of which calls this when a checkpoint is made."""
        return {"ranks": of_every_rank(random_states())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the states until training starts: set-up draws random numbers too."""
        self.states = state_dict["ranks"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Have a run that goes on from here validate first, on all rows, where that is due and not over.

        Lightning would take a validation that is due for over, and one that was broken off would leave out as many rows
        at its end as it has had, of which nothing is known any more.
        """
        loops, loop = checkpoint["loops"]["fit_loop"], trainer.fit_loop.epoch_loop
        steps, rows = loops["epoch_loop.batch_progress"], loops["epoch_loop.val_loop.batch_progress"]
        due = (
            trainer.state.fn == TrainerFn.FITTING
            and self.validated != trainer.global_step < trainer.estimated_stepping_batches
            and loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        )
        rows["total"] = dict.fromkeys(rows["total"], 0)  # after one that was broken off it would stay uneven
        if due:
            for counts in (steps["total"], steps["current"]):
                counts["completed"] = counts["processed"]
            rows["current"] = dict.fromkeys(rows["current"], 0)
            rows["total"] |= {"ready": 1, "started": 1}  # as of a validation in its first batch

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that a validation is over."""
        if not trainer.sanity_checking:
            self.validated = trainer.global_step

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember the data position that Lightning has saved, and let checkpoint callbacks keep what was best so far.

        After an epoch that is over the next one begins with its first batch: with `max_steps` Lightning would take the
        batches of the one before for its own, and find none left. It hands the position to a loader only while it makes
        one, and counting the steps of the run for the learning rate makes the loader before the checkpoint is read. And
        it would have a callback forget the best score for its folder is another, as that of every run is; it deletes no
        file outside of its folder.
        """
        loops = checkpoint["loops"]["fit_loop"]
        positions = loops["state_dict"].get("combined_loader")
        self.position = positions[0] if positions else None
        epochs, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
        if epochs["ready"] == epochs["completed"]:
            batches |= {"current": dict.fromkeys(batches["current"], 0), "is_last_batch": False}
        for callback in trainer.checkpoint_callbacks:
            if (state := checkpoint["callbacks"].get(callback.state_key)) and "dirpath" in state:
                state["dirpath"] = callback.dirpath

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the position, and this rank's states; a rank that the saved run did not have keeps its own."""
        if self.position is not None:
            loader = trainer.train_dataloader
            given = getattr(loader, "seed", None)
            loader.load_state_dict(self.position)
            if isinstance(loader, ResumableLoader) and loader.seed != given and trainer.is_global_zero:
                print(f"The rows stay in the order of seed {loader.seed}, in which the resumed run had them.")
        if trainer.global_rank < len(self.states):
            set_random_states(self.states[trainer.global_rank])
        self.states, self.position = [], None
        self._end_step(trainer)

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Note what `on_exception` goes back to."""
        self.begun = trainer.global_step, random_states()

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Note that the step is over."""
        self._end_step(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Undo the step that an error or Ctrl-C has broken off, so that the checkpoint is one of the step's start.

        Where the weights have taken it, as when its metrics cannot be written, the checkpoint is one of its end. It may
        also be broken off before it begins, while its batch is made.
        """
        if self.begun is not None:
            progress = trainer.fit_loop.epoch_loop.batch_progress
            if self.begun[0] != trainer.global_step:
                for counts in (progress.total, progress.current):
                    counts.processed = counts.started  # Lightning counts such a batch as completed when it goes on
                return
            set_random_states(self.begun[1])
            for counts in (progress.total, progress.current):
                counts.ready = counts.started = counts.completed
        if self.reached is not None:
            trainer.train_dataloader.epoch, trainer.train_dataloader.batch = self.reached

    def _end_step(self, trainer: Trainer) -> None:
        loader, self.begun = trainer.train_dataloader, None
        self.reached = (loader.epoch, loader.batch) if isinstance(loader, ResumableLoader) else None


@contextmanager
def unbroken() -> Iterator[None]:
    """Context that Ctrl-C does not break off, but follows: what an optimizer step changes is changed as a whole."""
    if threading.current_thread() is not threading.main_thread():  # the only one that it interrupts
        yield
        return
    pressed: list[int] = []
    own = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, own)
    if pressed:
        signal.raise_signal(signal.SIGINT)


def random_states() -> dict[str, Any]:
    """States of the random generators of Python, numpy and torch in this process."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": (version, list(words), gauss),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Restore what `random_states` returned."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())

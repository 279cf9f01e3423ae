"""Resuming a run: restore what Lightning leaves out or restores too late."""

import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from datamodules.loading import ResumableLoader
from lightning_modules.ranks import of_every_rank


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

"""The newest state of a run, saved every so many steps and wherever the run ends or is broken off."""

import signal
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from datamodules.system.arguments import declared


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

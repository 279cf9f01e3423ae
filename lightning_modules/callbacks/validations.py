"""Validations that a run never comes to, and monitors of what none of them logs: refused before weights are loaded."""

import difflib

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.base import XLAMDataModule
from lightning_modules.metrics import CATEGORIES, RATES

BETTER = {f"tool/{part}{rate}": "max" for part in ("", *(f"{name}/" for name in CATEGORIES)) for rate in RATES.values()}
BETTER |= {"tool/irrelevance_acc": "max", "val/loss_cot": "min", "val/loss_call": "min", "train/loss": "min"}
"""Metrics that tell how good a model is, and whether they are so where they are greatest or least."""
OURS = ("lightning_modules.", "lightning.")
KNOWN = {*BETTER, "tool/n_calls", "val/reward/errors", "val/completion/truncated_frac", "val/completion/mean_length"}
KNOWN |= {"epoch", "step"}
"""All metrics whose names begin with `tool/` or `val/` or have no slash; the last two are Lightning's."""


def check_validates(trainer: Trainer) -> None:
    """Refuse a validation every so many steps of an epoch that has fewer.

    Raises:
        ValueError: Naming both numbers.
    """
    every, data = trainer.val_check_interval, trainer.datamodule
    if isinstance(every, int) and trainer.check_val_every_n_epoch is not None and isinstance(data, XLAMDataModule):
        steps = len(data.train_dataloader())
        if every > steps:
            raise ValueError(
                f"trainer.val_check_interval is {every}, and an epoch has {steps} steps: give at most as many, or set "
                "trainer.check_val_every_n_epoch to null, by which steps are counted over epochs"
            )


def check_monitors(trainer: Trainer, module: LightningModule) -> None:
    """Refuse a checkpoint or an early stop by a metric that no validation logs, or by the wrong end of one.

    A module or a callback of the user's may log others.

    Raises:
        ValueError: Naming the metric and what may be meant, or the mode that fits.
    """
    ours = all(type(one).__module__.startswith(OURS) for one in (module, *trainer.callbacks))
    best = [callback for callback in trainer.callbacks if isinstance(callback, ModelCheckpoint)][-1:]
    for callback in trainer.callbacks:
        name, mode = getattr(callback, "monitor", None), getattr(callback, "mode", None)
        if not isinstance(name, str):
            continue
        of = "best_checkpoint" if callback in best else type(callback).__name__  # it follows those of trainer.callbacks
        if ours and name not in KNOWN and name.partition("/")[0] in ("tool", "val", name):
            near = difflib.get_close_matches(name, BETTER, 1)
            meant = f"is {near[0]} meant? " if near else ""
            raise ValueError(f"{of}.monitor: no metric is called {name}: {meant}docs/metrics.md has all of them")
        if name in BETTER and mode in ("min", "max") and mode != BETTER[name]:
            raise ValueError(
                f"{of}.mode is {mode}, and {name} is best where it is {BETTER[name]}imal: set mode to {BETTER[name]}"
            )


def never_validates(trainer: Trainer) -> bool:
    """Whether the run ends before the first validation that its settings ask for."""
    every, counts_on = trainer.val_check_interval, trainer.check_val_every_n_epoch is None
    return counts_on and isinstance(every, int) and every > trainer.estimated_stepping_batches

"""Progress of a run: a bar of optimizer steps on a terminal, lines elsewhere, and a line for each validation."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm

from datamodules.system.arguments import declared
from lightning_modules.callbacks.ending import ended
from lightning_modules.evaluation import EvaluationModule

SHOWN = {
    "tool/exact_match": "exact match",
    "tool/format_rate": "format",
    "val/loss_cot": "loss CoT",
    "val/loss_call": "loss call",
}
"""What the line of a validation shows, of what there is."""
LOSSES, SCORE = ("train/loss", "policy/loss"), "reward/mean"


@declared
class Progress(Callback):
    """Shows how far a command is: one bar where the output is a terminal, else a line every so many steps.

    Args:
        every_n_steps: Optimizer steps between two lines where the output is no terminal, or with
            `trainer.enable_progress_bar: false`.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        if every_n_steps < 1:
            raise ValueError(f"progress.every_n_steps is {every_n_steps}; give at least 1")
        self.every_n_steps = every_n_steps
        self.bars = True  # whether the user wants them
        self.bar: tqdm | None = None
        self.score: float | None = None  # of the last validation
        self.steps, self.first, self.begun = 0, 0, 0.0  # of the training: how many, from which on, since when
        self.validating, self.validated = 0.0, 0.0  # since when; seconds of all validations so far

    def on_train_start(self, trainer: Trainer, pl_module: EvaluationModule) -> None:
        """Begin to count steps."""
        self.steps, self.first = int(trainer.estimated_stepping_batches), trainer.global_step
        self.begun, self.validated = time.perf_counter(), 0.0
        self._open(trainer, self.steps, self.first, "step", "training")

    def on_train_batch_end(self, trainer: Trainer, pl_module: EvaluationModule, *args: Any, **kwargs: Any) -> None:
        """Count a step, and now and then write a line."""
        if not trainer.is_global_zero:
            return
        step, shown = trainer.global_step, self._shown(pl_module.logged)
        if self.bar is not None:
            self.bar.set_postfix_str(shown, refresh=False)
            self.bar.update(step - self.bar.n)
        elif step % self.every_n_steps == 0 or step == self.steps:
            pace = (time.perf_counter() - self.begun - self.validated) / max(1, step - self.first)
            left = f", {clock(pace * (self.steps - step))} left" if step < self.steps else ""
            print(f"step {step:,} of {self.steps:,}: {shown}; {pace:.2f} s a step{left}", flush=True)

    def on_validation_start(self, trainer: Trainer, pl_module: EvaluationModule) -> None:
        """Note when it began."""
        self.validating = time.perf_counter()
        if trainer.state.fn != TrainerFn.FITTING:
            self._open(trainer, rows_of(trainer.val_dataloaders, trainer.num_val_batches), 0, "row", "validating")
        elif self.bar is not None:
            self.bar.set_description("validating")

    def on_validation_end(self, trainer: Trainer, pl_module: EvaluationModule) -> None:
        """Write the line of a validation."""
        seconds = time.perf_counter() - self.validating
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        if trainer.state.fn == TrainerFn.FITTING:
            self.validated += seconds
        else:
            self._close()
        metrics = pl_module.logged
        self.score = metrics.get("tool/exact_match", self.score)
        found = ", ".join(f"{name} {metrics[tag]:.3f}" for tag, name in SHOWN.items() if tag in metrics)
        rows = rows_of(trainer.val_dataloaders, trainer.num_val_batches)
        say(f"validation at step {trainer.global_step:,}: {found or 'no rows'} ({rows:,} rows, {clock(seconds)})")
        if self.bar is not None:
            self.bar.set_description("training")

    def on_test_start(self, trainer: Trainer, pl_module: EvaluationModule) -> None:
        """Begin to count rows."""
        self.begun = time.perf_counter()
        self._open(trainer, rows_of(*_evaluated(trainer)), 0, "row", "testing" if trainer.testing else "predicting")

    on_predict_start = on_test_start

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: EvaluationModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Count the rows of a batch."""
        loader, batches = _evaluated(trainer)
        done, rows = rows_of(loader, [batch_idx + 1]), rows_of(loader, batches)
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
        elif trainer.is_global_zero:
            print(f"{done:,} of {rows:,} rows answered, {clock(time.perf_counter() - self.begun)}", flush=True)

    on_predict_batch_end = on_test_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: EvaluationModule) -> None:
        """End the bar."""
        self._close()

    on_predict_end = on_test_end
    on_train_end = on_test_end

    def on_exception(self, trainer: Trainer, pl_module: EvaluationModule, exception: BaseException) -> None:
        """End the bar, so that what is said next has a line of its own."""
        self._close()

    def on_fit_end(self, trainer: Trainer, pl_module: EvaluationModule) -> None:
        """Print what came out, and the commands to go on with."""
        log_dir = trainer.log_dir  # a collective: every rank asks
        if trainer.is_global_zero and not trainer.fast_dev_run and log_dir:
            print(ended(trainer, log_dir, time.perf_counter() - self.begun), flush=True)

    def _shown(self, metrics: dict[str, float]) -> str:
        losses = [f"loss {metrics[tag]:.4f}" for tag in LOSSES if tag in metrics]
        scores = [f"reward {metrics[SCORE]:.3f}"] if SCORE in metrics else []
        return ", ".join(losses + scores + ([f"score {self.score:.3f}"] if self.score is not None else []))

    def _open(self, trainer: Trainer, total: int, done: int, unit: str, words: str) -> None:
        if self.bars and trainer.is_global_zero and sys.stdout.isatty():
            self.bar = tqdm(total=total, initial=done, unit=unit, desc=words, file=sys.stdout, dynamic_ncols=True)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def say(text: str) -> None:
    """Print, above the bar if there is one."""
    tqdm.write(text)
    sys.stdout.flush()


def rows_of(loader: Any, batches: Sequence[float]) -> int:
    """Number of rows over all ranks in the first batches of a loader of prompts; 0 for other loaders.

    Args:
        loader: The loader.
        batches: How many, in a list as Lightning has it of the loaders of a stage; `trainer.limit_val_batches` and its
            like may have cut it.
    """
    examples, size = getattr(loader, "examples", ()), getattr(loader, "batch_size", None) or 1
    return int(min(len(examples), sum(batches) * size))


def _evaluated(trainer: Trainer) -> tuple[Any, Sequence[float]]:
    """The loader of a test or a prediction, and how many of its batches are taken."""
    if trainer.testing:
        return trainer.test_dataloaders, trainer.num_test_batches
    return trainer.predict_dataloaders, trainer.num_predict_batches


def clock(seconds: float) -> str:
    """A time for people: seconds below two minutes, minutes below two hours, hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

"""Tables at the start and end of a run: its size, its settings, its metrics."""

import difflib
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from datamodules.base import XLAMDataModule
from datamodules.chat.templates import DATE_FIXED, PROMPT_DATE
from datamodules.system.escaping import visible
from lightning_modules.base import FunctionCallingModule
from lightning_modules.callbacks.board import LAYOUT, ROLLOUTS, RunLogger, settings_of
from lightning_modules.callbacks.cheaper import cheaper
from lightning_modules.callbacks.fits import check_evaluation, check_fits
from lightning_modules.callbacks.memory_text import memory_rows
from lightning_modules.callbacks.plan import device_memory, parameter_counts, plan_ahead, plan_of
from lightning_modules.callbacks.progress import say, time_left
from lightning_modules.evaluation import SANITY_ROWS, EvaluationModule
from lightning_modules.grpo import GRPOModule
from lightning_modules.metrics import CATEGORIES, RATES

BETTER = {f"tool/{part}{rate}": "max" for part in ("", *(f"{name}/" for name in CATEGORIES)) for rate in RATES.values()}
BETTER |= {"tool/irrelevance_acc": "max", "val/loss_cot": "min", "val/loss_call": "min", "train/loss": "min"}
"""Metrics that tell how good a model is, and whether they are so where they are greatest or least."""
OURS = ("lightning_modules.", "lightning.")
KNOWN = {*BETTER, "tool/n_calls", "val/reward/errors", "val/completion/truncated_frac", "val/completion/mean_length"}
KNOWN |= {"epoch", "step"}
"""All metrics whose names begin with `tool/` or `val/` or have no slash; the last two are Lightning's."""


class RunSummary(Callback):
    """Prints what a run is about to do, how long it will take and, after a test, how far the calls were right."""

    def __init__(self) -> None:
        self.spent: list[float] | None = []  # seconds of the steps of the first batch of rollouts; None afterwards
        self.begun = False  # whether the size was printed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot fit into the GPU's memory, or an epoch, before the weights are loaded."""
        if stage == TrainerFn.FITTING:
            check_validates(trainer)
            check_monitors(trainer, pl_module)
            check_fits(trainer, pl_module, plan_ahead)
        elif isinstance(pl_module, EvaluationModule):
            check_evaluation(trainer, pl_module)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: FunctionCallingModule) -> None:
        """Print the size before anything is waited for, and then what is."""
        self.begin(trainer, pl_module)
        held_out = getattr(trainer.datamodule, "val_indices", [0])  # of other data nothing is known
        if trainer.is_global_zero and len(held_out):
            print(f"validating {SANITY_ROWS} rows before the first step, to see that it works", flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: FunctionCallingModule) -> None:
        """Print the size where nothing was validated before."""
        if not self.begun:
            self.begin(trainer, pl_module)
        self.spent, self.begun = [], False

    def begin(self, trainer: Trainer, pl_module: FunctionCallingModule) -> None:
        """Print the size of the run, and group the panels."""
        self.begun = True
        trained, frozen = parameter_counts(pl_module)
        total = trained + frozen
        rows = {
            "model": f"{pl_module.init_from}, {total:,} parameters, {trained:,} trained ({trained / total:.1%})",
            "steps": f"{trainer.estimated_stepping_batches:,} optimizer steps, from step {trainer.global_step:,}",
            "learning rate": rate_of(trainer, pl_module),
            "devices": f"{trainer.world_size} x {pl_module.device.type}, precision {trainer.precision}",
            "generator": f"{type(pl_module.generator).__name__}, at most {pl_module.generator.max_new_tokens:,} tokens",
            "run folder": f"{trainer.log_dir}",
        }
        if pl_module.torch_compile:
            rows["layers"] = "compiled one by one (torch.compile) in the first steps, which take longer"
        if str(pl_module.tokenizer.chat_template).startswith(DATE_FIXED):
            rows["prompts"] = f"are of {PROMPT_DATE}, whatever the day: the chat template would print the present one"
        rows |= pl_module.settings_table()
        if never_validates(trainer):
            every, steps = trainer.val_check_interval, trainer.estimated_stepping_batches
            rows["NO VALIDATION"] = f"trainer.val_check_interval {every} is more than the {steps:,} steps of the run"
        if plan := plan_of(trainer, pl_module):
            rows |= tokens_of_step(trainer, pl_module)
            rows |= memory_rows(plan, device_memory(trainer, pl_module.device), cheaper(trainer, pl_module, plan))
        if trainer.is_global_zero:
            print(visible("\n".join(f"  {name:<14}{value}" for name, value in rows.items())))
        check_fits(trainer, pl_module, plan_of)  # the model may have turned out to be one that takes more
        if isinstance(trainer.logger, RunLogger):
            hidden = ("Loss",) if isinstance(pl_module, GRPOModule) else ROLLOUTS
            trainer.logger.begin(settings_of(trainer, pl_module), hidden)

    def on_test_start(self, trainer: Trainer, pl_module: EvaluationModule) -> None:
        """Name the settings beside the scores."""
        if isinstance(trainer.logger, RunLogger):
            trainer.logger.begin(settings_of(trainer, pl_module), LAYOUT)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Print how long the run will take, once all updates on the first batch of rollouts are done."""
        if not isinstance(pl_module, GRPOModule) or self.spent is None:
            return
        if self.spent or pl_module.rollouts:  # a run that was resumed may begin with a batch that is half used
            self.spent.append(pl_module.logged["time/step"])
        if self.spent and pl_module.buffer is None:
            if trainer.is_global_zero:
                remaining = int(trainer.estimated_stepping_batches) - trainer.global_step
                say(time_left(sum(self.spent), len(self.spent), remaining))
            self.spent = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table of a validation or test, but not of those in the middle of training."""
        counted = "tool/exact_match" in trainer.callback_metrics  # BFCL has a table of its own
        if trainer.is_global_zero and trainer.state.fn != TrainerFn.FITTING and counted:
            print(accuracy_table({name: float(value) for name, value in trainer.callback_metrics.items()}))

    on_test_end = on_validation_end


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
    for callback in trainer.callbacks:
        name, mode = getattr(callback, "monitor", None), getattr(callback, "mode", None)
        if not isinstance(name, str):
            continue
        of = "best_checkpoint" if isinstance(callback, ModelCheckpoint) else type(callback).__name__
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


def rate_of(trainer: Trainer, module: FunctionCallingModule) -> str:
    """The learning-rate schedule in words."""
    warmup = module.warmup_steps(trainer.estimated_stepping_batches)
    then = {"cosine": "falls as a cosine to 0", "constant": "stays"}[module.schedule]
    return f"{module.learning_rate:g} after {warmup:,} steps of warm-up, then it {then}"


def tokens_of_step(trainer: Trainer, module: FunctionCallingModule) -> dict[str, str]:
    """Tokens that an optimizer step learns from, over all ranks, as a row of the table."""
    data = trainer.datamodule
    lengths = data.lengths[data.train_indices]
    if isinstance(module, GRPOModule):
        count = data.hparams.prompts_per_step * module.sampling.group_size // module.mini_batches
        longest = int(lengths.max()) + module.generator.max_new_tokens
        return {"tokens": f"at most {count * longest:,} a step: {count:,} rollouts x {longest:,} with their prompts"}
    count = data.hparams.batch_size
    return {"tokens": f"about {count * lengths.mean():,.0f} a step: {count:,} rows x {lengths.mean():,.0f} on average"}


def accuracy_table(metrics: dict[str, float]) -> str:
    """Rates by category as a text table.

    Args:
        metrics: What `CallAccuracy.compute` returns.
    """
    lines = [f"{'':<18}" + "".join(f"{rate:>15}" for rate in RATES.values())]
    for label, prefix in [("all", "tool"), *((category, f"tool/{category}") for category in CATEGORIES)]:
        cells = [metrics.get(f"{prefix}/{rate}") for rate in RATES.values()]
        if None not in cells:
            lines.append(f"{label:<18}" + "".join(f"{cell:>15.3f}" for cell in cells))
    return "\n".join(lines)

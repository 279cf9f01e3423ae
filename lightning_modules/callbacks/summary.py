"""Tables at the start and end of a run: its size, its settings, its metrics."""

from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from datamodules.chat.templates import DATE_FIXED, PROMPT_DATE
from datamodules.system.escaping import visible
from lightning_modules.base import FunctionCallingModule
from lightning_modules.callbacks.board import LAYOUT, ROLLOUTS, RunLogger, listed_settings
from lightning_modules.callbacks.cheaper import cheaper
from lightning_modules.callbacks.fits import check_evaluation, check_fits
from lightning_modules.callbacks.memory_text import memory_rows
from lightning_modules.callbacks.plan import device_memory, optimizer_of_ones_own, parameter_counts, plan_of
from lightning_modules.callbacks.progress import say
from lightning_modules.callbacks.validations import check_monitors, check_validates, never_validates
from lightning_modules.evaluation import SANITY_ROWS, EvaluationModule
from lightning_modules.grpo import GRPOModule
from lightning_modules.metrics import CATEGORIES, RATES


class RunSummary(Callback):
    """Prints what a run is about to do, how long it will take and, after a test, how far the calls were right."""

    def __init__(self) -> None:
        self.spent: list[float] | None = []  # seconds of the steps of the first batch of rollouts; None afterwards
        self.begun = False  # whether the size was printed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse validations, monitors and sizes that the run or its GPU has no room for, before weights are loaded."""
        if stage == "fit":
            check_validates(trainer)
            check_monitors(trainer, pl_module)
            check_fits(trainer, pl_module)
        elif isinstance(pl_module, EvaluationModule):
            check_evaluation(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: FunctionCallingModule) -> None:
        """Refuse a run without an end where the module's own optimizer has not: steps are counted down to it."""
        pl_module.total_steps()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: FunctionCallingModule) -> None:
        """Print the size before anything is waited for, and then what is."""
        self.begin(trainer, pl_module)
        held_out = getattr(trainer.datamodule, "val_indices", [0] * SANITY_ROWS)  # of other data nothing is known
        if trainer.is_global_zero and len(held_out):
            rows = min(SANITY_ROWS, len(held_out))
            print(f"validating {rows} rows before the first step, to see that it works", flush=True)

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
        check_fits(trainer, pl_module)  # the model may have turned out to be one that takes more
        if isinstance(trainer.logger, RunLogger):
            hidden = ("Loss",) if isinstance(pl_module, GRPOModule) else ROLLOUTS
            trainer.logger.begin(listed_settings(trainer, pl_module), hidden)

    def on_test_start(self, trainer: Trainer, pl_module: EvaluationModule) -> None:
        """Name the settings beside the scores."""
        if isinstance(trainer.logger, RunLogger):
            trainer.logger.begin(listed_settings(trainer, pl_module), LAYOUT)

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


def rate_of(trainer: Trainer, module: FunctionCallingModule) -> str:
    """The learning-rate schedule in words; of an optimizer of one's own its place."""
    if own := optimizer_of_ones_own(module):
        return f"as {own} has it"
    warmup = module.warmup_steps(trainer.estimated_stepping_batches)
    then = {"cosine": "falls as a cosine to 0", "constant": "stays"}[module.schedule]
    return f"{module.learning_rate:g} after {warmup:,} steps of warm-up, then it {then}"


def time_left(seconds: float, taken: int, remaining: int) -> str:
    """Estimated duration of a run by its first batch of rollouts, without validation, in words.

    Args:
        seconds: That it took, its updates included.
        taken: Its optimizer steps.
        remaining: Optimizer steps to come.
    """
    took = f"The first batch of rollouts took {seconds:,.1f} s, {seconds / taken:,.1f} s an optimizer step"
    if not remaining:
        return f"{took}."
    rest = timedelta(seconds=round(seconds / taken * remaining))
    return f"{took}; at that speed the {remaining:,} steps to come take {rest}, and validation comes on top."


def tokens_of_step(trainer: Trainer, module: FunctionCallingModule) -> dict[str, str]:
    """Tokens that an optimizer step learns from, over all ranks, as a row of the table."""
    data = trainer.datamodule
    lengths = data.lengths[data.train_indices]
    if isinstance(module, GRPOModule):
        count = data.hparams.prompts_per_step * module.sampling.group_size // module.mini_batches
        longest = int(lengths.max()) + module.generator.max_new_tokens
        return {"tokens": f"at most {count * longest:,} a step: {count:,} rollouts x {longest:,} with their prompts"}
    count = min(data.hparams.batch_size, len(lengths))
    return {"tokens": f"about {count * lengths.mean():,.0f} a step: {count:,} rows x {lengths.mean():,.0f} on average"}


def accuracy_table(metrics: dict[str, float]) -> str:
    """Rates by category as a text table, and below it the share of completions without an end, if there are any.

    Args:
        metrics: What `CallAccuracy.compute` returns.
    """
    lines = [f"{'':<18}" + "".join(f"{rate:>15}" for rate in RATES.values())]
    for label, prefix in [("all", "tool"), *((category, f"tool/{category}") for category in CATEGORIES)]:
        cells = [metrics.get(f"{prefix}/{rate}") for rate in RATES.values()]
        if None not in cells:
            lines.append(f"{label:<18}" + "".join(f"{cell:>15.3f}" for cell in cells))
    if cut := metrics.get("completion/truncated_frac"):
        lines.append(f"{cut:.1%} of the completions were cut at model.generator.max_new_tokens, before they ended")
    return "\n".join(lines)

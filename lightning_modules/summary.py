"""What is said at the start and end of a run: its size, the grouping of its TensorBoard panels, its figures."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from lightning_modules.base import FunctionCallingModule
from lightning_modules.grpo import GRPOModule
from lightning_modules.metrics import CATEGORIES, RATES
from lightning_modules.reference import PREFIX


def _panel(*tags: str) -> list[object]:
    return ["Multiline", [f"^{tag}$" for tag in tags]]


LAYOUT = {
    "Loss": {
        "loss": _panel("train/loss", "train/loss_cot", "train/loss_call"),
        "weights of the two segments": _panel("train/weight_cot", "train/weight_call"),
        "token accuracy": _panel("train/token_acc_cot", "train/token_acc_call"),
        "entropy": _panel("train/entropy_cot", "train/entropy_call"),
    },
    "Tool calls": {
        "how far the calls are right": _panel(*(f"tool/{rate}" for rate in RATES.values())),
        "exact match by category": _panel(*(f"tool/{category}/exact_match" for category in CATEGORIES)),
        "completions": _panel("completion/mean_length", "completion/truncated_frac"),
    },
    "Rollouts": {
        "mean reward": _panel("reward/mean"),
        "KL with the reference": _panel("policy/kl"),
        "groups whose rewards are all equal": _panel("reward/frac_zero_std"),
        "entropy": _panel("policy/entropy", "entropy_bonus/cot_entropy"),
        "length": _panel("completion/mean_length", "completion/min_length", "completion/max_length"),
    },
    "Entropy bonus": {
        "mean": _panel("entropy_bonus/mean", "entropy_bonus/raw_mean"),
        "share that the cap holds back": _panel("entropy_bonus/clipped_frac"),
        "share of the advantage": _panel("entropy_bonus/share_of_advantage"),
    },
    "Policy update": {
        "loss": _panel("policy/loss"),
        "clipped tokens": _panel("policy/clip_low", "policy/clip_high", "policy/clip_dual"),
        "ratio": _panel("policy/ratio_mean", "policy/ratio_max"),
        "importance ratio": _panel("sampling/is_ratio_raw_mean", "sampling/is_ratio_raw_max"),
    },
    "Optimizer": {"gradient norm": _panel("train/grad_norm"), "learning rate": _panel("train/lr")},
    "Speed": {
        "tokens per second": _panel("perf/tokens_per_s"),
        "samples per second": _panel("perf/samples_per_s"),
        "seconds per step": _panel("time/step", "time/generate", "time/update"),
        "supervised tokens per step": _panel("train/tokens_cot", "train/tokens_call"),
        "padding": _panel("perf/pad_frac"),
    },
}
"""Custom-scalar layout of TensorBoard: category -> chart -> tags."""
ROLLOUTS = ("Rollouts", "Entropy bonus", "Policy update")
EVERY_RUN = ("Tool calls", "Optimizer", "Speed")


class RunSummary(Callback):
    """Prints what a run is about to do and, after a test, how far the calls were right."""

    def on_train_start(self, trainer: Trainer, pl_module: FunctionCallingModule) -> None:
        """Print the size of the run, and group the panels."""
        named = [(name, p) for name, p in pl_module.named_parameters() if not name.startswith(PREFIX)]
        parameters = [(p.numel(), p.requires_grad) for _, p in named]
        total, trained = sum(n for n, _ in parameters), sum(n for n, grad in parameters if grad)
        rows = {
            "model": f"{pl_module.init_from}, {total:,} parameters, {trained:,} trained ({trained / total:.1%})",
            "steps": f"{trainer.estimated_stepping_batches:,} optimizer steps, from step {trainer.global_step:,}",
            "devices": f"{trainer.world_size} x {pl_module.device.type}, precision {trainer.precision}",
            "run folder": f"{trainer.log_dir}",
        } | pl_module.sizes()
        if trainer.is_global_zero:
            print("\n".join(f"  {name:<12}{value}" for name, value in rows.items()))
            if isinstance(trainer.logger, TensorBoardLogger):
                groups = ROLLOUTS if isinstance(pl_module, GRPOModule) else ("Loss",)
                shown = {k: v for k, v in LAYOUT.items() if k in (*groups, *EVERY_RUN)}
                trainer.logger.experiment.add_custom_scalars(shown)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table of a validation or test, but not of those in the middle of training."""
        counted = "tool/exact_match" in trainer.callback_metrics  # BFCL has a table of its own
        if trainer.is_global_zero and trainer.state.fn != TrainerFn.FITTING and counted:
            print(accuracy_table({name: float(value) for name, value in trainer.callback_metrics.items()}))

    on_test_end = on_validation_end


def accuracy_table(figures: dict[str, float]) -> str:
    """Rates by category as a text table.

    Args:
        figures: What `CallAccuracy.compute` returns.
    """
    lines = [f"{'':<18}" + "".join(f"{rate:>15}" for rate in RATES.values())]
    for label, prefix in [("all", "tool"), *((category, f"tool/{category}") for category in CATEGORIES)]:
        cells = [figures.get(f"{prefix}/{rate}") for rate in RATES.values()]
        if None not in cells:
            lines.append(f"{label:<18}" + "".join(f"{cell:>15.3f}" for cell in cells))
    return "\n".join(lines)

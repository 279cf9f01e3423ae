"""TensorBoard of a run: its charts, the two segments in colours of their own, and its settings.

TensorBoard colours a line by its run, never by its tag, and that in custom charts, too. What is to be told apart within
one chart therefore has to be a run: `cot` and `call`, folders within that of the run, hold the segments' curves under
the tags of the whole (`train/loss_cot` is `train/loss` there).
"""

import os
from collections.abc import Collection
from functools import cached_property
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from datamodules.system.redaction import redact
from lightning_modules.base import FunctionCallingModule
from lightning_modules.evaluation import EvaluationModule
from lightning_modules.grpo import GRPOModule
from lightning_modules.metrics import CATEGORIES, RATES
from lightning_modules.srml import SRMLModule

SEGMENTS = ("cot", "call")


def _panel(*tags: str) -> list[object]:
    return ["Multiline", [f"^{tag}$" for tag in tags]]


LAYOUT = {
    "Reward": {"mean reward": _panel("reward/mean", "reward/mean_first")},
    "Scores": {
        "exact match": _panel("tool/exact_match"),
        "how far the calls are right": _panel(*(f"tool/{rate}" for rate in RATES.values())),
        "exact match by category": _panel(*(f"tool/{category}/exact_match" for category in CATEGORIES)),
        "tokens of a completion": _panel("completion/mean_length"),
        "share of completions cut at the limit": _panel("completion/truncated_frac"),
    },
    "Loss": {
        "loss: all, CoT, call": _panel("train/loss"),
        "loss of the validation: all, CoT, call": _panel("val/loss"),
        "weights of the two segments": _panel("train/weight"),
        "token accuracy": _panel("train/token_acc"),
        "entropy": _panel("train/entropy"),
    },
    "Rollouts": {
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
        "supervised tokens per step": _panel("train/tokens"),
        "padding": _panel("perf/pad_frac"),
    },
}
"""Custom-scalar layout of TensorBoard: category -> chart -> tags."""
ROLLOUTS = ("Reward", "Rollouts", "Entropy bonus", "Policy update")
SETTINGS = {"method": "", "model": "", "data": "", "precision": "", "devices": 0, "steps": 0, "learning_rate": 0.0}
SETTINGS |= {"rows_per_step": 0, "lora_r": 0, "cot_weight": 0.0, "group_size": 0, "entropy_scale": 0.0, "kl_coef": 0.0}
"""The settings that TensorBoard lists, and their kinds; the whole is in `config.yaml`."""
METRICS = ("tool/exact_match", "reward/mean", "train/loss", "completion/mean_length")
"""What it lists beside them: the last value of each."""


class RunLogger(TensorBoardLogger):
    """TensorBoard logger of a run; metrics of a segment also go to a run of its own, under a common tag."""

    @cached_property
    def segments(self) -> dict[str, SummaryWriter]:
        """A writer for each segment, which makes its folder."""
        return {segment: SummaryWriter(os.path.join(self.log_dir, segment)) for segment in SEGMENTS}

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Write the values, and those of the segments to their runs."""
        super().log_metrics(metrics, step)
        for name, value in metrics.items():
            tag, _, segment = name.rpartition("_")
            if segment in SEGMENTS and tag.startswith(("train/", "val/")):
                self.segments[segment].add_scalar(tag, value, step)

    @rank_zero_only
    def begin(self, settings: dict[str, Any], hidden: Collection[str]) -> None:
        """Group the charts, and write the settings, which TensorBoard lists beside the last value of `METRICS`.

        Args:
            settings: Values by their names in `SETTINGS`.
            hidden: Categories of `LAYOUT` that the run has nothing for.
        """
        if layout := {name: charts for name, charts in LAYOUT.items() if name not in hidden}:
            self.experiment.add_custom_scalars(layout)
        # TensorBoard takes the columns of one run for those of all, so that every run has to name the same ones.
        columns, *_ = hparams(SETTINGS, dict.fromkeys(METRICS, 0.0))
        _, values, _ = hparams(settings, {})
        for summary in (columns, values):
            self.experiment.file_writer.add_summary(summary)

    @rank_zero_only
    def save(self) -> None:
        """Write what is buffered."""
        super().save()
        for writer in self.__dict__.get("segments", {}).values():
            writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Note that the run has ended well, if it has, and close the files."""
        if status == "success" and self._experiment is not None:
            *_, ended = hparams({}, {})
            self.experiment.file_writer.add_summary(ended)
        super().finalize(status)
        for writer in self.__dict__.pop("segments", {}).values():
            writer.close()


def listed_settings(trainer: Trainer, module: EvaluationModule) -> dict[str, Any]:
    """The settings of a run by their names in `SETTINGS`; of a test those of model and data alone."""
    data = getattr(trainer.datamodule, "hparams", {})
    found = {"method": module.method, "model": redact(module.init_from), "data": redact(str(data.get("path", "")))}
    found |= {"precision": str(trainer.precision), "devices": trainer.world_size}
    if isinstance(module, FunctionCallingModule) and trainer.state.fn == TrainerFn.FITTING:  # also in the sanity check
        rows = data.get("batch_size", data.get("prompts_per_step"))
        found |= {"steps": int(trainer.estimated_stepping_batches), "learning_rate": module.learning_rate}
        found |= {"rows_per_step": rows, "lora_r": module.lora.r if module.lora else 0}
        if isinstance(module, SRMLModule) and module.balance != "sft":  # which has no use for it
            found |= {"cot_weight": module.cot_weight}
        if isinstance(module, GRPOModule):
            found |= {"group_size": module.sampling.group_size, "kl_coef": module.loss.kl_coef}
            found |= {"entropy_scale": module.entropy_bonus.scale}
    return {name: value for name, value in found.items() if value is not None}

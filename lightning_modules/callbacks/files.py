"""Files in the folder of a run besides events, checkpoints and samples: metrics, rollouts, weights."""

import csv
import os
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules.system.files import append_jsonl
from lightning_modules.base import FunctionCallingModule
from lightning_modules.callbacks.progress import say
from lightning_modules.checkpointing.export import export_hf, rehearse_export
from lightning_modules.evaluation import EvaluationModule
from lightning_modules.ranks import of_every_rank


class MetricsCSV(Callback):
    """Appends every logged metric to `metrics.csv` as step, name, value, so that nothing depends on TensorBoard."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the file."""
        self.path = Path(trainer.log_dir or ".") / "metrics.csv"  # `log_dir` is a collective: every rank asks

    def on_train_batch_end(self, trainer: Trainer, pl_module: EvaluationModule, *args: Any) -> None:
        """Write the metrics of a training step, as often as Lightning logs them."""
        if trainer.global_step % max(1, trainer.log_every_n_steps) == 0:
            self._append(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: EvaluationModule) -> None:
        """Write the metrics of a validation or test."""
        if not trainer.sanity_checking:
            self._append(trainer, pl_module)

    on_test_end = on_validation_end

    def _append(self, trainer: Trainer, pl_module: EvaluationModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow(["step", "name", "value"])
            writer.writerows([trainer.global_step, name, float(v)] for name, v in pl_module.logged.items())


class RolloutWriter(Callback):
    """Writes the rollouts of `funreason predict` to `rollouts.jsonl`, those of all ranks in the order of the rows.

    The file grows under the name `….part` and takes its own when prediction is over.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the file."""
        self.path = Path(trainer.log_dir) / "rollouts.jsonl"  # `log_dir` is a collective: every rank asks
        self.part = self.path.with_suffix(".jsonl.part")
        self.cut = 0
        if trainer.is_global_zero:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self.part.write_text("", encoding="utf-8")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: list[dict[str, Any]], *args: Any, **kwargs: Any
    ) -> None:
        """Append the batch of all ranks, to which its rows were dealt one by one.

        Raises:
            SIGTERMException: A rank has received SIGTERM; Lightning looks for it in validation and test alone.
        """
        ranks = of_every_rank(outputs)
        self.cut += sum(row["finish_reason"] == "length" for dealt in ranks for row in dealt)
        if trainer.is_global_zero:
            append_jsonl(self.part, (row for dealt in zip_longest(*ranks) for row in dealt if row is not None))
        terminated = trainer.strategy.reduce_boolean_decision(trainer.received_sigterm, all=False)
        if terminated and not trainer.predict_loop.batch_progress.is_last_batch:
            raise SIGTERMException

    def on_predict_end(self, trainer: Trainer, pl_module: EvaluationModule) -> None:
        """Give the file its name, and say how many completions did not end."""
        if trainer.is_global_zero:
            os.replace(self.part, self.path)
            limit = f"model.generator.max_new_tokens {pl_module.generator.max_new_tokens:,}"
            print(f"Rollouts: {self.path}" + (f"; {self.cut:,} of them were cut at {limit}" if self.cut else ""))


class ExportHF(Callback):
    """Writes weights, tokenizer and chat template of a finished run to `hf/`, where `from_pretrained` loads them.

    What would fail there is tried before the model loads, so that nothing is trained that cannot be exported.
    """

    def setup(self, trainer: Trainer, pl_module: FunctionCallingModule, stage: str) -> None:
        """Rehearse the export, on every rank, so that all refuse together what cannot be exported."""
        folder = Path(trainer.log_dir or ".")  # `log_dir` is a collective: every rank asks
        if stage == "fit" and not trainer.fast_dev_run:
            rehearse_export(
                pl_module.init_from,
                pl_module.lora,
                folder if trainer.is_global_zero else None,
                pl_module.load_tokenizer(),
                pl_module.form,
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export once training has ended by itself."""
        log_dir = trainer.log_dir  # a collective: every rank asks
        if trainer.fast_dev_run:
            return
        folder = Path(log_dir or ".") / "hf"
        export_hf(pl_module.policy, pl_module.tokenizer, folder, trainer.is_global_zero, pl_module.form)
        if trainer.is_global_zero:
            say(f"Exported model: {folder}")

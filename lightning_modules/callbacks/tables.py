"""Rollouts of training, shown: text in TensorBoard, `train_samples.jsonl`, a histogram of their advantages."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from datamodules.system.files import append_jsonl
from lightning_modules.callbacks.board import sample_block
from lightning_modules.grpo import GRPOModule
from lightning_modules.rollout.rollout import Rollout


class RolloutTable(Callback):
    """Shows a group of the training's rollouts in TensorBoard, and appends it to `train_samples.jsonl`.

    Args:
        every_n_steps: Optimizer steps between two tables, or as soon afterwards as something is sampled.
        rows: Rollouts per table; 0 shows none.
        max_chars: Longest text of a part in TensorBoard; the file holds the whole text.
    """

    def __init__(self, every_n_steps: int = 10, rows: int = 8, max_chars: int = 600) -> None:
        self.every_n_steps = every_n_steps
        self.rows = rows
        self.max_chars = max_chars
        self.shown = 0  # step of the last table

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Write what this step has sampled; the histogram every time, the table now and then."""
        log_dir = trainer.log_dir  # a collective: every rank asks
        if not isinstance(pl_module, GRPOModule) or not pl_module.rollouts or trainer.fast_dev_run:
            return
        if not trainer.is_global_zero:
            return
        step, rollouts, advantages = trainer.global_step, pl_module.rollouts, pl_module.rollout_advantages
        board = trainer.logger.experiment if isinstance(trainer.logger, TensorBoardLogger) else None
        if board:
            board.add_histogram("advantage/histogram", advantages, step)
        if (self.shown and step < self.shown + self.every_n_steps) or not self.rows:
            return
        self.shown = step
        pairs = list(zip(rollouts, advantages.tolist(), strict=True))[: self.rows]
        rows = [
            {"step": step, "scores": r.scores, "errors": r.errors, "reward": r.total, "advantage": a} | r.as_row()
            for r, a in pairs
        ]
        append_jsonl(Path(log_dir) / "train_samples.jsonl", rows)
        if board:
            board.add_text("samples/train", "\n\n".join(scored(*pair, self.max_chars) for pair in pairs), step)

    def state_dict(self) -> dict[str, Any]:
        """The step of the last table."""
        return {"shown": self.shown}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the intervals of the run before."""
        self.shown = state_dict["shown"]


def scored(rollout: Rollout, advantage: float, max_chars: int) -> str:
    """One rollout of training as Markdown: the completion, its rewards and its advantage."""
    scores = ", ".join(f"{k} {'failed' if v is None else format(v, 'g')}" for k, v in rollout.scores.items())
    reward = f"{rollout.total:g}" if rollout.rewarded else "failed"
    return sample_block(rollout, max_chars, f", reward {reward} ({scores}), advantage {advantage:.3f}")

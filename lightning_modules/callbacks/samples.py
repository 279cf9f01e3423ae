"""Completions shown: text in TensorBoard, with what is wrong with each; whole in `(train_)samples.jsonl`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from datamodules.system.arguments import declared
from datamodules.system.escaping import markdown_text
from datamodules.system.files import append_jsonl
from lightning_modules.grpo import GRPOModule
from lightning_modules.rollout.rollout import Rollout
from rewards import differences, render_calls


@declared
class SampleTable(Callback):
    """Shows the first completions of every validation and test in TensorBoard, and appends them to `samples.jsonl`.

    Args:
        rows: Completions per validation; 0 shows none.
        max_chars: Longest text of a part in TensorBoard; `samples.jsonl` holds the whole text.
    """

    def __init__(self, rows: int = 8, max_chars: int = 600) -> None:
        self.rows = rows
        self.max_chars = max_chars
        self.samples: list[Rollout] = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: list[Rollout], *args: Any, **kwargs: Any
    ) -> None:
        """Collect rollouts until there are enough of them."""
        self.samples += outputs[: self.rows - len(self.samples)]

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rollouts that were collected."""
        samples, self.samples = self.samples, []
        log_dir = trainer.log_dir  # a collective: every rank asks
        if not samples or not trainer.is_global_zero or trainer.sanity_checking or trainer.fast_dev_run:
            return
        step = trainer.global_step
        append_jsonl(Path(log_dir) / "samples.jsonl", [{"step": step} | s.as_row() for s in samples])
        if isinstance(trainer.logger, TensorBoardLogger):
            stage = "test" if trainer.testing else "val"
            blocks = "\n\n".join(sample_block(sample, self.max_chars) for sample in samples)
            trainer.logger.experiment.add_text(f"samples/{stage}", blocks, step)

    on_test_end = on_validation_end


@declared
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


def sample_block(rollout: Rollout, max_chars: int, remarks: str = "") -> str:
    """One completion as Markdown without HTML, in lines that wrap; nothing in its text acts as Markdown.

    Args:
        rollout: The completion, and what it was asked.
        max_chars: Longest text of each part; a longer one is cut and ends in an ellipsis.
        remarks: What else the heading is to say.

    Returns:
        A heading with ✓ or ✗, what is wrong, and the parts as quotations.
    """
    example, right = rollout.example, bool(rollout.result.parts["exact_match"])
    cot, closing, call = rollout.text.partition("</think>")
    heading = f"{'✓' if right else '✗'} {markdown_text(example.id, 80)}: score {rollout.result.score:g}{remarks}"
    parts = {
        "Query": example.query,
        **({"Chain of thought": cot + closing, "Call": call.strip()} if closing else {"Completion": rollout.text}),
        "Reference": reference_text(example.answers),
    }
    lines = [f"### {heading}"]
    if not right:
        lines.append(f"**Wrong:** {markdown_text('; '.join(what_is_wrong(rollout)), max_chars)}")
    for title, text in parts.items():
        if text:
            lines += [f"**{title}**", quotation(text, max_chars)]
    return "\n\n".join(lines)


def what_is_wrong(rollout: Rollout) -> Sequence[str]:
    """The error in a completion: why it cannot be parsed, or where its calls differ from the reference."""
    if rollout.finish_reason == "length":
        return ["cut at the length limit"]
    if rollout.parsed.calls is None:
        return [rollout.parsed.error or "no calls can be read"]
    found = differences(rollout.parsed.calls, rollout.example.answers, rollout.example.tools)
    return found or ["the reward says so"]


def reference_text(answers: str) -> str:
    """Reference calls as the model would write them; as they are where they cannot be read."""
    try:
        return render_calls(answers)
    except ValueError:
        return answers


def quotation(text: str, max_chars: int) -> str:
    """A text as a Markdown quotation, line by line as it is.

    Args:
        text: Any text.
        max_chars: A longer text is cut and ends in an ellipsis.
    """
    # TensorBoard keeps line feeds within a paragraph, so that two spaces before them would make them two.
    lines = markdown_text(text.replace("\r\n", "\n"), max_chars).split("\n")
    return "\n".join(f"> {_literal(line)}" for line in lines)


def _literal(line: str) -> str:
    """A line that begins no list, heading or block of code; what ends in spaces breaks no line."""
    bare = line.strip(" \t")
    indent = "&nbsp;" * len(line[: len(line) - len(line.lstrip(" \t"))].expandtabs(4))
    bare = re.sub(r"^[-+=]", lambda found: f"&#{ord(found[0])};", bare)
    return indent + re.sub(r"^(\d+)\.", r"\1&#46;", bare) or "&nbsp;"

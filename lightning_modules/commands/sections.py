"""Sections of the report of `funreason show`: a histogram, a row by segment, scores of answers, demo values."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from datamodules.packing import CALL, COT, PROMPT, Encoded
from datamodules.readers import is_toolbox
from lightning_modules.commands.answers import ScoredAnswer
from lightning_modules.commands.page import Line, Span, plain

BINS, WIDTH = 10, 40  # of a histogram: how many at most, and characters of its longest bar
SHOWN, THOUGHT = 160, 30  # characters of an answer that was altered, and of a chain of thought in it
SEGMENTS = {PROMPT: ("prompt", "prompt"), COT: ("chain of thought", "cot"), CALL: ("call", "call")}
SMALL = 10_000_000  # parameters; the demo's models have fewer
TINY = "tiny-base"
ANOTHER_MODEL = {"model.learning_rate": (2e-3, 1e-4), "model.epsilon": (1e-4,)}
OTHER_ROWS = {
    "model.sampling.temperature": (1.0, "is what the demo samples at; EGPO and the default have 0.7"),
    "trainer.max_steps": (20, "ends the run as early as the demo; trainer.max_epochs goes by the rows"),
}
"""Values of `configs/srml.yaml` and `configs/grpo.yaml` that no other model or rows should have by accident."""


def table(rows: Mapping[str, str]) -> list[Line]:
    """Lines of a table of names and values."""
    width = max(map(len, rows), default=0) + 2
    return [(Span(f"{name:<{width}}", "bad" if name.isupper() else "title"), Span(text)) for name, text in rows.items()]


def histogram(lengths: np.ndarray, limit: int, key: str) -> list[Line]:
    """Lines of a histogram of the lengths of rows, and the number of those longer than the limit.

    Args:
        lengths: Tokens of each row, [rows].
        limit: The most that is trained on.
        key: Of the limit.
    """
    inside, longer = lengths[lengths <= limit], int((lengths > limit).sum())
    bars = [(f"{low:,} to {high:,}", count, "") for low, high, count in ranges(inside, BINS)]
    bars += [(f"over {limit:,}", longer, "bad")] if longer else []
    most, width = max(count for _, count, _ in bars), max(len(name) for name, *_ in bars)
    lines: list[Line] = [plain("tokens of a row, and rows")]
    for name, count, kind in bars:
        bar = "█" * -(-WIDTH * count // most)
        lines.append((Span(f"{name:>{width}}  "), Span(bar, kind), Span(f"{' ' if bar else ''}{count:,}")))
    said = f"{longer:,} rows are longer and not trained on" if longer else "no row is longer"
    lines.append(plain(f"{key} is {limit:,}: {said}; the longest has {int(lengths.max()):,}", "bad" if longer else ""))
    return lines


def ranges(values: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """Ranges of equal width over values, at round numbers.

    Args:
        values: Whole numbers from 0 up, [n].
        most: Ranges at most.

    Returns:
        Least and greatest value of each range, and how many values lie in it.
    """
    if not len(values):
        return []
    low, high = int(values.min()), int(values.max())
    widths = (factor * 10**power for power in range(19) for factor in (1, 2, 5))
    width = next(width for width in widths if high // width - low // width < most)
    counts = np.bincount(values // width - low // width)
    starts = range(low // width * width, high + 1, width)
    return [(start, start + width - 1, int(count)) for start, count in zip(starts, counts, strict=True)]


def decoded(tokenizer: PreTrainedTokenizerFast, document: Encoded) -> list[Line]:
    """The tokens of a row as text, segment by segment, special tokens and all.

    Args:
        tokenizer: The model's.
        document: The row.
    """
    lines: list[Line] = []
    for segment, (title, kind) in SEGMENTS.items():
        places = [i for i, of in enumerate(document.segments) if of == segment]
        lines.append(plain(f"{title}, {len(places):,} tokens", "title"))
        if places:
            lines.append(plain(tokenizer.decode(document.input_ids[places[0] : places[-1] + 1]), kind))
    return lines


def answer_lines(answers: Sequence[ScoredAnswer], totals: Sequence[float | None] | None = None) -> list[Line]:
    """Lines on each answer: its score, the part of the reward that it fails, and its text.

    Args:
        answers: The row's own answer first.
        totals: Weighted sum of each under `model.rewards`, None where one of them fails; None where those are no
            others than the reward.
    """
    lines: list[Line] = []
    for i, answer in enumerate(answers):
        note = f"{answer.name}: fails {answer.fails}" if answer.fails else answer.name
        if totals is not None:
            note += f"; model.rewards pay {'nothing, for one of them fails' if totals[i] is None else f'{totals[i]:g}'}"
        lines.append((Span(f"{answer.result.score:g}", "bad" if answer.fails else "good"), Span(f"  {note}")))
        lines.append(plain(f"   {shortened(answer.text)}", "faint"))
    return lines


def shortened(text: str) -> str:
    """A completion in one line, without the chain of thought and the middle of those that are long."""
    thought, tag, answer = text.rpartition("</think>")
    line = " ".join(f"{thought if len(thought) < THOUGHT else '<think>…'}{tag} {answer}".split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN // 2]} … {line[-SHOWN // 2 :]}"


def demo_values(settings: Mapping[str, Any], parameters: int) -> dict[str, str]:
    """Settings that are still those of the demo, each with what is wrong with that for rows or a model of one's own.

    Args:
        settings: Values by their keys.
        parameters: Of the model.
    """
    path, val_path = (is_toolbox(str(settings[key])) for key in ("data.path", "data.val_path"))
    found = {}
    if path:
        found["data.path"] = "is the shipped corpus: give rows of your own"
    elif val_path:
        found["data.val_path"] = "is the shipped corpus: set it to null, and a part of data.path is held out"
    if not path and str(settings["model.init_from"]).rstrip("/").endswith(TINY):
        found["model.init_from"] = "knows the words of the shipped corpus alone: give a model of your own"
    for key, values in ANOTHER_MODEL.items():
        if parameters > SMALL and settings[key] in values:
            found[key] = "is tuned to the tiny base model: take that of configs/finetune.yaml or configs/rl.yaml"
    for key, (value, why) in OTHER_ROWS.items():
        if not path and settings.get(key) == value:
            found[key] = why
    return {key: f"{settings[key]} {why}" for key, why in found.items()}

"""Rows to open in the page of `funreason play`: rows of any data, or of a run's `samples.jsonl`."""

import json
from dataclasses import dataclass
from itertools import islice
from typing import Any

from datamodules.example import BadRow, Example
from datamodules.readers import read_rows
from datamodules.rows import read_raw
from rewards import as_calls, write_calls

MOST = 500  # rows of a source on offer
RECORDED = ("step", "completion", "score", "reward", "advantage")


@dataclass(frozen=True)
class OpenedRow:
    """A row of a source.

    Attributes:
        number: Its row, or line.
        example: It in the common form; `answers` is "" where it has none.
        recorded: What a run has written beside it: step, completion, score, …
    """

    number: int
    example: Example
    recorded: dict[str, Any]


def open_rows(path: str, most: int = MOST) -> tuple[list[OpenedRow], int]:
    """Read the first rows of a source.

    Args:
        path: Rows in any form that `read_rows` takes, `samples.jsonl` of a run among them, where a row comes again
            at every validation.
        most: Rows to read.

    Returns:
        The rows that can be used, and how many cannot.

    Raises:
        FileNotFoundError: There is nothing of that name.
        ValueError: The source cannot be read, or none of these rows can be used.
    """
    opened: list[OpenedRow] = []
    bad, first = 0, ""
    for number, raw in islice(read_rows(path), most):
        try:
            row = json.loads(raw) if isinstance(raw, str) else raw
            recorded = {name: row[name] for name in RECORDED if name in row} if "finish_reason" in row else {}
            examples = read_raw(row, unanswered=True).examples
        except (BadRow, ValueError, TypeError) as error:
            bad, first = bad + 1, first or f"row {number}: {error}"
            continue
        opened += [OpenedRow(number, example, recorded) for example in examples]
    if not opened:
        raise ValueError(f"{path}: none of the first {bad} rows can be used; {first}")
    return opened, bad


def reference_of(example: Example) -> str:
    """The right calls of a row as they are edited: as Python writes them, "" where the row has none."""
    return write_calls(as_calls(example.answers)) if example.answers else ""


def indented(text: str) -> str:
    """JSON with a line for each key, for a text area."""
    return json.dumps(json.loads(text), ensure_ascii=False, indent=2)

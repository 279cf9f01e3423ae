"""Reading and writing files of rows in xLAM's schema."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TextIO

from datamodules.example import BadRow, Example
from datamodules.readers import place_of_row, read_rows
from datamodules.rows import parse_row, read_raw
from datamodules.sources.columns import name_in
from datamodules.sources.targets import Turns
from datamodules.system.files import atomic_write
from datamodules.system.sentences import sentence

OnBadRow = Literal["raise", "skip"]


def read_examples(path: str | Path, on_bad_row: OnBadRow = "raise") -> tuple[list[Example], list[dict[str, Any]]]:
    """Read and check the rows of a source.

    Args:
        path: See `readers.read_rows`.
        on_bad_row: `raise` stops at the first bad row; `skip` leaves it out and reports it.

    Returns:
        The examples, and for each row left out its `file`, `row`, `column`, `reason` and `content`.

    Raises:
        FileNotFoundError: There is nothing of that name.
        ValueError: The source cannot be read or holds no good row; with `raise`, also the first bad row.
    """
    if on_bad_row not in ("raise", "skip"):
        raise ValueError(f"on_bad_row must be 'raise' or 'skip', not {on_bad_row!r}")
    examples: list[Example] = []
    bad: list[dict[str, Any]] = []
    for number, outcome, raw in check_rows(read_rows(str(path))):
        if isinstance(outcome, Example):
            examples.append(outcome)
        else:
            bad.append(bad_row(path, number, outcome, raw))
            raise_if_bad(bad, on_bad_row)
    if not examples:
        raise ValueError(f"none of the {len(bad)} rows of {path} can be used; the first: {complaint(bad[0])}")
    return examples, bad


def check_rows(
    rows: Iterable[tuple[int, Any]],
    turns: Turns = "last",
    counts: Counter[str] | None = None,
    unanswered: bool = False,
) -> Iterator[tuple[int, Example | BadRow, Any]]:
    """Yield for each row its number, its example or what is wrong with it, and the row as it was read.

    Args:
        rows: Numbers and rows.
        turns: Which turns of a chat become examples: the `last` that answers a user, or `every`, one after the other.
        counts: Is added what the good rows were read as; see `reports.describe`.
        unanswered: Take rows without an answer, too.
    """
    seen: dict[str, int] = {}
    for number, raw in rows:
        try:
            reading = read_raw(raw, turns, unanswered)
            examples = [_with_id(example, number, seen) for example in reading.examples]
            if repeated := next((example.id for example in examples if example.id in seen), ""):
                first = f"{repeated!r} is already the id of row {seen[repeated]}"
                raise BadRow("id", f"{first} (rows without an id get one, made from what they say)")
        except BadRow as error:
            yield number, error, raw
            continue
        if counts is not None:
            counts.update(reading.notes)
        for example in examples:
            seen[example.id] = number
            yield number, example, raw


def _with_id(example: Example, number: int, seen: Mapping[str, int]) -> Example:
    """The example with an id; one made from its content does not move with the order of the rows."""
    if example.id:
        return example
    content = blake2b("\0".join(asdict(example).values()).encode(), digest_size=12).hexdigest()
    return replace(example, id=content if content not in seen else f"{content}-{number}")


def bad_row(path: str | Path, number: int, error: BadRow, raw: Any) -> dict[str, Any]:
    """One line of `bad_rows.jsonl`; the column is named as the row names it."""
    try:
        column = name_in(parse_row(raw), error.column)
    except BadRow:  # it is no row
        column = error.column
    return {"file": str(path), "row": number, "column": column, "reason": error.reason, "content": raw}


def raise_if_bad(bad: Iterable[dict[str, Any]], on_bad_row: OnBadRow) -> None:
    """Stop at the first of the bad rows met so far, unless they are to be skipped.

    Raises:
        ValueError: See `complaint`.
    """
    if on_bad_row == "raise":
        for row in bad:
            raise ValueError(complaint(row))


def complaint(bad: Mapping[str, Any]) -> str:
    """The error message of a bad row that stops the run."""
    advice = "correct the row, or leave such rows out with on_bad_row: skip"
    return f"{place_of_row(bad['file'], bad['row'])}{_reason(bad)}; {advice}"


def left_out(bad: Mapping[str, Any]) -> str:
    """What a report says of a bad row that is left out; of a folder's its number there, for nothing is read again."""
    return sentence(f"{bad['file']}, row {bad['row']}{_reason(bad)}")


def _reason(bad: Mapping[str, Any]) -> str:
    column = f", column '{bad['column']}'" if bad["column"] else ""
    return f"{column}: {bad['reason']}"


def write_jsonl(path: str | Path, rows: Iterable[Example | Mapping[str, Any]]) -> None:
    """Write rows as JSON lines; an interruption leaves the file that was there.

    Args:
        path: The file; its folder is made.
        rows: Examples or plain dicts.
    """
    with atomic_write(path) as unfinished, open_jsonl(unfinished) as file:
        for row in rows:
            write_row(file, asdict(row) if isinstance(row, Example) else row)


def open_jsonl(path: Path) -> TextIO:
    """Open a file of JSON lines to write; half a pair of surrogates is written as JSON escapes it."""
    return path.open("w", encoding="utf-8", errors="backslashreplace")


def write_row(file: TextIO, row: Mapping[str, Any]) -> None:
    """Write one line; what JSON has no form for, as a date of a Parquet column, as Python prints it."""
    file.write(json.dumps(dict(row), ensure_ascii=False, default=str) + "\n")

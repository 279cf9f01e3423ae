"""Reading and writing files of rows in xLAM's schema."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from datamodules.readers import BadRow, read_rows
from datamodules.rows import Example, to_example

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
            settle(bad, on_bad_row)
    if not examples:
        raise ValueError(f"none of the {len(bad)} rows of {path} can be used; the first: {complaint(bad[0])}")
    return examples, bad


def check_rows(rows: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Example | BadRow, Any]]:
    """Yield for each row its number, the example or what is wrong with it, and the row as it was read."""
    seen: dict[str, int] = {}
    for number, raw in rows:
        try:
            example = to_example(raw)
            if not example.id:  # made from the content, so that it does not move with the order of the rows
                content = blake2b("\0".join(asdict(example).values()).encode(), digest_size=12).hexdigest()
                example = replace(example, id=content if content not in seen else f"{content}-{number}")
            if example.id in seen:
                raise BadRow("id", f"{example.id!r} is already the id of row {seen[example.id]}")
            seen[example.id] = number
            yield number, example, raw
        except BadRow as error:
            yield number, error, raw


def bad_row(path: str | Path, number: int, error: BadRow, raw: Any) -> dict[str, Any]:
    """One line of `bad_rows.jsonl`."""
    return {"file": str(path), "row": number, "column": error.column, "reason": error.reason, "content": raw}


def settle(bad: list[dict[str, Any]], on_bad_row: OnBadRow) -> None:
    """Stop at the first of the bad rows met so far, unless they are to be skipped."""
    if on_bad_row == "raise" and bad:
        raise ValueError(complaint(bad[0]))


def complaint(bad: Mapping[str, Any]) -> str:
    """The one sentence a bad row stops the run with."""
    column = f", column '{bad['column']}'" if bad["column"] else ""
    advice = "correct the row, or leave such rows out with on_bad_row: skip"
    return f"{bad['file']}, row {bad['row']}{column}: {bad['reason']}; {advice}"


def write_jsonl(path: str | Path, rows: Iterable[Example | Mapping[str, Any]]) -> None:
    """Write rows as JSON lines; an interruption leaves the file that was there.

    Args:
        path: The file; its folder is made.
        rows: Examples or plain dicts.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(
                    json.dumps(asdict(row) if isinstance(row, Example) else dict(row), ensure_ascii=False) + "\n"
                )
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)

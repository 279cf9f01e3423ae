"""`funreason data`: converts rows of any form to the project's schema or chat rows, and reports what was read."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.example import BadRow
from datamodules.readers import files_left_out, read_rows
from datamodules.reports import count_example, describe
from datamodules.sources.openai import openai_row
from datamodules.sources.targets import Turns
from datamodules.system.command_line import SentenceParser
from datamodules.system.escaping import visible
from datamodules.system.files import atomic_write, check_file, remove
from datamodules.system.locks import sole_writer
from datamodules.xlam import OnBadRow, bad_row, check_rows, complaint, open_jsonl, raise_if_bad, write_jsonl, write_row

CHUNK = 1000  # rows of a row group


@dataclass
class LeftOut:
    """Bad rows, written to a file as they come, unless the first is to stop the command.

    Attributes:
        file: The file.
        on_bad_row: See `convert`.
        count: How many there are.
        first: What is wrong with the first; empty where there is none.
    """

    file: TextIO
    on_bad_row: OnBadRow
    count: int = 0
    first: str = ""

    def add(self, row: dict[str, Any]) -> None:
        """Write one, as `xlam.bad_row` gives it.

        Raises:
            ValueError: See `raise_if_bad`.
        """
        raise_if_bad([row], self.on_bad_row)
        write_row(self.file, row)
        self.first = self.first or complaint(row)
        self.count += 1


def convert(
    path: str,
    out: str,
    form: Literal["xlam", "openai"] = "xlam",
    turns: Turns = "last",
    on_bad_row: OnBadRow = "raise",
) -> str:
    """Read a source, and write its rows to a file.

    Args:
        path: The rows, in any form: a file, a folder, a saved data set or a hub id; see `readers.read_rows`.
        out: The file to write, `.jsonl` or `.parquet`.
        form: Rows of the project's own schema (`xlam`), or chat rows with `messages` and `tools` (`openai`).
        turns: Which turns of a chat become rows: the `last` that answers a user, or `every` one that answers a user or
            a tool.
        on_bad_row: `raise` stops at the first bad row; `skip` leaves it out and writes it to a file beside `out`.

    Returns:
        What was read and written, in words.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: The source cannot be read, holds no good row or is the file that bad rows go to; with `raise`, also
            the first bad row.
        BlockingIOError: Another run is writing `out`.
    """
    if not path:
        raise ValueError("--path is empty: give the rows, as a file, a folder, a saved data set or a hub id")
    file, counts = file_to_write(out), Counter[str]()
    # Rows of two formats may be written to one folder under one name.
    beside = file.with_name(f"{file.stem if file.suffix == '.jsonl' else file.name}.bad_rows.jsonl")
    if os.path.realpath(os.path.expanduser(path)) == os.path.realpath(beside):
        raise ValueError(f"--path {path} is the file that the bad rows of --out {out} replace: rename one of them")
    write = write_jsonl if file.suffix == ".jsonl" else write_parquet
    try:
        with sole_writer(file):
            with atomic_write(beside) as unfinished, open_jsonl(unfinished) as bad_file:
                bad = LeftOut(bad_file, on_bad_row)
                write(file, good_rows(path, form, turns, counts, bad))
            if not bad.count:
                remove(beside)  # which is empty; here, for another run may write its own next
    except OSError as error:
        if not error.strerror:  # not the system's: nothing at `path`, or another run writes to `out`
            raise
        raise ValueError(f"--out {out} cannot be written: {error.strerror}") from error
    lines = [f"{path}: {counts['written']:,} rows written to {file}, {bad.count:,} bad rows left out"]
    lines += [f"  {line}" for line in (*describe(counts), files_left_out(path)) if line]
    if bad.count:
        lines.append(f"  the bad rows are in {beside}; the first: {bad.first}")
    return "\n".join(lines)


def good_rows(
    path: str, form: Literal["xlam", "openai"], turns: Turns, counts: Counter[str], bad: LeftOut
) -> Iterator[dict[str, Any]]:
    """Yield the good rows of a source as they are to be written.

    Args:
        path: See `convert`, as for the next two.
        form: Form of the rows yielded.
        turns: Which turns of a chat become rows.
        counts: Is added what the rows were read as, and how many are `written`.
        bad: Is added the bad rows.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        ValueError: The source cannot be read or holds no good row; also see `LeftOut.add`.
    """
    for number, outcome, raw in check_rows(read_rows(path), turns, counts):
        if isinstance(outcome, BadRow):
            bad.add(bad_row(path, number, outcome, raw))
            continue
        count_example(outcome, counts)
        counts["written"] += 1
        yield openai_row(outcome) if form == "openai" else asdict(outcome)
    if not counts["written"]:
        raise ValueError(f"none of the {bad.count} rows of {path} can be used; the first: {bad.first}")


def file_to_write(out: str) -> Path:
    """The file that `--out` names, in a folder that is there.

    Raises:
        ValueError: It is no file, of another kind, or cannot be written.
    """
    if "\0" in out:
        raise ValueError(f"--out {out!r} is no name of a file")
    if Path(out).suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"--out {out}: rows are written to .jsonl and .parquet files")
    file = check_file("--out", out)
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as Parquet, in columns of text; an interruption leaves the file that was there."""
    writer: pq.ParquetWriter | None = None
    with atomic_write(path) as unfinished, ExitStack() as stack:
        for chunk in _chunks(rows):
            table = pa.table({name: [row[name] for row in chunk] for name in chunk[0]})
            writer = writer or stack.enter_context(pq.ParquetWriter(unfinished, table.schema))
            writer.write_table(table)


def _chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, str]]]:
    chunk: list[dict[str, str]] = []
    for row in rows:
        chunk.append({k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in row.items()})
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def main(args: list[str] | None = None) -> None:
    """Run `funreason data`."""
    parser = SentenceParser(prog="funreason data", description="Any rows to the project's schema, with a report.")
    parser.add_function_arguments(convert)
    print(visible(convert(**parser.parse_args(args).as_dict())))

"""`funreason data`: converts rows of any form to the project's schema or chat rows, and reports what was read."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.example import BadRow
from datamodules.readers import read_rows
from datamodules.reports import count_example, describe
from datamodules.sources.openai import openai_row
from datamodules.sources.targets import Turns
from datamodules.system.command_line import SentenceParser
from datamodules.system.escaping import visible
from datamodules.system.files import atomic_write, check_writable, remove
from datamodules.system.locks import sole_writer
from datamodules.xlam import OnBadRow, bad_row, check_rows, complaint, open_jsonl, raise_if_bad, write_jsonl, write_row

CHUNK = 1000  # rows of a row group


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
        ValueError: The source cannot be read or holds no good row; with `raise`, also the first bad row.
        BlockingIOError: Another run is writing `out`.
    """
    if not path:
        raise ValueError("--path is empty: give the rows, as a file, a folder, a saved data set or a hub id")
    file = file_to_write(out)
    counts: Counter[str] = Counter()
    beside = file.with_name(f"{file.stem}.bad_rows.jsonl")
    first, bad, written = "", 0, 0

    def rows() -> Iterator[dict[str, str]]:
        nonlocal first, bad, written
        bad_file = None
        for number, outcome, raw in check_rows(read_rows(path), turns, counts):
            if isinstance(outcome, BadRow):
                row = bad_row(path, number, outcome, raw)
                raise_if_bad([row], on_bad_row)
                bad_file = bad_file or stack.enter_context(open_jsonl(stack.enter_context(atomic_write(beside))))
                write_row(bad_file, row)
                first, bad = first or complaint(row), bad + 1
                continue
            count_example(outcome, counts)
            written += 1
            yield openai_row(outcome) if form == "openai" else asdict(outcome)
        if not written:
            raise ValueError(f"none of the {bad} rows of {path} can be used; the first: {first}")

    write = write_jsonl if file.suffix == ".jsonl" else write_parquet
    try:
        with sole_writer(file), ExitStack() as stack:
            write(file, rows())
    except OSError as error:
        if not error.strerror:  # not the system's: nothing at `path`, or another run writes to `out`
            raise
        raise ValueError(f"--out {out} cannot be written: {error.strerror}") from error
    lines = [f"{path}: {written:,} rows written to {file}, {bad:,} bad rows left out"]
    lines += [f"  {line}" for line in describe(counts)]
    if bad:
        lines.append(f"  the bad rows are in {beside}; the first: {first}")
    else:
        remove(beside)  # of the file that was there before
    return "\n".join(lines)


def file_to_write(out: str) -> Path:
    """The file that `--out` names, in a folder that is there.

    Raises:
        ValueError: It is no file, of another kind, or cannot be written.
    """
    file = Path(out).expanduser()
    if "\0" in out:
        raise ValueError(f"--out {out!r} is no name of a file")
    if file.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"--out {out}: rows are written to .jsonl and .parquet files")
    check_writable("--out", file.parent)
    if file.is_dir():
        raise ValueError(f"--out {out} is a folder: name a file in it")
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

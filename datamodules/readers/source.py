"""Rows of any source by its name: a file, a folder of files, a data set, the shipped corpus."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from datamodules.readers.data_sets import SUFFIXES, data_files, data_set_rows, load_data_set, name_and_split
from datamodules.readers.json_files import JSON, READ, json_rows
from datamodules.readers.parquet import parquet_rows
from datamodules.system.files import is_pointer

SHOWN = 5  # names of files that are not read
_TOOLBOX_FORM = re.compile(r"toolbox(?::([^:]*)(?::([0-9]{0,7})(?::([0-9]{0,18}))?)?)?")


def read_rows(path: str) -> Iterator[tuple[int, Any]]:
    """Read any source of rows, one row at a time.

    Args:
        path: A `.json` or `.jsonl` file (a JSON array, JSON lines, or an object that holds the array, whichever it is),
            a `.parquet` file, a saved `datasets` folder, a folder of such files, a hub id, or the generated corpus as
            `toolbox[:split[:rows[:seed]]]`. Folders and hub ids may end in `:split`, which is `train` otherwise.

    Yields:
        The 1-based row (line, for JSON lines) and what it holds: a dict, or the text of a line still to be parsed.

    Raises:
        FileNotFoundError: There is nothing of that name.
        ValueError: The file is not what its suffix says, breaks off, or holds no row.
    """
    with _reading(path):
        number = 0
        for number, row in _rows_of(path):
            yield number, row
        if not number:
            raise ValueError(f"{path} holds no rows")


def place_of_row(path: str, number: int) -> str:
    """Where a row stands, in words: its source and number; in a folder, its file and its number there as well.

    Args:
        path: See `read_rows`. A folder is read once more, up to that row.
        number: 1-based, as `read_rows` gives it.
    """
    files = [] if is_toolbox(path) else data_files(path)
    places = ((file, row) for file in files for row, _ in _file_rows(file))
    file, row = next(islice(places, number - 1, None), ("", 0))
    return f"{file}, row {row} ({number} of {path})" if file else f"{path}, row {number}"


def files_left_out(path: str) -> str:
    """The files of rows in a folder that are not read, in words; nothing where all are, or `path` is another source."""
    taken = [] if is_toolbox(path) else [os.path.abspath(file) for file in data_files(path)]
    folder = Path(name_and_split(path)[0]).expanduser()
    found = [file for file in sorted(folder.rglob("*") if taken else ()) if file.suffix.lower() in SUFFIXES]
    names = [str(file.relative_to(folder)) for file in found if file.is_file() and os.path.abspath(file) not in taken]
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    listed = f"{', '.join(names[:SHOWN])}{more}"
    return f"files that by their names are not of this split, and are not read: {listed}" if names else ""


def is_toolbox(path: str) -> bool:
    """Whether a path names the generated corpus."""
    return path.split(":")[0] == "toolbox"


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Say of a source what the system says of a file that it has and does not give."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not error.strerror:  # not the system's: there is no such source
            raise
        raise ValueError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error


def _rows_of(path: str) -> Iterator[tuple[int, Any]]:
    file = Path(path).expanduser()
    if is_toolbox(path):
        yield from _toolbox_rows(path)
    elif file.is_file():
        yield from _file_rows(file)
    elif files := data_files(path):
        yield from enumerate((row for file in files for _, row in _file_rows(file)), start=1)
    else:
        yield from data_set_rows(path)


def _file_rows(file: Path) -> Iterator[tuple[int, Any]]:
    suffix = file.suffix.lower()
    if is_pointer(file):
        raise ValueError(f"{file} is a pointer of Git LFS and no file of rows: fetch it by git lfs pull")
    if suffix == ".parquet":
        yield from enumerate(parquet_rows(file), start=1)
    elif suffix in JSON:
        yield from json_rows(file)
    else:
        raise ValueError(f"{file} has an unknown suffix; {READ}; convert or unpack it")


def fingerprint(path: str) -> str:
    """A digest that changes when the rows of a source do: of files' bytes, of a data set, or of the corpus' name."""
    if is_toolbox(path):
        return path
    with _reading(path):
        file = Path(path).expanduser()
        files = [file] if file.is_file() else data_files(path)
        if not files:
            return load_data_set(path)._fingerprint
        digest = hashlib.blake2b()
        for one in files:
            with one.open("rb") as content:
                digest.update(hashlib.file_digest(content, "blake2b").digest())
        return digest.hexdigest()


def _toolbox_rows(path: str) -> Iterator[tuple[int, Any]]:
    from datamodules.toolbox.rows import make_corpus

    if not (form := _TOOLBOX_FORM.fullmatch(path)):
        raise ValueError(f"{path} is not of the form toolbox[:split[:rows[:seed]]], with at most 9,999,999 rows")
    split, rows, seed = form.groups()
    yield from enumerate(make_corpus(split or "train", int(rows or 1000), int(seed or 0)), start=1)

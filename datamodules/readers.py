"""The file forms rows come in; each reader gives (row number, raw row) and looks at nothing inside a row."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pyarrow as pa

from datamodules.example import BadRow as BadRow
from datamodules.parquet import parquet_rows
from datamodules.system.hub import refuse_unreachable_rows

if TYPE_CHECKING:
    import datasets

TOOLBOX = "toolbox"
ROW_COLUMNS = {"query", "question", "messages", "conversations", "prompt", "chat", "instruction", "tools", "answers"}
"""Columns of which a row has at least one; an object that has none may hold rows."""
_LINES, _SUFFIXES = (".json", ".jsonl", ".ndjson"), (".json", ".jsonl", ".ndjson", ".parquet")
_READ = "rows are read from .json, .jsonl and .parquet files, from folders of them and from saved data sets"
_SAVED = ("state.json", "dataset_dict.json")  # of a saved `datasets` folder
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TOOLBOX_FORM = re.compile(r"toolbox(?::([^:]*)(?::([0-9]{0,7})(?::([0-9]{0,18}))?)?)?")
_CHUNK = 1 << 18  # characters read at a time from a JSON array
MAX_ROW = 1 << 24  # characters of a row of JSON; a context of a million tokens is a quarter of that
MAX_OBJECT = 1 << 30  # characters of a file that is read as a whole, because it is one object that holds the rows
_DECODER = json.JSONDecoder()
_FIRST, _NEXT, _END = re.compile(r"\s*\[\s*"), re.compile(r"\s*,\s*"), re.compile(r"\s*+(?:\[\s*+)?\]")


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
    if path.split(":")[0] == TOOLBOX:
        yield from _toolbox_rows(path)
    elif file.is_file():
        yield from _file_rows(file)
    elif files := data_files(path):
        yield from enumerate((row for file in files for _, row in _file_rows(file)), start=1)
    else:
        yield from _data_set_rows(path)


def _file_rows(file: Path) -> Iterator[tuple[int, Any]]:
    if file.suffix == ".parquet":
        yield from enumerate(parquet_rows(file), start=1)
    elif file.suffix in _LINES:
        with file.open(encoding="utf-8-sig") as text:
            try:
                start = text.read(4096).lstrip()
                text.seek(0)
                if start.startswith("["):
                    yield from _array_rows(file, text)
                elif re.match(r"\{\s*\n", start):  # an object over several lines
                    yield from enumerate(_object_rows(file, _whole(file, text)), start=1)
                else:
                    yield from _line_rows(file, text)
            except UnicodeDecodeError as error:
                raise ValueError(f"{file} is not UTF-8 text: {error}") from error
    else:
        raise ValueError(f"{file} has an unknown suffix; {_READ}")


def _line_rows(file: Path, text: TextIO) -> Iterator[tuple[int, Any]]:
    lines = ((number, line) for number, line in _lines(file, text) if line.strip())
    first, second = next(lines, None), next(lines, None)
    if first and not second and (rows := _held_by_text(first[1])):
        yield from enumerate(rows, start=1)
        return
    if first and len(first[1]) > MAX_ROW:  # it was read that far because it might have held the rows
        raise _too_long(file, first[0])
    yield from filter(None, (first, second))
    yield from lines


def _lines(file: Path, text: TextIO) -> Iterator[tuple[int, str]]:
    """Numbers and lines; the first one may be an object that holds the rows."""
    number, limit = 0, MAX_OBJECT
    while line := text.readline(limit + 1):
        number += 1
        if len(line) > limit:
            raise _too_long(file, number)
        yield number, line
        limit = MAX_ROW if line.strip() else limit


def _too_long(file: Path, number: int) -> ValueError:
    return ValueError(f"{file}, line {number}: is longer than the {MAX_ROW:,} characters of a row; cut or remove it")


def _whole(file: Path, text: TextIO) -> str:
    found = text.read(MAX_OBJECT + 1)
    if len(found) > MAX_OBJECT:
        raise ValueError(
            f"{file} holds more than {MAX_OBJECT:,} characters and no row to a line; write it as JSON lines"
        )
    return found.strip()


def _held_by_text(line: str) -> list[Any] | None:
    try:
        return held_rows(json.loads(line))
    except (ValueError, RecursionError):
        return None


def _object_rows(file: Path, text: str) -> list[Any]:
    """The rows of JSON objects over several lines: themselves, or the list that the only one holds."""
    values, at = [], 0
    try:
        while at < len(text):
            value, at = _DECODER.raw_decode(text, at)
            values.append(value)
            while at < len(text) and text[at].isspace():
                at += 1
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} holds neither a row on each line nor whole JSON objects: {error}") from error
    if len(values) > 1 or not isinstance(values[0], dict) or ROW_COLUMNS & values[0].keys():
        return values
    if (rows := held_rows(values[0])) is None:
        names = ", ".join(values[0])[:200]
        raise ValueError(f"{file} holds one JSON object ({names}) and in it not one list of rows; {_READ}")
    return rows


def held_rows(value: Any) -> list[Any] | None:
    """The one list of objects that an object holds which is no row itself; None where there is none."""
    if not isinstance(value, dict) or ROW_COLUMNS & value.keys():
        return None
    lists = [v for v in value.values() if isinstance(v, list) and v and all(isinstance(row, dict) for row in v)]
    return lists[0] if len(lists) == 1 else None


def _array_rows(file: Path, text: TextIO) -> Iterator[tuple[int, Any]]:
    """Decode a JSON array element by element: never more of it in memory than a chunk and one row."""
    buffer, position, number, chunk = text.read(_CHUNK), 0, 0, _CHUNK
    while True:
        lead = (_NEXT if number else _FIRST).match(buffer, position)
        try:
            if lead is None:
                raise ValueError("expecting ',' or ']'")
            row, position = _DECODER.raw_decode(buffer, lead.end())
        except (ValueError, RecursionError) as error:
            if end := _END.match(buffer, position):
                if (buffer[end.end() :] + text.read(_CHUNK)).strip():
                    raise ValueError(f"{file}: there is more after the JSON array of {number} rows") from error
                return
            if len(buffer) - position > MAX_ROW or not (piece := text.read(chunk)):
                long = f", or has a row of more than {MAX_ROW:,} characters" if len(buffer) - position > MAX_ROW else ""
                message = f"{file}, row {number + 1}: the JSON array breaks off or is not JSON{long} ({error})"
                raise ValueError(message) from error
            buffer, position, chunk = buffer[position:] + piece, 0, chunk * 2  # doubled: a long row stays linear
            continue
        number, chunk = number + 1, _CHUNK
        yield number, row


def _data_set_rows(path: str) -> Iterator[tuple[int, Any]]:
    data, number = load_data_set(path), 0
    try:
        for number, row in enumerate(data, start=1):
            yield number, row
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path}, row {number + 1}: a value cannot be read, or the data set is damaged: {error}"
        ) from error


def load_data_set(path: str) -> "datasets.Dataset":
    """Load a saved `datasets` folder or a data set of the hub; one split of it.

    Raises:
        FileNotFoundError: There is nothing of that name.
        ValueError: There is no such split, or the folder is damaged.
    """
    import datasets  # slow to import, and most runs read a file

    name, _, split = path.partition(":")
    folder = Path(name).expanduser()
    if folder.is_dir():
        try:
            data = datasets.load_from_disk(str(folder))
        except (pa.ArrowException, FileNotFoundError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"the saved data set {folder} is damaged: {error}") from error
    elif _HUB_ID.fullmatch(name) and folder.suffix not in _SUFFIXES:
        refuse_unreachable_rows(name)
        try:
            data = datasets.load_dataset(name)
        except (FileNotFoundError, ConnectionError) as error:  # DatasetNotFoundError is a FileNotFoundError
            raise FileNotFoundError(f"{name} is neither data here nor a data set the hub gives us: {error}") from error
    else:
        raise FileNotFoundError(f"there is no file, folder or data set {path}")
    if isinstance(data, dict):
        wanted = split or "train"
        if wanted not in data:
            raise ValueError(f"{name} has no split '{wanted}'; name one of its splits, as {name}:{next(iter(data))}")
        data = data[wanted]
    return data


def data_files(path: str) -> list[Path]:
    """The files of rows in a folder, of one split where their names say which they are of; none for other sources.

    Raises:
        ValueError: The folder has no such split, or no files of rows.
    """
    name, _, split = path.partition(":")
    folder = Path(name).expanduser()
    if not folder.is_dir() or any((folder / f).is_file() for f in _SAVED):
        return []
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

    try:
        splits = DataFilesDict.from_patterns(get_data_patterns(str(folder)), base_path=str(folder))
    except (EmptyDatasetError, FileNotFoundError):
        splits = {}
    found = {str(k): [Path(f) for f in files if Path(f).suffix in _SUFFIXES] for k, files in splits.items()}
    found = {k: files for k, files in found.items() if files}
    if not found:
        raise ValueError(f"the folder {name} holds no file of rows; {_READ}")
    if (wanted := split or "train") not in found:
        raise ValueError(f"{name} has no split '{wanted}'; name one of its splits, as {name}:{next(iter(found))}")
    return found[wanted]


def fingerprint(path: str) -> str:
    """A digest that changes when the rows of a source do: of files' bytes, of a data set, or of the corpus' name."""
    if path.split(":")[0] == TOOLBOX:
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

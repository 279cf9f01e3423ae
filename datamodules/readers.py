"""The file forms rows come in; each reader gives (row number, raw row) and looks at nothing inside a row."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    import datasets

TOOLBOX = "toolbox"
_SUFFIXES = (".json", ".jsonl", ".parquet")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CHUNK = 1 << 18  # characters read at a time from a JSON array
_DECODER = json.JSONDecoder()
_FIRST, _NEXT, _END = re.compile(r"\s*\[\s*"), re.compile(r"\s*,\s*"), re.compile(r"\s*\[?\s*\]")
_NESTED = "is nested, and Arrow null-pads nested columns: store it as a JSON string"


class BadRow(ValueError):
    """A row that cannot be used: the column at fault (empty for the row as a whole) and the reason."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(f"column '{column}': {reason}")
        self.column = column
        self.reason = reason


def read_rows(path: str) -> Iterator[tuple[int, Any]]:
    """Read any source of rows, one row at a time.

    Args:
        path: A `.json` or `.jsonl` file (a JSON array or JSON lines, whichever it holds), a `.parquet` file, a saved
            `datasets` folder, a folder of data files, a hub id, or the generated corpus as
            `toolbox[:split[:rows[:seed]]]`. Folders and hub ids may end in `:split`, which is `train` otherwise.

    Yields:
        The 1-based row (line, for JSON lines) and what it holds: a dict, or the text of a line still to be parsed.

    Raises:
        FileNotFoundError: There is nothing of that name.
        ValueError: The file is not what its suffix says, breaks off, or holds no row.
    """
    file, number = Path(path).expanduser(), 0
    if path.split(":")[0] == TOOLBOX:
        rows = _toolbox_rows(path)
    elif file.is_file():
        rows = _file_rows(file)
    else:
        rows = enumerate(load_data_set(path), start=1)
    for number, row in rows:
        yield number, row
    if not number:
        raise ValueError(f"{path} holds no rows")


def _file_rows(file: Path) -> Iterator[tuple[int, Any]]:
    if file.suffix == ".parquet":
        try:
            table = pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{file} is not a Parquet file: {error}") from error
        _refuse_nested(str(file), table.schema_arrow)
        yield from enumerate((row for batch in table.iter_batches(1000) for row in batch.to_pylist()), start=1)
    elif file.suffix in (".json", ".jsonl"):
        with file.open(encoding="utf-8-sig") as text:
            try:
                is_array = text.read(4096).lstrip().startswith("[")
                text.seek(0)
                yield from _array_rows(file, text) if is_array else _line_rows(text)
            except UnicodeDecodeError as error:
                raise ValueError(f"{file} is not UTF-8 text: {error}") from error
    else:
        raise ValueError(f"{file} has an unknown suffix; rows are read from .json, .jsonl and .parquet files")


def _line_rows(text: TextIO) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text, start=1):
        if line.strip():
            yield number, line


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
            if not (piece := text.read(chunk)):
                message = f"{file}, row {number + 1}: the JSON array breaks off or is not JSON ({error})"
                raise ValueError(message) from error
            buffer, position, chunk = buffer[position:] + piece, 0, chunk * 2  # doubled: a long row stays linear
            continue
        number, chunk = number + 1, _CHUNK
        yield number, row


def load_data_set(path: str) -> "datasets.Dataset":
    """Load a saved `datasets` folder, a folder of data files, or a data set of the hub; one split of it.

    Raises:
        FileNotFoundError: There is nothing of that name.
        ValueError: There is no such split, or a column is nested that must be a JSON string.
    """
    import datasets  # slow to import, and most runs read a file

    name, _, split = path.partition(":")
    folder = Path(name).expanduser()
    if folder.is_dir() and any((folder / f).is_file() for f in ("state.json", "dataset_dict.json")):
        data = datasets.load_from_disk(str(folder))
    elif folder.is_dir() or (_HUB_ID.fullmatch(name) and folder.suffix not in _SUFFIXES):
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
    _refuse_nested(path, data.features.arrow_schema)
    return data


def fingerprint(path: str) -> str:
    """A digest that changes when the rows of a source do: of a file's bytes, of a data set, or of the corpus' name."""
    file = Path(path).expanduser()
    if path.split(":")[0] == TOOLBOX:
        return path
    if not file.is_file():
        return load_data_set(path)._fingerprint
    with file.open("rb") as content:
        return hashlib.file_digest(content, "blake2b").hexdigest()


def _refuse_nested(path: str, schema: pa.Schema) -> None:
    for column in ("tools", "functions", "answers", "history"):
        index = schema.get_field_index(column)
        if index >= 0 and pa.types.is_nested(schema.types[index]):
            raise ValueError(f"{path}: column '{column}' {_NESTED}")


def _toolbox_rows(path: str) -> Iterator[tuple[int, Any]]:
    from datamodules.toolbox import make_corpus

    _, split, rows, seed = [*path.split(":"), "", "", ""][:4]
    if path.count(":") > 3 or not (rows or "1").isdigit() or not (seed or "1").isdigit():
        raise ValueError(f"{path} is not of the form toolbox[:split[:rows[:seed]]]")
    yield from enumerate(make_corpus(split or "train", int(rows or 1000), int(seed or 0)), start=1)

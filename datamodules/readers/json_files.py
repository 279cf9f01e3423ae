"""Rows of JSON files, one at a time: an array, JSON lines, or an object that holds the rows, whichever it is."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

JSON = (".json", ".jsonl", ".ndjson")
ROW_COLUMNS = {
    *("query", "question", "messages", "conversations", "contents", "prompt", "chat", "sample", "instruction", "input"),
    *("request", "tools", "answers", "custom_id", "responses_create_params"),
}
"""Columns of which a row has at least one; an object that has none may hold rows."""
READ = "rows are read from .json, .jsonl and .parquet files, from folders of them and from saved data sets"
_CHUNK = 1 << 18  # characters read at a time from a JSON array
MAX_ROW = 1 << 24  # characters of a row of JSON; a context of a million tokens is a quarter of that
MAX_OBJECT = 1 << 30  # characters of a file that is read as a whole, because it is one object that holds the rows
_DECODER = json.JSONDecoder()
_FIRST = re.compile(r"\s*\[\s*")
_NEXT = re.compile(r"\s*,\s*")
_END = re.compile(r"\s*+(?:[\[,]\s*+)?\]")  # a comma may be too many


def json_rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Read the rows of a JSON file, whichever of these forms it has.

    Yields:
        The 1-based row (line, for JSON lines) and what it holds: a dict, or the text of a line still to be parsed.

    Raises:
        ValueError: The file is not JSON in UTF-8, breaks off, holds no list of rows, or has a row of more than
            `MAX_ROW` characters.
    """
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
        raise ValueError(f"{file} holds one JSON object ({names}) and in it not one list of rows; {READ}")
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

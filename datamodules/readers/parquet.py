"""Rows of Parquet files, a few at a time: what a small file says it expands to is looked at before it is read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

AT_ONCE = 1 << 26  # bytes that the rows in memory may take, by what the file declares
ROWS_AT_ONCE = 64
RATIO = 1000  # text that shrinks more than so is the same text again and again
_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError, KeyError)  # KeyError: a time zone that is none


def parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a Parquet file.

    Raises:
        ValueError: The file is no Parquet file, is damaged, declares more than its size can hold, or holds a value that
            Python has none for, as a date after the year 9999; named with row group or row.
    """
    try:
        table = pq.ParquetFile(file, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: a name that is not UTF-8
        if isinstance(error, PermissionError):
            raise
        raise ValueError(f"{file} is not a Parquet file, or not a whole one: {_line(error)}") from error
    check_declared(file, table)
    number = 0
    for group in range(table.num_row_groups):
        batches = table.iter_batches(rows_at_once(table.metadata.row_group(group)), row_groups=[group])
        while True:
            try:
                batch = next(batches, None)
            except _DAMAGE as error:
                raise ValueError(f"{file}, row group {group + 1}: its pages are damaged: {_line(error)}") from error
            if batch is None:
                break
            yield from _as_rows(file, batch, number)
            number += len(batch)


def check_declared(file: Path, table: pq.ParquetFile) -> None:
    """Refuse a file that expands to more than rows that differ could be packed into.

    Columns are looked at one by one only where they are nested, as only these may have more values than rows; and
    because pyarrow ends the process where the description of a column is damaged.

    Raises:
        ValueError: It declares more rows, or values of a nested column, than it has bytes, or shrank beyond `RATIO`.
    """
    metadata, size = table.metadata, file.stat().st_size
    advice = "no rows that differ pack so small, so it is not read"
    if metadata.num_rows > size:
        raise ValueError(f"{file} declares {metadata.num_rows:,} rows in {size:,} bytes: {advice}")
    nested = [place for place in range(metadata.num_columns) if table.schema.column(place).max_repetition_level]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if group.total_byte_size > max(4 * AT_ONCE, RATIO * size):
            name = f"{file}, row group {number + 1}"
            raise ValueError(f"{name} declares {group.total_byte_size:,} bytes in {size:,}: {advice}")
        for column in map(group.column, nested):
            if column.num_values > size:
                name = f"{file}, row group {number + 1}, column '{column.path_in_schema}'"
                raise ValueError(f"{name} declares {column.num_values:,} values in {size:,} bytes: {advice}")


def rows_at_once(group: pq.RowGroupMetaData) -> int:
    """Number of rows of a row group to read together: one where a single value may be as long as all that is declared.

    A value stands in its column once at least, so none is longer than the column; but a dictionary, or a prefix that is
    told once, lets every row have one as long as that.
    """
    return max(1, min(ROWS_AT_ONCE, AT_ONCE // max(1, group.total_byte_size)))


def _as_rows(file: Path, batch: pa.RecordBatch, before: int) -> Iterator[dict[str, Any]]:
    try:
        rows = batch.to_pylist(maps_as_pydicts="lossy")
    except _DAMAGE as error:
        if len(batch) == 1:
            raise ValueError(f"{file}, row {before + 1}: a value cannot be read: {_line(error)}") from error
        for place in range(len(batch)):
            yield from _as_rows(file, batch.slice(place, 1), before + place)
    else:
        yield from rows


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

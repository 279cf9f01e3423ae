"""Parquet files that are damaged, hold what Python has no value for, or expand to far more than they are."""

import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.readers import parquet, read_rows


def rows_of(file):
    return list(read_rows(str(file)))


@pytest.fixture
def table(make_row):
    rows = [{name: str(value) for name, value in make_row(i).items()} for i in range(150)]
    return pa.Table.from_pylist(rows)


def test_rows_of_several_groups_are_numbered_on(table, tmp_path):
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=70)
    assert rows_of(tmp_path / "rows.parquet") == list(enumerate(table.to_pylist(), start=1))


def test_damaged_pages_name_the_row_group(table, tmp_path):
    file = tmp_path / "rows.parquet"
    pq.write_table(table, file, row_group_size=70, write_page_checksum=True)
    content, metadata = bytearray(file.read_bytes()), pq.ParquetFile(file).metadata
    start = metadata.row_group(1).column(4).data_page_offset
    for place in range(start + 60, start + 100):
        content[place] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file}, row group 2: its pages are damaged: ") as error:
        rows_of(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.999])
def test_a_cut_file_is_named(table, tmp_path, keep):
    file = tmp_path / "rows.parquet"
    pq.write_table(table, file)
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ValueError, match=rf"{file} is not a Parquet file, or not a whole one: "):
        rows_of(file)


def test_a_date_that_python_has_not_names_the_row(table, tmp_path):
    days = pa.array([0] * 99 + [10**17] + [0] * 50, pa.timestamp("us"))  # 10^17 us are 3,169 years, from 1970 on: 5138
    far = pa.array([0] * 99 + [10**14] + [0] * 50, pa.timestamp("s"))  # 10^14 s are 3.2 million years
    pq.write_table(table.append_column("day", days), tmp_path / "near.parquet")
    assert rows_of(tmp_path / "near.parquet")[99][1]["day"].year == 5138
    pq.write_table(table.append_column("day", far), tmp_path / "far.parquet")
    with pytest.raises(ValueError, match=r"far\.parquet, row 100: a value cannot be read: "):
        rows_of(tmp_path / "far.parquet")


def test_many_rows_of_few_bytes_are_refused(tmp_path):
    """Run lengths: two million empty rows in a few thousand bytes."""
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"query": pa.array([None] * 2_000_000, pa.string())}), file)
    assert file.stat().st_size < 5000
    with pytest.raises(ValueError, match=rf"{file} declares 2,000,000 rows in [\d,]+ bytes: no rows that differ"):
        rows_of(file)
    pq.write_table(pa.table({"chat": pa.array([[None] * 2_000_000], pa.list_(pa.string()))}), file)
    with pytest.raises(ValueError, match=r"column 'chat\.list\.element' declares 2,000,000 values in [\d,]+ bytes"):
        rows_of(file)


def test_text_that_shrinks_too_far_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "AT_ONCE", 1 << 18)  # so that four times that, 1 MB, need be written
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"query": ["a" * (1 << 21)]}), file, compression="zstd")
    assert file.stat().st_size < 2000
    with pytest.raises(ValueError, match=r"row group 1 declares 2,09\d,\d+ bytes in [\d,]+: no rows that differ"):
        rows_of(file)


def test_a_value_that_every_row_has_is_not_expanded_for_many_rows_at_once(tmp_path, monkeypatch):
    """A text of 1,000,000 bytes in the dictionary and 100 rows with it: of 4,194,304 bytes at once, 4 rows."""
    monkeypatch.setattr(parquet, "AT_ONCE", 1 << 22)
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"query": ["a" * 1_000_000] * 100}), file, compression="zstd")
    assert file.stat().st_size < 2000 and parquet.rows_at_once(pq.ParquetFile(file).metadata.row_group(0)) == 4
    before, most, rows = pa.total_allocated_bytes(), 0, 0
    tracemalloc.start()
    for rows, row in read_rows(str(file)):  # noqa: B007
        assert len(row["query"]) == 1_000_000
        most = max(most, pa.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 100 and most < 2e7 and peak < 2e7

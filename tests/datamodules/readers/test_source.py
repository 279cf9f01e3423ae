import errno
import json
import os
import tracemalloc
from pathlib import Path

import datasets
import pytest

from datamodules.readers import files_left_out, fingerprint, json_files, place_of_row, read_rows
from datamodules.system import hub


def rows_of(path):
    return list(read_rows(str(path)))


def test_array_of_one_line_and_of_many_lines_read_alike(tmp_path, make_row):
    rows = [make_row(i) for i in range(5)]
    for name, indent in (("one.json", None), ("many.json", 2)):
        (tmp_path / name).write_text(json.dumps(rows, indent=indent))
        assert rows_of(tmp_path / name) == [(i + 1, row) for i, row in enumerate(rows)]


def test_array_is_never_whole_in_memory(tmp_path, make_row):
    """20 MB of rows: the peak is a few chunks of 2**18 characters (1 byte each here), not the file."""
    path = tmp_path / "xlam.json"
    rows = (json.dumps(make_row(i, cot="because " * 250)) for i in range(9000))
    path.write_text("[" + ", ".join(rows) + "]")
    assert path.stat().st_size > 20e6
    tracemalloc.start()
    count = sum(1 for _ in read_rows(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 9000
    assert peak < 4e6


def test_rows_longer_than_a_chunk_are_whole(tmp_path, make_row):
    rows = [make_row(0, cot="a" * 700_000), make_row(1, cot="ö" * 300_000)]
    (tmp_path / "long.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert [row for _, row in rows_of(tmp_path / "long.json")] == rows


def test_lines_inside_json_file_and_blank_lines(tmp_path):
    (tmp_path / "lines.json").write_text('\ufeff{"a": 1}\n\n{"a": 2}')
    assert [(n, json.loads(line)) for n, line in rows_of(tmp_path / "lines.json")] == [(1, {"a": 1}), (3, {"a": 2})]


def test_a_comma_too_many_at_the_end_of_an_array_and_capitals_in_a_suffix(tmp_path):
    (tmp_path / "ROWS.JSON").write_text('[{"a": 1},\n {"a": 2},\n]\n')
    assert rows_of(tmp_path / "ROWS.JSON") == [(1, {"a": 1}), (2, {"a": 2})]
    assert rows_of(tmp_path) == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1}, {"a": 2}', "row 3: the JSON array breaks off"),
        ('[{"a": 1}, {"a": ', "row 2: the JSON array breaks off"),
        ('[{"a": 1} {"a": 2}]', "row 2: the JSON array breaks off or is not JSON"),
        ('[{"a": 1},, {"a": 2}]', "row 2: the JSON array breaks off or is not JSON"),
        ('[{"a": 1}, nonsense]', "row 2: the JSON array breaks off or is not JSON"),
        ('[{"a": 1}]\n[{"a": 2}]', "more after the JSON array of 1 rows"),
        ("[]", "holds no rows"),
        ("", "holds no rows"),
    ],
)
def test_broken_json_names_file_and_row(tmp_path, text, words):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        rows_of(tmp_path / "bad.json")
    assert str(tmp_path / "bad.json") in str(error.value)


def test_what_is_not_there_or_not_readable(tmp_path):
    for name in ("missing.jsonl", "missing.json", "missing/rows.parquet"):
        with pytest.raises(FileNotFoundError, match="missing"):
            rows_of(tmp_path / name)
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"rows\.csv has an unknown suffix"):
        rows_of(tmp_path / "rows.csv")
    (tmp_path / "latin.jsonl").write_bytes(b'{"query": "caf\xe9"}')
    with pytest.raises(ValueError, match="not UTF-8"):
        rows_of(tmp_path / "latin.jsonl")
    (tmp_path / "rows.parquet").write_text("no Parquet")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        rows_of(tmp_path / "rows.parquet")


def test_missing_relative_file_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: pytest.fail(f"asked the hub for {name}"))
    with pytest.raises(FileNotFoundError, match=r"data/missing\.jsonl"):
        rows_of("data/missing.jsonl")


def test_parquet_saved_folder_and_folder_of_files(tmp_path, make_row):
    rows = [make_row(i) for i in range(4)]
    data = datasets.Dataset.from_list(rows)
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": data, "dev": data.select([2])}).save_to_disk(tmp_path / "splits")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("rows.parquet", "saved", "splits"):
        assert rows_of(tmp_path / name) == [(i + 1, row) for i, row in enumerate(rows)], name
    assert [(n, json.loads(line)) for n, line in rows_of(tmp_path / "files")] == list(enumerate(rows, start=1))
    assert rows_of(f"{tmp_path / 'splits'}:dev") == [(1, rows[2])]
    with pytest.raises(ValueError, match="has no split 'test'"):
        rows_of(f"{tmp_path / 'splits'}:test")


def test_an_object_that_holds_the_rows_on_one_line_or_on_many(tmp_path, make_row):
    rows = [make_row(i) for i in range(3)]
    for indent in (None, 1):
        (tmp_path / "held.json").write_text(json.dumps({"version": 1, "data": rows}, indent=indent))
        assert rows_of(tmp_path / "held.json") == [(i + 1, row) for i, row in enumerate(rows)]
    (tmp_path / "held.json").write_text(json.dumps(rows[0], indent=1))  # a row is one
    assert rows_of(tmp_path / "held.json") == [(1, rows[0])]
    gym, batch = {"responses_create_params": {}, "ground_truth": [{}]}, {"custom_id": "a", "params": {}, "result": {}}
    for row in (gym, batch):  # with one list of objects in it, and with none
        (tmp_path / "held.json").write_text(json.dumps(row, indent=1))
        assert rows_of(tmp_path / "held.json") == [(1, row)]
    (tmp_path / "held.json").write_text("\n".join(json.dumps(row, indent=1) for row in rows))
    assert rows_of(tmp_path / "held.json") == [(i + 1, row) for i, row in enumerate(rows)]
    (tmp_path / "held.json").write_text(json.dumps({"model": {"name": "f"}, "epochs": 3}, indent=1))
    with pytest.raises(ValueError, match=r"held\.json holds one JSON object \(model, epochs\) and in it not one list"):
        rows_of(tmp_path / "held.json")


def test_a_folder_without_rows_says_what_is_read(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "rows.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"files holds no file of rows; rows are read from \.json, \.jsonl and"):
        rows_of(tmp_path / "files")


def test_the_files_of_a_folder_are_those_of_the_split(tmp_path, make_row):
    for number, name in enumerate(("train-0.jsonl", "train-1.json", "test.jsonl")):
        (tmp_path / name).write_text(json.dumps(make_row(number)))
    (tmp_path / "README.md").write_text("rows")
    assert [json.loads(row)["id"] for _, row in rows_of(tmp_path)] == [0, 1]
    assert [json.loads(row)["id"] for _, row in rows_of(f"{tmp_path}:test")] == [2]
    before = fingerprint(str(tmp_path))
    (tmp_path / "test.jsonl").write_text("{}")
    assert fingerprint(str(tmp_path)) == before
    (tmp_path / "train-1.json").write_text("{}")
    assert fingerprint(str(tmp_path)) != before


def test_a_folder_whose_name_holds_a_colon(tmp_path, make_row):
    folder = tmp_path / "at 12:30"
    folder.mkdir()
    for number, name in enumerate(("train.jsonl", "test.jsonl")):
        (folder / name).write_text(json.dumps(make_row(number)))
    assert [json.loads(row)["id"] for _, row in rows_of(folder)] == [0]
    assert [json.loads(row)["id"] for _, row in rows_of(f"{folder}:test")] == [1]
    assert files_left_out(f"{folder}:test").endswith("not read: train.jsonl")


def test_what_is_no_file_of_rows_and_what_is_not_there_are_told_apart(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match=r"pipe is neither a file nor a folder: write its rows to a file"):
        rows_of(tmp_path / "pipe")
    with pytest.raises(
        FileNotFoundError, match=r"data set data/rows\.jsonl \(a relative path begins where the command"
    ):
        rows_of("data/rows.jsonl")
    with pytest.raises(FileNotFoundError, match=r"data set /absent\.jsonl$"):
        rows_of("/absent.jsonl")
    (tmp_path / "rows.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    with pytest.raises(
        ValueError, match=r"rows\.parquet is a pointer of Git LFS and no file of rows: fetch it by git lfs"
    ):
        rows_of(tmp_path / "rows.parquet")


def test_the_files_of_a_folder_that_are_not_read_are_named(tmp_path, monkeypatch):
    for name in ("train-0.jsonl", "more.jsonl", "test.jsonl", "notes.txt", "toolbox/rows.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"a": 1}\n')
    said = "files that by their names are not of this split, and are not read: "
    assert files_left_out(str(tmp_path)) == f"{said}more.jsonl, test.jsonl, toolbox/rows.jsonl"
    assert files_left_out(f"{tmp_path}:test") == f"{said}more.jsonl, toolbox/rows.jsonl, train-0.jsonl"
    monkeypatch.chdir(tmp_path)
    for all_of_it in ("toolbox", "./toolbox", "more.jsonl"):  # the first is the generated corpus
        assert files_left_out(all_of_it) == ""


def test_a_row_of_a_folder_is_found_in_its_file(tmp_path, make_row):
    (tmp_path / "train-0.jsonl").write_text("\n\n".join(json.dumps(make_row(i)) for i in range(3)))  # lines 1, 3, 5
    (tmp_path / "train-1.json").write_text(json.dumps([make_row(i) for i in range(2)]))
    files = [tmp_path / name for name in ("train-0.jsonl", "train-1.json")]
    assert place_of_row(str(tmp_path), 3) == f"{files[0]}, row 5 (3 of {tmp_path})"
    assert place_of_row(f"{tmp_path}:train", 5) == f"{files[1]}, row 2 (5 of {tmp_path}:train)"
    assert place_of_row(str(files[1]), 2) == f"{files[1]}, row 2"
    assert place_of_row("toolbox", 2) == "toolbox, row 2"


def test_nested_columns_of_arrow_are_read(tmp_path, make_row):
    row = make_row(0)
    row["tools"] = json.loads(row["tools"])
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "nested.parquet")
    assert rows_of(tmp_path / "nested.parquet")[0][1]["tools"][0]["name"] == "get_weather"


def test_fingerprint_follows_the_content(tmp_path):
    for name, text in (("a.jsonl", "{}"), ("b.jsonl", "{}"), ("c.jsonl", "{ }")):
        (tmp_path / name).write_text(text)
    a, b, c = (fingerprint(str(tmp_path / name)) for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    assert a == b != c


def test_generated_corpus_by_name():
    assert [n for n, _ in read_rows("toolbox:heldout:3:7")] == [1, 2, 3]
    assert len(rows_of("toolbox")) == len(rows_of("toolbox::")) == 1000
    for path in (
        "toolbox:train:many",
        "toolbox:train:²",
        "toolbox:train:-5",
        f"toolbox:train:{10**7}",
        "toolbox:a:1:1:1",
    ):
        with pytest.raises(ValueError, match=f"{path} is not of the form"):
            rows_of(path)


def test_a_data_set_of_a_hub_that_does_not_answer_is_refused_before_its_client_tries_for_long(monkeypatch, tmp_path):
    def no_answer():
        raise OSError("no route")

    monkeypatch.setattr(hub, "ask_hub", no_answer)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.Dataset.from_list([{"query": name}]))
    with pytest.raises(
        FileNotFoundError, match=r"data set some/MyRows here, and the hub .* cannot be reached: no route"
    ):
        rows_of("some/MyRows")
    (tmp_path / "some___my_rows").mkdir()
    assert rows_of("some/MyRows") == [(1, {"query": "some/MyRows"})]


def test_rows_that_are_too_long_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "MAX_ROW", 1000)
    line, long = json.dumps({"query": "a"}), json.dumps({"query": "a" * 1000})
    for number in (1, 2, 3):
        lines = [line] * 3
        lines[number - 1] = long
        (tmp_path / "rows.jsonl").write_text("\n".join(lines))
        with pytest.raises(
            ValueError, match=rf"rows\.jsonl, line {number}: is longer than the 1,000 characters of a row"
        ):
            rows_of(tmp_path / "rows.jsonl")
    for text in (f"[{line}, {long}", f"[{line}, {long[:-2]}" + "a" * 10_000_000):
        (tmp_path / "rows.json").write_text(text)
        with pytest.raises(ValueError, match=r"rows\.json, row [23]: .* breaks off or is not JSON"):
            rows_of(tmp_path / "rows.json")
    held = json.dumps({"data": [json.loads(line)] * 100})  # one line, which holds the rows: it may be longer
    (tmp_path / "held.json").write_text(held)
    assert len(rows_of(tmp_path / "held.json")) == 100 and len(held) > 1000
    monkeypatch.setattr(json_files, "MAX_OBJECT", 1000)
    (tmp_path / "held.json").write_text(json.dumps({"data": [json.loads(line)] * 100}, indent=1))
    with pytest.raises(ValueError, match=r"held\.json holds more than 1,000 characters and no row to a line"):
        rows_of(tmp_path / "held.json")


def test_a_line_without_end_is_not_read_to_its_end(tmp_path, monkeypatch):
    """20 MB without a line feed, of which a row may have 100,000 and a whole object 200,000 characters."""
    monkeypatch.setattr(json_files, "MAX_ROW", 100_000)
    monkeypatch.setattr(json_files, "MAX_OBJECT", 200_000)
    for start, words in (('{"a": 1}\n', "line 2: is longer"), ("", "line 1: is longer"), ("[", "row 1: .* breaks off")):
        (tmp_path / "rows.json").write_text(start + '"' + "a" * 20_000_000)
        tracemalloc.start()
        with pytest.raises(ValueError, match=words):
            rows_of(tmp_path / "rows.json")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4e6


def test_what_the_system_refuses_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")

    def denied(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    with monkeypatch.context() as patch:  # the tests may be run by one who may read everything
        patch.setattr(Path, "open", denied)
        for read in (rows_of, lambda path: fingerprint(str(path))):
            with pytest.raises(ValueError, match=rf"{path} cannot be read: Permission denied"):
                read(path)
    with pytest.raises(ValueError, match="cannot be read: File name too long"):
        rows_of("a" * 5000)


def test_a_damaged_saved_data_set_is_named(tmp_path, make_row):
    data = datasets.Dataset.from_list([make_row(i) for i in range(4)])
    data.save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    content = file.read_bytes()
    file.write_bytes(content[:200])
    with pytest.raises(ValueError, match=f"{tmp_path / 'saved'}"):
        rows_of(tmp_path / "saved")
    file.write_bytes(content)
    for text in ("{", "[]", "3", "null", "{}"):
        (tmp_path / "saved" / "state.json").write_text(text)
        with pytest.raises(ValueError, match=f"the saved data set {tmp_path / 'saved'} is damaged"):
            rows_of(tmp_path / "saved")
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "splits")
    for text in ("{}", "3", '{"splits": ["absent"]}'):
        (tmp_path / "splits" / "dataset_dict.json").write_text(text)
        with pytest.raises(ValueError, match=f"the saved data set {tmp_path / 'splits'} is damaged"):
            rows_of(tmp_path / "splits")

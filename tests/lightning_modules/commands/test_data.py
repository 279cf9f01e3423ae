import json
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules import read_examples
from datamodules.system.locks import sole_writer
from lightning_modules.cli import main

TOOLS = [{"name": "get_weather", "description": "", "parameters": {"city": {"type": "str", "description": ""}}}]
CALL = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
CHAT = {
    "id": "chat",
    "messages": [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": None, "reasoning_content": "Oslo.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    ],
    "tools": [{"type": "function", "function": TOOLS[0]}],
}
BAD = {"query": "Hi", "tools": TOOLS, "answers": "get_weather('Oslo')"}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(f"{json.dumps(CHAT)}\n{json.dumps(BAD)}\n")
    return path


def convert(source, out, *options):
    main(["data", "--path", str(source), "--out", str(out), *options])


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", ["xlam", "openai"])
@pytest.mark.parametrize("turns", ["last", "every"])
def test_what_is_written_is_what_was_read(source, tmp_path, capsys, suffix, form, turns):
    convert(source, tmp_path / f"out.{suffix}", "--form", form, "--turns", turns, "--on_bad_row", "skip")
    printed = capsys.readouterr().out
    rows = 2 if turns == "every" else 1
    assert f"{rows} rows written to {tmp_path}/out.{suffix}, 1 bad rows left out" in printed
    assert "rows read as: chat in 'messages' with tool_calls 1" in printed
    examples, bad = read_examples(tmp_path / f"out.{suffix}")
    ids = ["chat-1", "chat-3"] if turns == "every" else ["chat"]
    assert ([example.id for example in examples], bad) == (ids, [])
    assert json.loads(examples[0].answers) == [{"name": "get_weather", "arguments": {"city": "Oslo"}}]
    assert (examples[0].cot, json.loads(examples[0].tools)) == ("Oslo.", TOOLS)
    assert [example.response for example in examples[1:]] == ["It rains."] * (rows - 1)
    beside = {"jsonl": "out.bad_rows.jsonl", "parquet": "out.parquet.bad_rows.jsonl"}[suffix]
    (line,) = (tmp_path / beside).read_text().splitlines()
    assert (json.loads(line)["row"], json.loads(line)["content"]) == (2, json.dumps(BAD) + "\n")


def test_rows_of_the_openai_form(source, tmp_path):
    convert(source, tmp_path / "out.jsonl", "--form", "openai", "--on_bad_row", "skip")
    row = json.loads((tmp_path / "out.jsonl").read_text())
    call = row["messages"][1]["tool_calls"][0]["function"]
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Oslo"})
    assert (row["messages"][1]["content"], row["messages"][1]["reasoning_content"]) == (None, "Oslo.")
    assert row["tools"] == CHAT["tools"]


def test_a_bad_row_ends_the_command_and_leaves_the_file(source, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("as it was")
    with pytest.raises(SystemExit, match=r"error: .*in\.jsonl, row 2, column 'answers': the calls cannot be read"):
        convert(source, out)
    assert out.read_text() == "as it was"
    with pytest.raises(SystemExit, match=r"rows are written to \.jsonl and \.parquet files"):
        convert(source, tmp_path / "out.csv")
    with pytest.raises(SystemExit, match=r"error: --out: .* cannot be written \(Not a directory\)"):
        convert(source, out / "under" / "a_file.jsonl")
    assert {file.name for file in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


@pytest.mark.parametrize("before", [{}, {"out.jsonl": "good", "out.bad_rows.jsonl": "bad"}])
def test_a_source_without_a_good_row_leaves_what_was_there(source, tmp_path, before):
    source.write_text(json.dumps(BAD))
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    words = r"none of the 1 rows of .*in\.jsonl can be used; the first: .*, row 1, column 'answers'"
    with pytest.raises(SystemExit, match=words):
        convert(source, tmp_path / "out.jsonl", "--on_bad_row", "skip")
    assert {file.name: file.read_text() for file in tmp_path.iterdir() if file != source} == before


def test_a_file_that_another_run_is_writing(source, tmp_path):
    out = tmp_path / "out.jsonl"
    with (
        sole_writer(out),
        pytest.raises(SystemExit, match=r"error: another run is writing to .*out\.jsonl: wait for it"),
    ):
        convert(source, out, "--on_bad_row", "skip")
    assert not out.exists()
    convert(source, out, "--on_bad_row", "skip")
    assert {file.name for file in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl", "out.bad_rows.jsonl"}


def test_files_of_two_formats_have_bad_rows_of_their_own(source, tmp_path):
    for out in ("out.jsonl", "out.parquet"):
        convert(source, tmp_path / out, "--on_bad_row", "skip")
    source.write_text(json.dumps(CHAT))
    convert(source, tmp_path / "out.parquet")  # which has none any more
    assert {file.name for file in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl", "out.parquet", "out.bad_rows.jsonl"}


def test_bad_rows_of_the_run_before_do_not_stay(source, tmp_path):
    convert(source, tmp_path / "out.jsonl", "--on_bad_row", "skip")
    source.write_text(json.dumps(CHAT))
    convert(source, tmp_path / "out.jsonl")
    assert {file.name for file in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_bad_rows_of_a_run_that_begins_meanwhile_are_not_removed(source, tmp_path, monkeypatch):
    source.write_text(json.dumps(CHAT))
    removed = []

    def remove_while_another_run_begins(path):
        with pytest.raises(BlockingIOError), sole_writer(tmp_path / "out.jsonl"):
            pass
        removed.append(path.name)
        path.unlink()

    monkeypatch.setattr("lightning_modules.commands.data.remove", remove_while_another_run_begins)
    convert(source, tmp_path / "out.jsonl")
    assert removed == ["out.bad_rows.jsonl"]


def test_rows_are_not_read_from_the_file_that_bad_rows_replace(source, tmp_path):
    mended = source.rename(tmp_path / "out.bad_rows.jsonl")
    rows = mended.read_text()
    (tmp_path / "link.jsonl").symlink_to(mended)
    for path in (mended, tmp_path / "link.jsonl"):
        with pytest.raises(SystemExit, match=r"--path .* is the file that the bad rows of --out .*out\.jsonl replace"):
            convert(path, tmp_path / "out.jsonl", "--on_bad_row", "skip")
    assert mended.read_text() == rows and not (tmp_path / "out.jsonl").exists()


def test_where_rows_cannot_be_written_is_one_sentence(source, tmp_path, monkeypatch):
    (tmp_path / "out.jsonl").mkdir()
    with pytest.raises(SystemExit, match=r"error: --out .*out\.jsonl is a folder: name a file"):
        convert(source, tmp_path / "out.jsonl")
    with pytest.raises(SystemExit, match=r"error: --out: '/proc' cannot be written \("):
        convert(source, "/proc/out.jsonl", "--on_bad_row", "skip")
    with pytest.raises(SystemExit, match=r"error: --out: s3://bucket/out\.jsonl is no folder of this machine"):
        convert(source, "s3://bucket/out.jsonl")
    with pytest.raises(SystemExit, match=r"error: --out .* is no name of a file"):
        convert(source, "a\0.jsonl")


def test_half_a_pair_of_surrogates_and_dates_among_the_bad_rows(tmp_path):
    """The reader of an array decodes them; a file of rows holds them as JSON escapes them."""
    (tmp_path / "in.json").write_text(json.dumps([CHAT, BAD | {"query": "\ud800"}]))
    convert(tmp_path / "in.json", tmp_path / "out.jsonl", "--on_bad_row", "skip")
    (line,) = (tmp_path / "out.bad_rows.jsonl").read_text().splitlines()
    assert json.loads(line)["content"]["query"] == "\ud800"
    rows = [
        {"query": "", "tools": "[]", "answers": "[]", "day": datetime(2026, 1, 2)},
        {"query": "Hi", "tools": "[]", "answers": "[]"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    convert(tmp_path / "in.parquet", tmp_path / "out.jsonl", "--on_bad_row", "skip")
    (line,) = (tmp_path / "out.bad_rows.jsonl").read_text().splitlines()
    assert json.loads(line)["content"]["day"] == "2026-01-02 00:00:00"


def test_files_of_a_folder_that_are_left_out_are_reported(tmp_path, capsys):
    (tmp_path / "rows").mkdir()
    for name in ("train.jsonl", "more.jsonl"):
        (tmp_path / "rows" / name).write_text(json.dumps(CHAT))
    convert(tmp_path / "rows", tmp_path / "out.jsonl")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{tmp_path}/rows: 1 rows written")
    assert said[-1] == "  files that by their names are not of this split, and are not read: more.jsonl"

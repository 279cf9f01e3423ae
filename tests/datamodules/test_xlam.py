import json
from dataclasses import asdict

import datasets
import pytest

from datamodules import Example, read_examples, write_jsonl
from datamodules.rows import to_example
from rewards import FunctionCallReward

CALL = '[{"name": "get_weather", "arguments": {"city": "Rome"}}]'
TOOLS = [{"name": "f", "description": "F.", "parameters": {}}]
ASKED = {"role": "user", "content": "Q"}


def test_row_becomes_example_and_texts_stay_as_they_are(make_row):
    row = make_row(3, category="simple", answers=CALL.replace(" ", "  "))
    example = to_example(row)
    assert (example.id, example.tools, example.answers) == ("3", row["tools"], row["answers"])
    assert (example.category, example.source, example.history, example.response) == ("simple", "", "[]", "")


def test_columns_of_reissues_and_lists_in_json(make_row):
    row = make_row(1, think="Because.", cot=None)
    row["functions"], row["answers"] = json.loads(row.pop("tools")), json.loads(row["answers"])
    example = to_example(row)
    assert example.cot == "Because."
    assert json.loads(example.tools)[0]["name"] == "get_weather"
    assert isinstance(example.answers, str)


@pytest.mark.parametrize(
    ("changes", "column", "reason"),
    [
        ({"answers": None}, "answers", "is missing"),
        ({"answers": "null"}, "answers", "is empty; [] says that no tool fits"),  # as `json.dumps(None)` writes it
        ({"tools": "nan"}, "tools", "is empty; [] says that none is on offer"),  # as `frame.astype(str)` does
        ({"query": None}, "query", "is missing"),
        ({"query": " \n"}, "query", "is empty"),
        ({"query": 5}, "query", "must be a string, not int"),
        ({"query": "a\ud800"}, "query", "lone surrogate"),
        ({"id": 1.5}, "id", "must be a string or an integer, not float"),
        ({"id": True}, "id", "must be a string or an integer, not bool"),
        ({"tools": "{"}, "tools", "JSON"),
        ({"tools": '[{"description": "no name"}]'}, "tools", "name"),
        ({"tools": 5}, "tools", "must be a list of tool objects, not int"),
        ({"answers": "get_weather('Rome')"}, "answers", "no named argument at \"'Rome')\""),
        ({"answers": '[{"name": "get_weather", "city": "Rome"}]'}, "answers", "the key 'city', which is not known"),
        ({"answers": '[{"arguments": {}}]'}, "answers", "the calls cannot be read"),
        ({"answers": '[{"name": "get_weather", "arguments": {"city": NaN}}]'}, "answers", "NaN"),
        ({"answers": CALL.replace("get_", "set_")}, "answers", "'set_weather', which is not among the tools offered"),
        ({"cot": "So </think> it is."}, "cot", "</think>"),
        ({"cot": "So <think> it is."}, "cot", "<think>"),
        ({"cot": 7}, "cot", "must be a string, not int"),
        ({"history": '[{"role": "user"}]'}, "history", "turn 1"),
        ({"history": "5"}, "history", "list of turns"),
        ({"answers": "[]", "response": CALL}, "response", "looks like a call, where no tool is called"),
        ({"answers": "[]", "response": "[get_weather(city='Ro"}, "response", "looks like a call"),
        ({"answers": "[]", "response": "Open <think> tag"}, "response", "earns no reward"),
    ],
)
def test_bad_row_stops_with_one_sentence(write_rows, make_row, changes, column, reason):
    path = write_rows([make_row(1), make_row(2, **changes)])
    with pytest.raises(ValueError) as error:
        read_examples(path)
    sentence = str(error.value)
    assert sentence.startswith(f"{path}, row 2, column '{column}': ")
    assert reason.lower() in sentence.lower()
    assert "on_bad_row: skip" in sentence
    assert "\n" not in sentence
    examples, bad = read_examples(path, on_bad_row="skip")
    assert [example.id for example in examples] == ["1"]
    assert [(row["file"], row["row"], row["column"]) for row in bad] == [(path, 2, column)]
    assert reason.lower() in bad[0]["reason"].lower()


def test_a_bad_row_of_a_folder_is_named_with_its_file(tmp_path, make_row):
    for name in ("train-0.jsonl", "train-1.jsonl"):
        (tmp_path / name).write_text(json.dumps(make_row(1)) if name == "train-0.jsonl" else "{")
    with pytest.raises(ValueError) as error:
        read_examples(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'train-1.jsonl'}, row 1 (2 of {tmp_path}): is not JSON")


@pytest.mark.parametrize(
    ("row", "column", "reason"),
    [
        ({"question": "Q", "functions": TOOLS, "ground_truth": "[f(a=]"}, "ground_truth", "no value at ']'"),
        ({"question": "Q", "functions": "[{", "ground_truth": "[]"}, "functions", "where the text ends"),
        ({"question": "Q", "functions": TOOLS, "ground_truth": "[g()]"}, "ground_truth", "calls 'g'"),
        ({"question": "Q", "functions": TOOLS, "answers": None, "ground_truth": "[g()]"}, "ground_truth", "calls 'g'"),
        ({"question": "Q", "tools": TOOLS, "ground_truth": ""}, "ground_truth", "is empty"),
        ({"prompt": "Q", "tools": TOOLS, "answers": None}, "answers", "is empty"),
        ({"messages": [ASKED, {"role": "assistant", "content": "[g()]"}], "tools": TOOLS}, "messages", "calls 'g'"),
        ({"prompt": [ASKED], "completion": "[f(a=]", "tools": TOOLS}, "completion", "turn 1: the calls cannot be read"),
        ({"prompt": [ASKED], "completion": "[g()]", "tools": TOOLS}, "completion", "calls 'g'"),
        ({"messages": [ASKED, {"role": "assistant", "content": "Hi"}]}, "messages", "write [] into such a column"),
    ],
)
def test_a_column_is_named_as_the_row_names_it(write_rows, row, column, reason):
    path = write_rows([row])
    with pytest.raises(ValueError) as error:
        read_examples(path)
    assert str(error.value).startswith(f"{path}, row 1, column '{column}': ")
    assert reason in str(error.value)


def test_a_column_is_named_so_in_lines_that_end_in_commas(tmp_path):
    path = tmp_path / "rows.jsonl"
    line = json.dumps({"question": "Q", "functions": TOOLS, "ground_truth": "[g()]"})
    path.write_text(f"{line},\n{line},\n")
    with pytest.raises(ValueError, match=r"row 1, column 'ground_truth': calls 'g'"):
        read_examples(path)


def test_texts_of_nothing_are_nothing(make_row):
    """A frame written as texts (`astype(str)`) says nan and None; neither is a thought, an id or a category."""
    example = to_example(make_row(1, cot="nan", id="None", category="NaN", response="null"))
    assert (example.cot, example.id, example.category, example.response) == ("", "", "", "")


def test_rows_that_are_no_objects(tmp_path, make_row):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([json.dumps(make_row(0)) + ",", "not JSON", "[1]", "[" * 100_000]))
    with pytest.raises(ValueError, match="row 2: is not JSON: Expecting value at character 1 of the line"):
        read_examples(path)
    examples, bad = read_examples(path, "skip")
    assert (len(examples), [row["row"] for row in bad]) == (1, [2, 3, 4])
    assert "not a JSON object but list" in bad[1]["reason"]
    path.write_text('{"query": "a')  # cut
    with pytest.raises(
        ValueError, match="row 1: is not JSON: Unterminated string starting at character 11 of the line"
    ):
        read_examples(path)


def test_duplicate_ids_are_seen_across_the_file(write_rows, make_row):
    path = write_rows([make_row(1), make_row(2), make_row(3, id="1")])
    with pytest.raises(ValueError, match=r"row 3, column 'id': '1' is already the id of row 1 \(rows without"):
        read_examples(path)
    assert len(read_examples(path, "skip")[0]) == 2


def test_ids_made_from_content_do_not_depend_on_the_order(write_rows, make_row):
    rows = [make_row(i, id=None) for i in range(3)]
    forward = {e.query: e.id for e in read_examples(write_rows(rows))[0]}
    backward = {e.query: e.id for e in read_examples(write_rows(rows[::-1], "other.jsonl"))[0]}
    assert forward == backward
    assert len(set(forward.values())) == 3
    twice, _ = read_examples(write_rows([rows[0], rows[0]]))
    assert twice[0].id != twice[1].id


def test_no_good_row_and_wrong_choice(write_rows, make_row):
    path = write_rows([make_row(0, query="")])
    with pytest.raises(ValueError, match=r"none of the 1 rows .* the first: .*row 1, column 'query'"):
        read_examples(path, "skip")
    with pytest.raises(ValueError, match="on_bad_row must be"):
        read_examples(path, "ignore")


def test_irrelevance_rows_with_and_without_response(make_row):
    assert to_example(make_row(answers="[]")).response == ""
    assert to_example(make_row(answers="[]", response="No tool can do that.")).response == "No tool can do that."


def test_every_form_gives_the_same_examples(tmp_path, write_rows, make_row):
    rows = [make_row(i) for i in range(3)]
    lines = write_rows(rows)
    (tmp_path / "array.json").write_text(json.dumps(rows))
    data = datasets.Dataset.from_list(rows)
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(tmp_path / "saved")
    expected = read_examples(lines)[0]
    assert len(expected) == 3
    for name in ("array.json", "rows.parquet", "saved"):
        assert read_examples(tmp_path / name)[0] == expected, name


def test_write_jsonl_reads_back_and_is_atomic(tmp_path, make_row):
    path = tmp_path / "new" / "rows.jsonl"
    examples = [to_example(make_row(i, query="Wie ist es in Köln?")) for i in range(3)]
    write_jsonl(path, examples)
    assert read_examples(path)[0] == examples
    before = path.read_bytes()

    def broken():
        yield asdict(examples[0])
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write_jsonl(path, broken())
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["rows.jsonl"]


def test_real_rows(shared_data):
    with pytest.raises(ValueError, match=r"toolrl_r1_cot\.jsonl, row 29, column 'answers': calls 'LastName varchar'"):
        read_examples(shared_data / "toolrl_r1_cot.jsonl")
    examples, bad = read_examples(shared_data / "toolrl_r1_cot.jsonl", "skip")
    assert (len(examples), len(bad)) == (239, 1)
    assert all(isinstance(example, Example) and example.cot for example in examples)
    examples, bad = read_examples(shared_data / "bfcl_as_xlam.jsonl")
    assert (len(examples), len(bad)) == (600, 0)


def test_kept_rows_earn_the_reward_by_their_own_target(shared_data):
    from datamodules.chat.segments import target_text

    reward = FunctionCallReward()
    examples, _ = read_examples(shared_data / "toolrl_r1_cot.jsonl", "skip")
    assert {reward(target_text(e), e.tools, e.answers).score for e in examples} == {1.0}

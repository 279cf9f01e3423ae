import json

import datasets
import pytest

from datamodules import read_examples
from datamodules.chat.segments import target_text
from datamodules.example import BadRow
from datamodules.rows import to_example

TOOL = {"name": "Get Time", "description": "Time [UTC]", "parameters": {"zone": {"type": "str"}}}
ANSWER = '<think>The zone is UTC.</think>\n\n[{"name": "Get Time", "arguments": {"zone": "UTC"}}]'


def sharegpt(*turns, **columns):
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **columns}


def test_tools_column_history_and_calls():
    row = sharegpt(
        ("system", "Be brief."),
        ("human", "Hello"),
        ("gpt", "Hi!"),
        ("human", "What time is it?"),
        ("gpt", ANSWER),
        tools=json.dumps([TOOL]),
        id="chat-1",
    )
    example = to_example(row)
    assert (example.id, example.query, example.cot) == ("chat-1", "What time is it?", "The zone is UTC.")
    assert json.loads(example.answers) == [{"name": "Get Time", "arguments": {"zone": "UTC"}}]
    assert json.loads(example.history) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
    ]
    assert target_text(example) == ANSWER


@pytest.mark.parametrize("wrapped", [False, True])
def test_tools_inside_the_system_text(wrapped):
    tool = {"type": "function", "function": TOOL} if wrapped else TOOL
    system = f"You [the assistant] may use:\n{json.dumps([tool])}\nAnswer as [f(a=1)]."
    row = {
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": "Time?"},
            {"role": "assistant", "content": ANSWER},
        ]
    }
    assert json.loads(to_example(row).tools) == [TOOL]


@pytest.mark.parametrize(
    "text",
    [
        "<think>Yes.</think>\n<answer>[get_time(zone='UTC')]</answer>",
        "<think>Yes.</think>\n\n[get_time(zone='UTC')]",
        '<think>Yes.</think><tool_call>{"name": "get_time", "arguments": {"zone": "UTC"}}</tool_call>',
    ],
)
def test_forms_of_calls(text):
    example = to_example(sharegpt(("user", "Time?"), ("assistant", text), tools=[TOOL | {"name": "get_time"}]))
    assert example.cot == "Yes."
    assert target_text(example) == "<think>Yes.</think>\n\n[get_time(zone='UTC')]"


def test_calls_without_thought_and_plain_responses():
    tools = [TOOL | {"name": "get_time"}]
    bare = to_example(sharegpt(("user", "Time?"), ("assistant", "[get_time(zone='UTC')]"), tools=tools))
    assert (bare.cot, json.loads(bare.answers)[0]["name"]) == ("", "get_time")
    plain = to_example(sharegpt(("user", "Joke?"), ("assistant", "<think>No tool.</think>\n\nSorry, no."), tools=tools))
    assert (plain.cot, plain.answers, plain.response) == ("No tool.", "[]", "Sorry, no.")
    assert target_text(plain) == "<think>No tool.</think>\n\nSorry, no."


def test_the_last_answer_to_a_user_turn_is_the_target():
    row = sharegpt(
        ("user", "Time?"),
        ("function_call", ANSWER),
        ("observation", "12:00"),
        ("gpt", "It is noon."),
        tools=[TOOL],
    )
    example = to_example(row)
    assert (example.query, example.history) == ("Time?", "[]")
    assert target_text(example) == ANSWER


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (sharegpt(("user", "Time?"), tools=[TOOL]), "no assistant turn"),
        (sharegpt(("user", "Time?"), ("gpt", ANSWER)), "neither a tools column nor a JSON list"),
        (sharegpt(("user", "Time?"), ("robot", ANSWER), tools=[TOOL]), "turn 2 has no known role"),
        (sharegpt(("user", "Time?"), ("gpt", "<think>Yes.</think>[get_time(zone=]"), tools=[TOOL]), "cannot be read"),
        (sharegpt(("user", "Time?"), ("gpt", "<think>Yes. [get_time(zone='UTC')]"), tools=[TOOL]), "does not end"),
        (sharegpt(("user", "Time?"), ("gpt", ""), tools=[TOOL]), "turn 2, the assistant's, says nothing"),
        ({"conversations": "Time?", "tools": [TOOL]}, "must be a list of turns"),
        (sharegpt(("user", "Time?"), ("gpt", "[other()]"), tools=[TOOL]), "not among the tools offered"),
    ],
)
def test_bad_chat_rows(row, reason):
    with pytest.raises(BadRow, match=reason):
        to_example(row)


def test_chat_rows_in_every_file_form(tmp_path):
    rows = [
        sharegpt(("human", f"Time {i}?"), ("gpt", ANSWER), id=f"chat-{i}", tools=json.dumps([TOOL])) for i in range(3)
    ]
    data = datasets.Dataset.from_list(rows)
    data.to_parquet(tmp_path / "chat.parquet")
    data.save_to_disk(tmp_path / "chat")
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    expected = [to_example(row) for row in rows]
    for name in ("chat.parquet", "chat", "chat.json", "chat.jsonl"):
        assert read_examples(tmp_path / name) == (expected, []), name

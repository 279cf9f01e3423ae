"""Rows of what was sent to a server: requests that stand beside other columns, and how answers ended."""

import json

import pytest

from datamodules.example import BadRow
from datamodules.rows import read_raw, to_example

NOW = {"name": "now", "description": "Tell the time.", "parameters": {"type": "object", "properties": {}}}
ASK = [{"role": "user", "content": "What time is it?"}]
OTHER = [{"role": "user", "content": "And in Oslo?"}]
TIME = {"type": "function_call", "name": "now", "arguments": "{}"}
GYM = "responses_create_params"


@pytest.mark.parametrize("name", ["request", "body", "input", GYM])
@pytest.mark.parametrize("key", ["messages", "conversations", "contents"])
def test_another_chat_beside_a_request_is_refused(name, key):
    """Of two chats under two names one was read with the tools and the answer of the other."""
    request = {"dialog": ASK, "tools": [NOW]}
    answer = {"expected_action": TIME} if name == GYM else {"response": "[now()]"}
    assert to_example({name: request, key: ASK} | answer).query == "What time is it?"
    with pytest.raises(BadRow, match=f"'{key}': is another chat than that in '{name}': keep one of them"):
        to_example({name: request, key: OTHER} | answer)


def test_a_request_beside_a_whole_row_is_reported():
    row = {"messages": OTHER, "tools": [NOW], "answers": [], GYM: {"input": ASK, "tools": [NOW]}}
    reading = read_raw(row)
    assert (reading.examples[0].query, reading.notes[f"unused/{GYM}"]) == ("And in Oslo?", 1)


def test_a_request_whose_keys_hold_nothing_is_none():
    """As a table has it in rows that have theirs elsewhere."""
    row = {"request": {"messages": None, "tools": None}, "body": {"messages": ASK, "tools": [NOW]}, "response": "Noon."}
    assert to_example(row).response == "Noon."


def test_a_request_that_goes_on_from_another_is_refused():
    row = {"request": {"input": "And in Oslo?", "tools": [NOW], "previous_response_id": "r"}, "response": "Noon."}
    with pytest.raises(BadRow, match="'previous_response_id': says that turns come before, which are not in the row"):
        to_example(row)


SAID = {"role": "assistant", "content": "It is"}


@pytest.mark.parametrize(
    "answer",
    [
        {"response": {"message": SAID, "done": True, "done_reason": "length"}},  # Ollama's
        {"response": SAID | {"stop_reason": "refusal"}},
        {"response": SAID | {"stop_reason": "pause_turn"}},
        {"response": {"candidates": [{"content": SAID, "finishReason": "MALFORMED_FUNCTION_CALL"}]}},
        {"response": {"candidates": [{"content": SAID, "finish_reason": "FinishReason.MAX_TOKENS"}]}},
        {"response": {"object": "response", "status": "failed", "output": [SAID]}},
        {"choices": [{"message": SAID, "finish_reason": "abort"}]},
        {"response": "It is", "finish_reason": "length"},
        {"response": "It is", "stop_reason": "max_tokens"},
    ],
)
def test_answers_that_are_not_whole(answer):
    with pytest.raises(BadRow, match="was cut off, as its"):
        to_example({"messages": ASK, "tools": [NOW]} | answer)


def test_columns_that_say_that_an_answer_is_whole():
    for column in ({"finish_reason": "stop"}, {"stop_reason": "tool_use"}, {"status": "failed"}, {"done_reason": ""}):
        assert to_example({"messages": ASK, "tools": [NOW], "response": "Noon."} | column).response == "Noon."


def test_a_completion_that_was_cut_leaves_the_gold_answer_beside_it_whole():
    """As in the rollouts that `funreason predict` writes."""
    row = {"query": "When?", "tools": [NOW], "answers": '[{"name": "now", "arguments": {}}]'}
    assert to_example(row | {"completion": "[no", "finish_reason": "length"}).answers == row["answers"]


@pytest.mark.parametrize("false", [False, "False", "false"])
def test_an_answer_that_is_not_to_be_given_is_refused_in_a_table_of_texts_too(false):
    with pytest.raises(BadRow, match="'label': is false"):
        to_example({"prompt": "Hi", "completion": "Ho", "tools": [NOW], "label": false})


def test_a_reward_model_in_json():
    row = {"prompt": ASK, "tools": [NOW], "reward_model": json.dumps({"style": "rule", "ground_truth": "[now()]"})}
    assert json.loads(to_example(row).answers) == [{"name": "now", "arguments": {}}]


@pytest.mark.parametrize(
    "thought", ["<think>Hm.</think>", " <think>\nHm.\n</think>\n", "<|START_THINKING|>Hm.<|END_THINKING|>"]
)
@pytest.mark.parametrize("column", ["answers", "completion"])
def test_a_thought_and_an_answer_in_a_list_of_texts(column, thought):
    for asked in ({"query": "Hi"}, {"messages": ASK}, {"prompt": "Hi"}):
        for texts in ([thought, "Noon."], [thought, " ", "Noon."], [f"{thought}Noon."]):
            example = to_example(asked | {"tools": [NOW], column: texts})
            assert (example.cot, example.answers, example.response) == ("Hm.", "[]", "Noon.")
        with pytest.raises(BadRow):  # of which each would do
            to_example(asked | {"tools": [NOW], column: [thought, "Noon.", "Twelve."]})


def test_marks_around_a_column_of_thought_or_within_a_response():
    row = {"query": "Hi", "tools": [NOW], "answers": [TIME], "cot": "<think>\nHm.\n</think>"}
    assert to_example(row).cot == "Hm."
    said = {"role": "assistant", "content": "Noon.", "reasoning_content": "<think>Hm.</think>"}
    assert to_example({"messages": [*ASK, said], "tools": [NOW]}).cot == "Hm."
    for gap in ("", "\n\n"):
        example = to_example(row | {"answers": [], "cot": "So.", "response": f"<thinking>Hm.</thinking>{gap}Noon."})
        assert (example.cot, example.response) == ("So.\n\nHm.", "Noon.")


@pytest.mark.parametrize("kind", ["function", "FUNCTION", "tool_use"])
def test_types_of_calls_without_arguments(kind):
    row = {"query": "Hi", "tools": [NOW], "answers": [{"type": kind, "name": "now"}]}
    assert json.loads(to_example(row).answers) == [{"name": "now", "arguments": {}}]

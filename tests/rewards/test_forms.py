"""Each form is written and read back, and a reward that is held to one form takes no other."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import FRAMES, Call, CallFrame, FunctionCallReward, parse_calls, parse_completion, write_calls

OSLO = [{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}]
LLAMA = CallFrame("", "parameters", "; ", "")
MISTRAL = CallFrame("[TOOL_CALLS] [", "arguments", ", ", "]")
TOOLS = [{"name": "get_weather", "parameters": {}}]
WRITTEN = {
    "python": "[get_weather(city='Oslo', days=2)]",
    "json": '[{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}]',
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>',
}
values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
calls = st.lists(
    st.builds(Call, st.text(min_size=1, max_size=8), st.dictionaries(st.text(max_size=5), values, max_size=3)),
    max_size=3,
)


def test_each_form_is_written_as_it_is_called():
    assert {name: write_calls(OSLO, FRAMES.get(name)) for name in WRITTEN} == WRITTEN
    two = [*OSLO, {"name": "now", "arguments": {}}]
    first = '{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}'
    assert FRAMES["hermes"].write([Call(**call) for call in two]) == (
        f"<tool_call>\n{first}\n</tool_call>\n<tool_call>\n" + '{"name": "now", "arguments": {}}\n</tool_call>'
    )
    assert LLAMA.write([Call(**two[1])]) == '{"name": "now", "parameters": {}}'
    assert {frame.write([]) for frame in [*FRAMES.values(), LLAMA]} == {"[]"}


@pytest.mark.parametrize("frame", [*FRAMES.values(), LLAMA, MISTRAL])
@given(calls=calls)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(frame, calls):
    try:
        text = frame.write(calls)
        text.encode()
    except (ValueError, UnicodeEncodeError):  # two halves of a character, or a NUL, which no answer may hold
        return
    read, error = parse_calls(text, frame)
    if error is None:
        assert json.dumps([[c.name, c.arguments] for c in read]) == json.dumps([[c.name, c.arguments] for c in calls])
    else:
        assert "NUL" in error or "\x00" in text


@pytest.mark.parametrize("form", WRITTEN)
def test_a_reward_that_is_held_to_a_form_takes_no_other(form):
    reward = FunctionCallReward()
    scores = {name: reward(f"<think>x</think>\n\n{text}", TOOLS, OSLO).score for name, text in WRITTEN.items()}
    assert scores == dict.fromkeys(WRITTEN, 1.0)  # one that no run has given a form
    reward.form = form
    scores = {name: reward(f"<think>x</think>\n\n{text}", TOOLS, OSLO).score for name, text in WRITTEN.items()}
    fallback = {"python": {"json"}}.get(form, set())  # where a name is no identifier the calls are written in JSON
    assert {name for name, score in scores.items() if score} == {form} | fallback


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "f", "arguments": {}}',
        '<tool_call>{"name": "f", "arguments": {}}</tool_call> and so on',
        'so: <tool_call>{"name": "f", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "parameters": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}, "id": 1}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>',
        "<tool_call></tool_call>",
        '{"name": "f", "arguments": {}}',
        "<tool_call>" * 2000,
        '<tool_call>{"name": "f", "arguments": ' + "[" * 9000,
    ],
)
def test_a_frame_is_strict_and_never_raises(text):
    assert parse_calls(text, "hermes")[0] is None


def test_white_space_around_fixed_parts_may_be_any():
    text = '<tool_call>{"name":"f","arguments":{}}</tool_call>\n\n <tool_call> {"name":"g","arguments":{}}</tool_call>'
    assert [call.name for call in parse_calls(text, "hermes")[0]] == ["f", "g"]
    assert parse_calls(" [ ] ", "hermes") == ([], None)


def test_without_reasoning_a_think_tag_is_an_error():
    reward = FunctionCallReward()
    reward.think = False
    assert reward(WRITTEN["python"], TOOLS, OSLO).score == 1.0
    assert reward(f"<think>x</think>\n\n{WRITTEN['python']}", TOOLS, OSLO).score == 0.0
    parsed = parse_completion(f"<think>{WRITTEN['python']}", think=False)
    assert parsed.calls is None and parsed.cot == "" and "no reasoning is asked for" in parsed.error


def test_calls_in_another_form_are_no_words():
    """`no_call: text` pays for words; calls that the run's form does not read are still calls."""
    reward = FunctionCallReward(no_call="text")
    reward.form = "hermes"
    assert reward("<think>x</think>\n\nNo tool fits.", TOOLS, []).score == 1.0
    assert reward(f"<think>x</think>\n\n{WRITTEN['python']}", TOOLS, []).score == 0.0

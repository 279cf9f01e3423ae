"""An assistant's message that holds several steps, as Vercel's AI SDK and tools that a server runs itself make them."""

import json

import pytest

from datamodules.example import BadRow
from datamodules.rows import read_raw

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = {name: {"description": name, "inputSchema": SCHEMA} for name in ("get_weather", "now")}  # the SDK's, by name
ASK = {"role": "user", "content": "Weather in Oslo?"}
ASKED = {"id": "u", "role": "user", "parts": [{"type": "text", "text": "Weather in Oslo?"}]}
OSLO = {"city": "Oslo"}
CALL = {"type": "tool-call", "toolCallId": "c", "toolName": "get_weather", "input": OSLO}
USE = {"type": "tool_use", "id": "c", "name": "get_weather", "input": OSLO}
GIVEN = {
    "type": "tool-result",
    "toolCallId": "c",
    "toolName": "get_weather",
    "output": {"type": "text", "value": "rain"},
}
STEP = {"type": "step-start"}
RAIN = {"type": "text", "text": "Rain.", "state": "done"}
PART = {"type": "tool-get_weather", "toolCallId": "c", "state": "output-available", "input": OSLO, "output": "rain"}
DONE = {"state": "result", "step": 0, "toolCallId": "c", "toolName": "get_weather", "args": OSLO, "result": "rain"}
INVOKED = {"type": "tool-invocation", "toolInvocation": DONE}


RESULT = {"type": "tool_result", "tool_use_id": "c", "content": "rain"}


def ui(*parts, **keys):
    return {"id": "a", "role": "assistant", "parts": list(parts), **keys}


def said(*parts):
    return {"role": "assistant", "content": list(parts)}


def read(*messages, turns="every"):
    return read_raw({"messages": list(messages), "tools": TOOLS}, turns).examples


@pytest.mark.parametrize(
    "messages",
    [
        [ASKED, ui(STEP, PART, STEP, RAIN)],
        [ASKED, ui(PART, RAIN)],  # kept without the marks of steps
        [ASKED, ui(PART), ui(RAIN)],
        [ASKED, ui({**PART, "type": "dynamic-tool", "toolName": "get_weather"}, RAIN)],
        [ASKED, ui({**PART, "input": json.dumps(OSLO), "callProviderMetadata": {"p": {"x": 1}}}, RAIN)],
        [ASKED, ui({**PART, "toolName": None, "args": None, "result": None}, RAIN)],  # of a table
        [ASKED, ui({**PART, "state": "output-error", "output": None, "errorText": "rain"}, RAIN)],
        [ASKED, ui({**PART, "errorText": "", "output": "", "result": "rain", "text": ""}, RAIN)],  # padded with texts
        [ASKED, ui(STEP, INVOKED, STEP, RAIN)],
        [ASKED, ui({**DONE, "type": "tool-invocation"}, RAIN)],
        [
            ASKED,
            ui({**INVOKED, "toolInvocation": {**DONE, "input": None, "output": None}}, {**RAIN, "toolInvocation": {}}),
        ],
        [ASK, said({**CALL, "argsText": "{}", "result": "rain"}, RAIN)],  # of assistant-ui, both in one part
        [ASK, said({**CALL, "result": "rain"}), said(RAIN)],
        [  # the older interface, which has text and calls a second time
            {**ASKED, "content": "Weather in Oslo?", "createdAt": "2025-01-01"},
            ui(STEP, INVOKED, STEP, RAIN, content="Rain.", toolInvocations=[DONE]),
        ],
        [ASK, said({**CALL, "text": "", "state": "", "result": ""}), {"role": "tool", "content": [GIVEN]}, said(RAIN)],
        [ASKED, ui({**PART, "rawInput": "", "toolName": ""}, RAIN)],
        [ASK, said(CALL), {"role": "tool", "content": [GIVEN]}, said(RAIN)],
        [ASK, said(CALL, GIVEN, RAIN)],  # a tool that the provider runs
        [
            ASK,
            said({"type": "tool-call", "toolCallId": "c", "toolName": "get_weather", "args": OSLO}),
            {"role": "tool", "content": [{"type": "tool-result", "toolCallId": "c", "result": "rain"}]},
            {"role": "assistant", "content": "Rain."},
        ],
        [ASK, said(USE, {"type": "tool_result", "tool_use_id": "c", "content": "rain"}, RAIN)],
        [ASK, said(USE, {"type": "tool_result", "tool_use_id": "c", "content": "rain"}), said(RAIN)],
        [ASK, said({**USE, "text": ""}, {**RESULT, "text": "", "result": "", "status": "ok"}), said(RAIN)],  # padded
        [ASK, said(USE), {"role": "user", "content": [{**RESULT, "result": "success", "output": {}}]}, said(RAIN)],
    ],
)
def test_a_call_what_the_tool_gave_back_and_an_answer(messages):
    call, answer = read(*messages)
    assert json.loads(call.answers) == [{"name": "get_weather", "arguments": OSLO}]
    assert (call.query, call.history, answer.answers, answer.response) == ("Weather in Oslo?", "[]", "[]", "Rain.")
    assert json.loads(answer.history) == [
        ASK,
        {"role": "assistant", "content": "[get_weather(city='Oslo')]"},
        {"role": "tool", "content": "rain"},
    ]


@pytest.mark.parametrize("name", ["result", "call", "invocation"])
def test_tools_called_as_other_types_of_parts(name):
    """The type of a part is `tool-result` where a tool is called `result`; the call was lost."""
    part = PART | {"type": f"tool-{name}"}
    call, answer = read_raw(
        {"messages": [ASKED, ui(STEP, part, STEP, RAIN)], "tools": [{"name": name, "parameters": SCHEMA}]}, "every"
    ).examples
    assert json.loads(call.answers) == [{"name": name, "arguments": OSLO}]
    assert json.loads(answer.history)[1:] == [
        {"role": "assistant", "content": f"[{name}(city='Oslo')]"},
        {"role": "tool", "content": "rain"},
    ]


def test_steps_that_are_numbered():
    """The older interface, without marks: what was called at once has one number."""
    time = {**DONE, "toolCallId": "d", "toolName": "now", "args": {}, "result": "12"}
    wind = {**time, "toolCallId": "e", "step": 1}
    called = [{"type": "tool-invocation", "toolInvocation": done} for done in (DONE, time, wind)]
    both, again, answer = read(ASKED, ui(*called, RAIN))
    assert [call["name"] for call in json.loads(both.answers)] == ["get_weather", "now"]
    assert [call["name"] for call in json.loads(again.answers)] == ["now"]
    assert [turn["content"] for turn in json.loads(answer.history)[2:]] == ["rain", "12", "[now()]", "12"]


@pytest.mark.parametrize("numbered", [True, False])
def test_words_between_two_calls_of_one_step(numbered):
    """A model may say something between calls that it makes at once: their results come after both."""
    if numbered:
        time = {"type": "tool-invocation", "toolInvocation": DONE | {"toolCallId": "d", "toolName": "now", "args": {}}}
        parts = [INVOKED, {"type": "text", "text": "And the time."}, time, RAIN]
    else:
        time = {"type": "tool-now", "toolCallId": "d", "state": "output-available", "input": {}, "output": "12"}
        parts = [STEP, PART, {"type": "text", "text": "And the time."}, time, STEP, RAIN]
    both, answer = read(ASKED, ui(*parts))
    assert (both.cot, [call["name"] for call in json.loads(both.answers)]) == ("And the time.", ["get_weather", "now"])
    assert [turn["role"] for turn in json.loads(answer.history)] == ["user", "assistant", "tool", "tool"]


@pytest.mark.parametrize("words", [[], [{"type": "text", "text": "And the time."}]])
def test_calls_that_the_provider_runs_follow_the_results_before_them(words):
    """Such a tool has given something before the model goes on, within one step."""
    ran = {"state": "output-available", "input": {}, "output": "12", "providerExecuted": True}
    time = {"type": "tool-now", "toolCallId": "d", **ran}
    first, second, _ = read(ASKED, ui(STEP, PART | {"providerExecuted": True}, *words, time, RAIN))
    assert [json.loads(one.answers)[0]["name"] for one in (first, second)] == ["get_weather", "now"]
    assert json.loads(second.history)[-1] == {"role": "tool", "content": "rain"}


@pytest.mark.parametrize("reasoning", [None, "Oslo.", "Wet.", "Oslo. Wet."])
def test_what_the_older_interface_repeats_of_the_last_step(reasoning):
    """Its `content` and `reasoning` are those of all steps, or of the last one, by who has kept the message."""
    look, wet = {"type": "text", "text": "I look."}, {"type": "reasoning", "reasoning": "Wet.", "details": []}
    thought = {"type": "reasoning", "reasoning": "Oslo.", "details": [{"type": "text", "text": "Oslo."}]}
    parts = [STEP, thought, look, INVOKED, STEP, *([] if reasoning == "Oslo." else [wet]), RAIN]
    for content in ("Rain.", "I look.Rain."):
        _, answer = read(ASKED, ui(*parts, content=content, reasoning=reasoning, toolInvocations=[DONE]))
        assert (answer.cot, answer.response) == ("" if reasoning == "Oslo." else "Wet.", "Rain.")


def test_a_thought_beside_parts_of_one_step():
    """What a tool gave back to a call before, and a call: the thought can be about nothing else."""
    time = {"type": "tool_use", "id": "d", "name": "now", "input": {}}
    _, again = read(ASK, said(USE), said(RESULT, time) | {"reasoning_content": "Hm."})
    assert (again.cot, json.loads(again.answers)) == ("Hm.", [{"name": "now", "arguments": {}}])


def test_parts_with_an_empty_text_are_what_their_type_says():
    thought = {"type": "thinking", "thinking": "Oslo.", "text": ""}
    (example,) = read(ASK, said(thought, {"type": "text", "text": "", "content": "I look."}, {**USE, "text": ""}))
    assert (example.cot, json.loads(example.answers)) == (
        "Oslo.\n\nI look.",
        [{"name": "get_weather", "arguments": OSLO}],
    )


@pytest.mark.parametrize("nothing", [None, "", [], {}])
def test_a_result_without_anything_is_an_empty_text(nothing):
    _, answer = read(ASK, said(USE), {"role": "user", "content": [{**RESULT, "content": nothing}]}, said(RAIN))
    assert json.loads(answer.history)[-1] == {"role": "tool", "content": ""}


@pytest.mark.parametrize("state", ["input-available", "approval-requested", "call", None])
def test_a_call_that_no_tool_has_answered_yet(state):
    part = {"type": "dynamic-tool", "toolName": "get_weather", "toolCallId": "c", "state": state, "input": OSLO}
    thought = {"type": "reasoning", "text": "Oslo.", "state": "done"}
    (example,) = read(ASKED, ui(STEP, thought, part))
    assert (example.cot, json.loads(example.answers)) == ("Oslo.", [{"name": "get_weather", "arguments": OSLO}])


def test_calls_of_one_step_are_one_answer_and_results_keep_the_order_of_the_calls():
    time = {"type": "tool-now", "toolCallId": "d", "state": "output-available", "input": {}, "output": {"hour": 12}}
    both, again, _ = read(ASKED, ui(STEP, PART, time, STEP, {**time, "toolCallId": "e"}, STEP, RAIN))
    assert [call["name"] for call in json.loads(both.answers)] == ["get_weather", "now"]
    assert [call["name"] for call in json.loads(again.answers)] == ["now"]
    assert [turn["content"] for turn in json.loads(again.history)[2:]] == ["rain", '{"hour": 12}']


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ({"type": "json", "value": {"sky": "rain"}}, '{"sky": "rain"}'),
        ({"type": "json", "value": 0}, "0"),
        ({"type": "error-text", "value": "no city"}, "no city"),
        ({"type": "error-json", "value": ["no"]}, '["no"]'),
        ({"type": "content", "value": [{"type": "text", "text": "rain"}]}, "rain"),
        ({"type": "text", "value": "rain", "providerOptions": None}, "rain"),
        ({"type": "json", "value": ["rain", "wind"]}, '["rain", "wind"]'),
        ({"type": "rain", "mm": 3}, '{"type": "rain", "mm": 3}'),  # the tool's own object
        ("rain", "rain"),
        (None, '{"type": "rain"}'),
    ],
)
def test_what_a_tool_gave_back(output, text):
    given = GIVEN | {"output": output} if output else {**GIVEN, "output": None, "result": {"type": "rain"}}
    _, answer = read(ASK, said(CALL), {"role": "tool", "content": [given]}, said(RAIN))
    assert json.loads(answer.history)[-1] == {"role": "tool", "content": text}


def test_a_message_that_ends_with_a_result_and_an_empty_text():
    (call,) = read(ASKED, ui(STEP, PART, {"type": "text", "text": "", "state": "done"}))
    assert json.loads(call.answers) == [{"name": "get_weather", "arguments": OSLO}]


def test_steps_that_are_not_trained_on():
    (example,) = read(ASKED, ui(PART, RAIN, weight=0), ASKED | {"parts": [{"type": "text", "text": "Hi"}]}, said(RAIN))
    assert example.query == "Hi"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (ui({**PART, "state": "input-streaming"}), "turn 2 has a call in the state 'input-streaming'"),
        (ui({**DONE, "type": "tool-invocation", "state": "partial-call"}), "a call in the state 'partial-call'"),
        (
            ui({**PART, "state": "approval-responded", "approval": {"approved": False}}),
            "in the state 'approval-responded'",
        ),
        (ui({**PART, "state": "output-denied"}, RAIN), "a call in the state 'output-denied'"),
        (ui({**PART, "input": None, "rawInput": "{", "state": "output-error"}), "a call whose arguments could not be"),
        (ui(PART, RAIN, content="Sun."), "turn 2 has the key 'parts', which is not known"),
        (ui(PART, RAIN, content="in."), "turn 2 has the key 'parts', which is not known"),
        (ui(PART, RAIN, reasoning="Hm."), "turn 2 has 'reasoning' beside parts with what tools gave back"),
        (ui(PART, RAIN, toolInvocations=[{**DONE, "args": {}}]), "turn 2 has the key 'toolInvocations'"),
        (ui(PART, RAIN, tool_calls=[{"name": "now"}]), "turn 2 has 'tool_calls' beside parts with what tools gave"),
        (ui({"type": "file", "mediaType": "image/png", "url": "data:"}), "a part of the type 'file', which is not"),
        (ui({"type": "source-url", "url": "a"}, RAIN), "a part of the type 'source-url', which is not read"),
        (ui({"type": "tool-get_weather", "text": "x"}), "a part of the type 'tool-get_weather', which is not read"),
        (
            said(CALL, {"type": "tool-approval-request", "toolCallId": "c", "state": None}),
            "of the type 'tool-approval-request', which",
        ),
        (ui({"type": "dynamic-tool", "state": "call"}), "a call needs a name"),
        (ui({"type": "tool-invocation", "tool": "now", "state": {"status": "completed"}}), "a call in the state"),
        (ui({"type": ["text"]}), "which is not read"),
        (ui({"type": None, "text": "Rain."}), "a part of the type 'None', which is not read"),
        (ui(PART, {**PART, "toolCallId": "d"}, RAIN), "one call with its result after another, and no 'step-start'"),
        (ui(STEP, {**PART, "state": "input-available"}, STEP, RAIN), "turn 2 says something after its calls"),
        (said(CALL, RAIN), "turn 2 says something after its calls"),
        (said(CALL, GIVEN | {"output": {"type": "execution-denied"}}), "turn 2 has the output of a tool of the type"),
        (
            said(CALL, GIVEN | {"output": {"type": "content", "value": [{"type": "media"}]}}),
            "of the type 'content', which",
        ),
    ],
)
def test_what_is_refused(message, reason):
    with pytest.raises(BadRow) as error:
        read(ASKED, message)
    assert reason in error.value.reason

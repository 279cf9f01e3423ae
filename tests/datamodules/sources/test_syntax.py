"""Calls written in every known syntax are read back as those calls, and what is no call is plain text."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.sources import marks
from datamodules.sources.calls import calls_of
from datamodules.sources.syntax import read_answer
from datamodules.sources.thoughts import read_assistant_text
from datamodules.sources.values import read_whole
from rewards import Call, render_calls

WEATHER = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
}
LOOKUP = {"name": "Weather Lookup", "parameters": {"city": {"type": "str"}}}
NOW = {"name": "now", "parameters": {}}
TOOLS = [WEATHER, LOOKUP, NOW]
OSLO, BERGEN, BLANK, TIME = (
    Call("get_weather", {"city": "Oslo"}),
    Call("get_weather", {"city": "Bergen"}),
    Call("Weather Lookup", {"city": "Oslo"}),
    Call("now", {}),
)
JSON = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
NEXT = '{"name": "now", "arguments": {}}'


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"<tool_call>\n{JSON}\n</tool_call>\n<tool_call>\n{NEXT}\n</tool_call>", [OSLO, TIME]),
        (f"<tool_call>\n{JSON}\n{NEXT}\n</tool_call>", [OSLO, TIME]),  # ToolRL: one a line
        (f"<tool_call>[{JSON}, {NEXT}]</tool_call>", [OSLO, TIME]),
        ("<tool_call>\n{'name': 'get_weather', 'arguments': {'city': 'Oslo'}}\n</tool_call>", [OSLO]),
        ("<tool_call>get_weather(city='Oslo')</tool_call>", [OSLO]),
        (f"<tool_call>{JSON}", [OSLO]),  # what is missing is the closing tag alone
        ('<functioncall> {"name": "get_weather", "arguments": \'{"city": "Oslo"}\'} <|endoftext|>', [OSLO]),
        ('<functioncall> {"name": "now", "arguments": \'{\n}\'}', [TIME]),
        (f"<TOOLCALL>[{JSON}]</TOOLCALL>", [OSLO]),
        ("<TOOLCALL>[]</TOOLCALL>", []),
        (f"<|tool_call|>[{JSON}]<|/tool_call|>", [OSLO]),
        (f"[TOOL_CALLS] [{JSON}]</s>", [OSLO]),
        ('[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}[TOOL_CALLS]now[ARGS]{}', [OSLO, TIME]),
        ('[TOOL_CALLS]get_weather[CALL_ID]a1B2c3[ARGS]{"city": "Oslo"}', [OSLO]),
        ('<|python_tag|>{"name": "get_weather", "parameters": {"city": "Oslo"}}<|eom_id|>', [OSLO]),
        ('<|python_tag|>get_weather.call(city="Oslo")<|eom_id|>', [OSLO]),
        ('<|python_start|>[get_weather(city="Oslo")]<|python_end|>', [OSLO]),
        (f"functools[{JSON}]", [OSLO]),
        ('<function=get_weather>{"city": "Oslo"}</function><function=now>{}</function>', [OSLO, TIME]),
        ('✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Oslo"}', [OSLO]),
        ('✿FUNCTION✿: Weather Lookup\n✿ARGS✿: {"city": "Oslo"}\n✿FUNCTION✿: now\n✿ARGS✿: {}', [BLANK, TIME]),
        (f"```json\n[{JSON}]\n```", [OSLO]),
        ("```python\n[get_weather(city='Oslo')]\n```", [OSLO]),
        ("```tool_code\nget_weather(city='Oslo')\n```", [OSLO]),
        ("```\n[]\n```", []),
        ("get_weather(city='Oslo')\nget_weather(city='Bergen')", [OSLO, BERGEN]),
        ("get_weather(city='Oslo'); get_weather(city='Bergen');", [OSLO, BERGEN]),
        ("get_weather (city='Oslo')", [OSLO]),
        ('[Weather Lookup(city="Oslo"), now()]', [BLANK, TIME]),
        ('[{"name": "get_weather", "arguments": {"city": "Oslo",},},]', [OSLO]),
        ('{"name": "get_weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}', [OSLO]),
        ('{"tool_calls": [{"type": "function", "id": "1", "function": ' + JSON + "}]}", [OSLO]),
        ('{"tool_calls": []}', []),
        ('{"get_weather": {"city": "Oslo"}}', [OSLO]),
        ('{"function": "get_weather", "args": {"city": "Oslo"}}', [OSLO]),
        ("[{'api': 'get_weather', 'parameters': {'city': 'Oslo'}, 'responses': ['API_call_0']}]", [OSLO]),
        (
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n3\n"
            "</parameter>\n</function>\n</tool_call>",
            [Call("get_weather", {"city": "Oslo", "days": 3})],
        ),
        (
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>12</arg_value>\n<arg_key>days</arg_key>\n"
            "<arg_value>12</arg_value>\n</tool_call>",
            [Call("get_weather", {"city": "12", "days": 12})],
        ),
        ("<tool_call>now\n</tool_call>", [TIME]),
        (
            '<function_calls>\n<invoke name="get_weather">\n<parameter name="city">Oslo</parameter>\n</invoke>\n'
            "</function_calls>",
            [OSLO],
        ),
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"  # noqa: RUF001
            '{"city": "Oslo"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>',  # noqa: RUF001
            [OSLO],
        ),
        (
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Oslo"}'  # noqa: RUF001
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",  # noqa: RUF001
            [OSLO],
        ),
        (
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
            '{"city": "Oslo"}<|tool_call_end|><|tool_calls_section_end|>',
            [OSLO],
        ),
        *(
            (
                f'<{name}function_calls>\n<{name}invoke name="get_weather">\n'
                f'<{name}parameter name="city" string="true">Oslo</{name}parameter>\n'
                f"</{name}invoke>\n</{name}function_calls>",
                [OSLO],
            )
            for name in ("｜DSML｜", "ns:")  # noqa: RUF001
        ),
        ("<seed:tool_call>\n<function=now>\n</function>\n</seed:tool_call>", [TIME]),
        ("[get_weather(city='Oslo')]<|eot|>", [OSLO]),
        ('Action: get_weather\nAction Input: ```json\n{"city": "Oslo"}\n```', [OSLO]),
        ('Action: get_weather\nAction Input: {"city": "Oslo"}\nObservation:', [OSLO]),
        *((f"Action: now\nAction Input:{nothing}", [TIME]) for nothing in ("", " None", ' ""', "\nObservation:")),
        (f"Action: ```json\n[{JSON}]\n```", [OSLO]),
        ('Action:\n```\n{"action": "get_weather", "action_input": {"city": "Oslo"}}\n```', [OSLO]),
        ("Action: get_weather(city='Oslo')", [OSLO]),
        ('<|tool_call_start|>[get_weather(city="Oslo")]<|tool_call_end|>', [OSLO]),
        ("<start_function_call>call:get_weather{city:<escape>Oslo<escape>}<end_function_call>", [OSLO]),
        (
            '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Oslo"}<|call|>',
            [OSLO],
        ),
    ],
)
def test_syntaxes(text, calls):
    assert read_answer(text, TOOLS) == ("", calls)


@pytest.mark.parametrize(
    ("text", "before"),
    [
        (f"I will check.\n<tool_call>\n{JSON}\n</tool_call>", "I will check."),
        (f"I will check. <tool_call>{JSON}</tool_call>", "I will check."),
        ("I will check.\n[get_weather(city='Oslo')]", "I will check."),
        (f"I will check:\n```json\n{JSON}\n```", "I will check:"),
        ('Thought: they ask.\nAction: get_weather\nAction Input: {"city": "Oslo"}', "Thought: they ask."),
    ],
)
def test_words_before_the_calls(text, before):
    assert read_answer(text, TOOLS) == (before, [OSLO])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<tool_call>oops</tool_call>", "no call at 'oops"),
        ('<tool_call>{"name": "get_weather", "arguments": {"city": "Os', "cannot be read"),
        (
            f"<tool_call>{JSON}</tool_call> and <tool_call>{NEXT}</tool_call>",
            "like a call in the text before the calls",
        ),
        (f"<tool_call>{JSON}</tool_call>\nI have asked.", "no call at 'I have asked.'"),
        (f"<tool_call>{JSON}</tool_call><tool_call>oops</tool_call>", "no call at 'oops"),
        ("get_weather('Oslo')", "no named argument"),
        ("I will ask.\nAction: get_weather\nAction Input: Oslo", "no value at 'Oslo'"),
        ('Action: get_weather\nAction Input: "Oslo"', "the arguments of 'get_weather' cannot be read"),
        ('Action: get_weather\nAction Input: {"city": "Oslo"}\nObservation: rain', "no call at 'Observation: rain'"),
        ("<get_weather>\n<city>Oslo</city>\n</get_weather>", "no call at '<get_weather>"),
        ("[get_weather(city=Oslo)]", "no value at 'Oslo)]'"),
        ("[get_weather(city='Oslo', city='Bergen')]", "given twice"),
        ("[get_weather(city=now())]", "no value at 'now())]'"),
        ("[get_weather(city='Oslo'", "no comma or bracket"),
        ("Use get_weather(city) for that.", "cannot be read"),
        ('Call it with {"name": "get_weather"}, please.', "cannot be read"),
        ('[{"name": "get_w', "cannot be read"),
        ('{"name": "get_weather", "arguments": {"city": "Oslo"}, "city": "Oslo"}', "the key 'city'"),
        ('{"name": "get_weather", "arguments": {"city": "a"}, "parameters": {"city": "b"}}', "both 'arguments' and"),
        ("[{'api': 'get_weather', 'parameters': {'city': 'API_call_0'}, 'responses': []}]", "result of another call"),
        (
            "<tool_call>get_weather\n<arg_key>other</arg_key>\n<arg_value>5</arg_value>\n</tool_call>",
            "no type is declared",
        ),
        (
            "<tool_call>get_weather\n<arg_key>days</arg_key>\n<arg_value>few</arg_value>\n</tool_call>",
            "and its tool declares integer",
        ),
        ("Thought: Hm.\nAction: now", "no call at 'Thought: Hm."),
        ("Thought: Hm.\nAction: now[Oslo]\nObservation: rain\nFinal Answer: Rain.", "no call at 'Thought: Hm."),
        ("Tool: get_weather\nInput: Oslo", "no call at 'Tool: get_weather"),
        ("tool: get_weather\nargs:\n  city: Oslo", "no call at 'tool: get_weather"),
        ('<get_weather city="Oslo"/>', "no call at '<get_weather"),
        ('<tool name="get_weather"><city>Oslo</city></tool>', "no call at '<tool name"),
        ("<longcat_tool_call>get_weather\n<longcat_arg_key>", "no call at '<longcat_tool_call>"),
        ("<|tool_call>call now<tool_call|>", "no call at '<|tool_call>"),
        ('functions.get_weather({"city": "Oslo"})', "no named argument"),
        ('{"name": "get_weather", "type": "rain"}', "a call of the type 'rain' has no arguments"),
        ("Thought: Hm.\nAction: now[12]", "no call at 'Thought: Hm."),
        ("I look: now{}", "no call at 'I look: now{}"),
        ("I look: get_weather{city: 'Oslo'}", 'no call at "I look: get_weather{'),
        ("I look: <now />", "no call at 'I look: <now />"),
    ],
)
def test_what_looks_like_calls_and_cannot_be_read_is_refused(text, reason):
    with pytest.raises(ValueError) as error:
        read_answer(text, TOOLS)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "I cannot do that.",
        "I can tell you now (UTC).",
        "Here is [1, 2] and {a set}.",
        '{"answer": 5}',
        "The list:\n[]",
        "[Note] none of these tools fits.",
        "Try this:\n```python\nprint(x=1)\n```",
        "I would use get_weather for that.",
        "Parameters: there are none for get_weather.",
        "The tool: get_weather",
        "It has the method clock.now() to ask.",
        "It rains now[1].",  # a footnote
        "```python\nnow[0]\n```",
        r"The limit is \now{2}, or \now(2).",  # LaTeX's
        "Of two now{a, b} is the set.",
        "Where a <now and b (or c) it holds.",
    ],
)
def test_plain_text(text):
    assert read_answer(text, TOOLS) == (text, None)


@pytest.mark.parametrize(
    ("text", "cot", "words", "calls"),
    [
        ("<think>Oslo.</think>\n\n[now()]", "Oslo.", "", [TIME]),
        ("Oslo.\n</think>\n\n[now()]", "Oslo.", "", [TIME]),
        ("I could call get_weather(x).\n</think>\nSorry.", "I could call get_weather(x).", "Sorry.", None),
        ("<think>\n\n</think>\n\n[now()]", "", "", [TIME]),
        ("<reasoning>Oslo.</reasoning><answer>[now()]</answer>", "Oslo.", "", [TIME]),
        ("[THINK]Oslo.[/THINK]Sorry.", "Oslo.", "Sorry.", None),
        ("<scratch_pad>Oslo.</scratch_pad>\n<tool_call>\n" + NEXT + "\n</tool_call>", "Oslo.", "", [TIME]),
        ("<think>Oslo.</think>\n<response> Sorry. </response>", "Oslo.", "Sorry.", None),
        *((f"<{tag}>Sorry.</{tag}>", "", "Sorry.", None) for tag in ("final", "output", "final_answer")),
        ("<final>A</final> <final>B</final>", "", "<final>A</final> <final>B</final>", None),
        (
            "<|channel|>analysis<|message|>Oslo.<|end|><|start|>assistant<|channel|>final<|message|>Hi<|return|>",
            "Oslo.",
            "Hi",
            None,
        ),
        (
            "<|channel|>analysis<|message|>Oslo.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
            "<|start|>assistant<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>",
            "Oslo.",
            "I look.",
            [TIME],
        ),
        ("[get_weather(city='a </think> b')]", "", "", [Call("get_weather", {"city": "a </think> b"})]),
        (
            '{"name": "get_weather", "parameters": {"city": "a</think>b"}}',
            "",
            "",
            [Call("get_weather", {"city": "a</think>b"})],
        ),
        ("Sorry. <|im_end|>", "", "Sorry.", None),
        ("Thought: Oslo.\nAction: now\nAction Input: {}", "", "Oslo.", [TIME]),
        ("\nThought: \nAction: now\nAction Input: {}", "", "", [TIME]),
        ("Thought: Oslo.\n[now()]", "", "Oslo.", [TIME]),
        ("Thought: I know.\nFinal Answer: Rain.", "I know.", "Rain.", None),
        ("Thought: who knows?", "", "Thought: who knows?", None),
        *(
            (f"{start}Oslo.{end}\nSorry.", "Oslo.", "Sorry.", None)
            for start, end in (
                ("<seed:think>", "</seed:think>"),
                ("<antThinking>", "</antThinking>"),
                ("<|START_THINKING|>", "<|END_THINKING|>"),
                ("<|begin_of_thought|>", "<|end_of_thought|>"),
                ("<|think|>", "<|/think|>"),
                ("◁think▷", "◁/think▷"),
                ("", "[/THINK]"),
                ("", "<|END_THINKING|>"),
                ("Here is my thought process:", "Here is my response:"),
                ("Here are my reasoning steps:\n", "\n[BEGIN FINAL RESPONSE]"),
            )
        ),
        ("<|START_THINKING|>Oslo.<|END_THINKING|><|START_RESPONSE|>Sorry.<|END_RESPONSE|>", "Oslo.", "Sorry.", None),
        (
            "<|begin_of_thought|>Oslo.<|end_of_thought|>\n<|begin_of_solution|>Sorry.<|end_of_solution|>",
            "Oslo.",
            "Sorry.",
            None,
        ),
        (
            "Here are my reasoning steps:\nOslo.\n[BEGIN FINAL RESPONSE]\nSorry.\n[END FINAL RESPONSE]\n<|end|>",
            "Oslo.",
            "Sorry.",
            None,
        ),
        (
            '<|START_THINKING|>Oslo.<|END_THINKING|><|START_ACTION|>[{"tool_name": "now", "parameters": {}}]'
            "<|END_ACTION|>",
            "Oslo.",
            "",
            [TIME],
        ),
        ("<think>Oslo.</think>\n<think>Rain.</think>Sorry.", "Oslo.\n\nRain.", "Sorry.", None),
        (
            "<|channel|>analysis<|message|>Oslo.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
            "<|start|>assistant<|channel|>analysis<|message|>Rain.<|end|>"
            "<|start|>assistant<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>",
            "Oslo.\n\nRain.",
            "I look.",
            [TIME],
        ),
    ],
)
def test_chains_of_thought(text, cot, words, calls):
    said = read_assistant_text(text, TOOLS)
    assert (said.cot, said.text, said.calls) == (cot, words, calls)


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("Sure. <thinking>Oslo.</thinking> Sorry.", "<thinking>"),
        ("<think>Oslo.</think>Sorry. <seed:think>Rain.</seed:think>", "<seed:think>"),
        ("<|channel|>analysis to=python code<|message|>1<|call|>", "<|channel|>"),
        ("<|START_RESPONSE|>Sorry.", "<|START_RESPONSE|>"),
    ],
)
def test_marks_that_are_left_are_no_part_of_thought_or_answer(text, mark):
    with pytest.raises(ValueError, match=re.escape(f"a mark that is not read where it stands: {mark!r}")):
        read_assistant_text(text, TOOLS)


def test_a_thought_that_does_not_end_is_refused():
    with pytest.raises(ValueError, match="does not end"):
        read_assistant_text("<think>Oslo. [now()]", TOOLS)


def test_calls_and_a_final_answer_in_one_turn_are_refused():
    with pytest.raises(ValueError, match="calls and a final answer"):
        read_assistant_text("Thought: Oslo.\nAction: now\nAction Input: {}\nFinal Answer: Rain.", TOOLS)


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
scalars = (
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | words
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=2), max_leaves=6
)
keys = st.sampled_from(["city", "days", "x_1"])
some_calls = st.lists(
    st.builds(Call, st.sampled_from(["get_weather", "now"]), st.dictionaries(keys, values, max_size=3)),
    min_size=1,
    max_size=3,
)


def as_dict(call, name="name", arguments="arguments"):
    return {name: call.name, arguments: call.arguments}


def dumped(value):
    return json.dumps(value, ensure_ascii=False)


RENDERINGS = {
    "python": render_calls,
    "lines": lambda calls: "\n".join(render_calls([call])[1:-1] for call in calls),
    "semicolons": lambda calls: "; ".join(render_calls([call])[1:-1] for call in calls),
    "fence": lambda calls: f"```python\n{render_calls(calls)}\n```",
    "json": lambda calls: dumped([as_dict(call) for call in calls]),
    "json of several lines": lambda calls: json.dumps([as_dict(call) for call in calls], indent=2),
    "parameters": lambda calls: dumped([as_dict(call, arguments="parameters") for call in calls]),
    "trailing commas": lambda calls: "[" + "".join(dumped(as_dict(call))[:-1] + ",}," for call in calls) + "]",
    "repr": lambda calls: repr([as_dict(call) for call in calls]),
    "arguments as text": lambda calls: dumped([{"name": c.name, "arguments": dumped(c.arguments)} for c in calls]),
    "openai": lambda calls: dumped([{"id": "1", "type": "function", "function": as_dict(call)} for call in calls]),
    "hermes": lambda calls: "\n".join(f"<tool_call>\n{dumped(as_dict(call))}\n</tool_call>" for call in calls),
    "hermes repr": lambda calls: "\n".join(f"<tool_call>\n{as_dict(call)!r}\n</tool_call>" for call in calls),
    "words before": lambda calls: (
        "I will.\n" + "".join(f"<tool_call>{dumped(as_dict(call))}</tool_call>" for call in calls)
    ),
    "glaive": lambda calls: "".join(
        f'<functioncall> {{"name": {dumped(c.name)}, "arguments": \'{dumped(c.arguments)}\'}} <|endoftext|>'
        for c in calls
    ),
    "mistral": lambda calls: f"[TOOL_CALLS] {dumped([as_dict(call) for call in calls])}",
    "mistral by name": lambda calls: "".join(f"[TOOL_CALLS]{c.name}[ARGS]{dumped(c.arguments)}" for c in calls),
    "llama": lambda calls: "<|python_tag|>" + "; ".join(dumped(as_dict(c, arguments="parameters")) for c in calls),
    "functools": lambda calls: f"functools{dumped([as_dict(call) for call in calls])}",
    "function tags": lambda calls: "".join(f"<function={c.name}>{dumped(c.arguments)}</function>" for c in calls),
    "qwen agent": lambda calls: "\n".join(f"✿FUNCTION✿: {c.name}\n✿ARGS✿: {dumped(c.arguments)}" for c in calls),
}


@pytest.mark.parametrize("name", RENDERINGS)
@settings(max_examples=25, deadline=None)
@given(calls=some_calls)
def test_any_calls_are_read_back_or_refused(name, calls):
    text = RENDERINGS[name](calls)
    try:
        before, found = read_answer(text, [WEATHER, NOW])
    except ValueError:
        return
    assert found is not None
    assert [repr(call) for call in found] == [repr(call) for call in calls]  # repr tells 1 from 1.0 and from True
    assert before == ("I will." if name == "words before" else "")


@pytest.mark.parametrize("name", RENDERINGS)
def test_no_rendering_is_always_refused(name):
    calls = [Call("get_weather", {"city": 'it\'s; a [b](c="d"), </tool_call> ```', "days": 3}), Call("now", {})]
    assert read_answer(RENDERINGS[name](calls), TOOLS)[1] == calls


@settings(max_examples=200, deadline=None)
@given(city=words.filter(lambda text: not any(tag in text for tag in ("</", "<p", "<arg", "\r"))), days=st.integers())
def test_values_of_xml_have_the_types_of_the_schema(city, days):
    calls = [Call("get_weather", {"city": city, "days": days})]
    qwen = (
        f"<tool_call>\n<function=get_weather>\n<parameter=city>\n{city}\n</parameter>\n"
        f"<parameter=days>\n{days}\n</parameter>\n</function>\n</tool_call>"
    )
    glm = (
        f"<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>{city}</arg_value>\n"
        f"<arg_key>days</arg_key>\n<arg_value>{days}</arg_value>\n</tool_call>"
    )
    assert read_answer(qwen, TOOLS) == ("", calls)
    assert read_answer(glm, TOOLS) == ("", calls)


@settings(max_examples=200, deadline=None)
@given(text=st.text("abc XYZ.,:;!?'\"()[]{}<>/\n0123456789_=-", max_size=80))
def test_text_without_marks_and_offered_names_is_plain(text):
    try:
        before, calls = read_answer(text, [WEATHER])
    except ValueError:  # `[X(` begins like calls
        assert marks.PYTHON.match(text)
        return
    if calls is None:
        assert before == text.strip()
    else:  # the whole text is calls, of tools that are not offered: what checks the row refuses it
        assert not before and "get_weather" not in {call.name for call in calls}


@settings(max_examples=200, deadline=None)
@given(value=values)
def test_values_are_read_from_json_and_from_python(value):
    assert repr(read_whole(dumped(value))) == repr(read_whole(repr(value))) == repr(value)


def test_values_of_xml_that_say_whether_they_are_texts():
    """DeepSeek's attribute, which says more than the tool declares."""
    call = '<invoke name="get_weather"><parameter name="{}" string="{}">12</parameter></invoke>'
    for key, string, value in (("days", "true", "12"), ("days", "false", 12), ("other", "true", "12")):
        assert read_answer(call.format(key, string), TOOLS) == ("", [Call("get_weather", {key: value})])


def test_a_nullable_string_of_xml_stays_a_text():
    tool = {"name": "f", "parameters": {"properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}}
    call = "<tool_call>\n<function=f>\n<parameter=a>\n{}\n</parameter>\n</function>\n</tool_call>"
    assert read_answer(call.format("12"), [tool]) == ("", [Call("f", {"a": "12"})])
    with pytest.raises(ValueError, match="declares null or string"):  # which of the two is meant
        read_answer(call.format("null"), [tool])


@pytest.mark.parametrize(
    "parameters",
    [
        {
            "$ref": "#/$defs/Stay",
            "$defs": {"Stay": {"properties": {"a": {"type": "string"}, "n": {"type": "integer"}}}},
        },
        {"allOf": [{"properties": {"a": {"type": "string"}}}, {"properties": {"n": {"type": "integer"}}}]},
        {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/A"}, "n": {"allOf": [{"type": "integer"}]}},
            "$defs": {"A": {"type": "string"}},  # as pydantic writes fields of a class
        },
    ],
)
def test_values_of_xml_have_types_that_a_schema_refers_to(parameters):
    call = "<function=f>\n<parameter=a>\n12\n</parameter>\n<parameter=n>\n3\n</parameter>\n</function>"
    assert read_answer(call, [{"name": "f", "parameters": parameters}]) == ("", [Call("f", {"a": "12", "n": 3})])


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"a": "string", "n": {"type": "integer"}}},  # a text without an object's type above it
        {"a": {"anyOf": ["string", "null"]}, "n": {"oneOf": ["integer", "null"]}},
        {"a": {"type": {"type": "string"}}, "n": {"anyOf": {"type": "integer"}}},
        {"a": [{"type": "string"}], "n": {"type": [{"type": "integer"}]}},
    ],
)
def test_values_of_xml_have_types_that_are_declared_loosely(parameters):
    call = "<function=f>\n<parameter=a>\n12\n</parameter>\n<parameter=n>\n3\n</parameter>\n</function>"
    assert read_answer(call, [{"name": "f", "parameters": parameters}]) == ("", [Call("f", {"a": "12", "n": 3})])


def test_calls_of_json_values():
    assert (
        calls_of([{"name": "f"}, {"name": "f", "arguments": None}, {"name": "f", "arguments": ""}])
        == [Call("f", {})] * 3
    )
    assert calls_of({"name": "functions.f"}, {"f"}) == [Call("f", {})]  # what servers put before a name
    assert calls_of({"name": "functions.f"}, {"functions.f", "f"}) == [Call("functions.f", {})]
    with pytest.raises(ValueError, match="has the key 'note', which is not known"):
        calls_of({"function": {"name": "f"}, "note": "x"})
    with pytest.raises(ValueError, match="as BFCL writes the values that it accepts"):
        calls_of([{"f": {"city": ["Oslo", "oslo"]}}], {"f"})
    with pytest.raises(ValueError, match="a call needs a name"):
        calls_of({"arguments": {}})
    with pytest.raises(ValueError, match="must be an object"):
        calls_of([5])

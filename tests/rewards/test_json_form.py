"""The JSON forms of an answer: a list, one object, and `<tool_call>` blocks."""

import json

import pytest

from rewards import Call, as_calls, dump_calls, parse_calls, render_calls

OBJECT = '{"name": "f", "arguments": {"a": 1}}'
BLOCK = f"<tool_call>{OBJECT}</tool_call>"
F = Call("f", {"a": 1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (OBJECT, [F]),
        (f"[{OBJECT}]", [F]),
        (f"[ \n {OBJECT} , {OBJECT} \n]", [F, F]),
        ('{"arguments": {"a": 1}, "name": "f"}', [F]),
        ('[{"name": "f", "arguments": {}}]', [Call("f", {})]),
        (
            '[{"name": "Get League", "arguments": {"ref-number": null, "from": "é\\u00e9\\/"}}]',
            [Call("Get League", {"ref-number": None, "from": "éé/"})],
        ),
        ('{"name": "", "arguments": {"": []}}', [Call("", {"": []})]),
        ('{"name": "f", "arguments": {"a": "}]</tool_call>[{"}}', [Call("f", {"a": "}]</tool_call>[{"})]),
        (r'{"name": "f", "arguments": {"a": "\\\"[[[["}}', [Call("f", {"a": '\\"[[[['})]),
        ('{"name": "f", "arguments": {"a": "\\ud800"}}', [Call("f", {"a": "\ud800"})]),
        (BLOCK, [F]),
        (f"<tool_call>\n{OBJECT}\n</tool_call>", [F]),
        (f"{BLOCK}{BLOCK}", [F, F]),
        (f"{BLOCK}\n\n <tool_call> {OBJECT}\n </tool_call>", [F, F]),
        (
            '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>',
            [Call("f", {"a": "</tool_call>"})],
        ),
    ],
)
def test_accepted(text, expected):
    calls, error = parse_calls(text)
    assert error is None
    assert repr(calls) == repr(expected)


@pytest.mark.parametrize(
    "text",
    [
        f"{OBJECT}.",
        f"{OBJECT} and done",
        f"{OBJECT}{OBJECT}",
        f"{OBJECT}\n{OBJECT}",
        f"{OBJECT}, {OBJECT}",
        f"[{OBJECT}",
        f"{OBJECT}]",
        f"[{OBJECT}]]",
        f"[{OBJECT},]",
        f"[{OBJECT} {OBJECT}]",
        f"[[{OBJECT}]]",
        f"[{OBJECT}, 1]",
        f"[{OBJECT}, null]",
        f"[{OBJECT}, f(a=1)]",
        f"[f(a=1), {OBJECT}]",
        f"[{OBJECT}] [f(a=1)]",
        f"[{OBJECT}] // call",
        f'"{OBJECT}"',
        json.dumps(OBJECT),
        json.dumps([OBJECT]),
        "{",
        "[{",
        "{}",
        "[{}]",
        '{"name": "f"}',
        '{"arguments": {"a": 1}}',
        '{"name": "f", "a": 1}',
        '{"name": "f", "parameters": {"a": 1}}',
        '{"function": "f", "arguments": {"a": 1}}',
        '{"Name": "f", "Arguments": {"a": 1}}',
        '{"f": {"a": 1}}',
        '{"name": "f", "arguments": {"a": 1}, "id": 1}',
        '{"name": "f", "arguments": {"a": 1}, "parameters": {"a": 1}}',
        '{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}',
        f'{{"tool_calls": [{OBJECT}]}}',
        '{"name": "f", "arguments": "{\\"a\\": 1}"}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": []}',
        '{"name": "f", "arguments": null}',
        '{"name": "f", "arguments": 1}',
        '{"name": null, "arguments": {}}',
        '{"name": 1, "arguments": {}}',
        '{"name": ["f"], "arguments": {}}',
        '{"name": {}, "arguments": {}}',
        '{"name": "f", "name": "f", "arguments": {}}',
        '{"name": "f", "arguments": {}, "arguments": {"a": 1}}',
        '{"name": "f", "arguments": {"a": 1, "a": 1}}',
        '{"name": "f", "arguments": {"a": {"b": 1, "b": 2}}}',
        '{"name": "f", "arguments": {"a": 1, "\\u0061": 1}}',
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"name": "f", "arguments": {"a": Infinity}}',
        '{"name": "f", "arguments": {"a": -Infinity}}',
        '{"name": "f", "arguments": {"a": 1e999}}',
        '{"name": "f", "arguments": {"a": -1e999}}',
        '{"name": "f", "arguments": {"a": True}}',
        '{"name": "f", "arguments": {"a": None}}',
        '{"name": "f", "arguments": {"a": +1}}',
        '{"name": "f", "arguments": {"a": 01}}',
        '{"name": "f", "arguments": {"a": 1_000}}',
        '{"name": "f", "arguments": {"a": .5}}',
        '{"name": "f", "arguments": {"a": 5.}}',
        '{"name": "f", "arguments": {"a": 0x1}}',
        '{"name": "f", "arguments": {"a": 1+1}}',
        '{"name": "f", "arguments": {"a": (1, 2)}}',
        '{"name": "f", "arguments": {"a": 1,}}',
        '{"name": "f", "arguments": {"a": "x\ny"}}',
        '{"name": "f", "arguments": {"a": "\\x41"}}',
        '{"name": "f", "arguments": {a: 1}}',
        "{'name': 'f', 'arguments': {'a': 1}}",
        '{"name": "f", /* call */ "arguments": {}}',
        '{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}",
        '{"name": "f", "arguments": {"a": ' + "[" * 10_000 + "]" * 10_000 + "}}",
        '[{"a":' * 2000,
        "<tool_call>",
        "</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>5</tool_call>",
        "<tool_call>[]</tool_call>",
        f"<tool_call>[{OBJECT}]</tool_call>",
        f"<tool_call>{OBJECT}{OBJECT}</tool_call>",
        f"<tool_call>{OBJECT}\n{OBJECT}</tool_call>",
        "<tool_call>[f(a=1)]</tool_call>",
        "<tool_call>f(a=1)</tool_call>",
        f"<tool_call>{OBJECT}",
        f"{OBJECT}</tool_call>",
        f"<tool_call>{OBJECT}</tool_call",
        f"<tool_call>{OBJECT}<tool_call>",
        f"<tool_call><tool_call>{OBJECT}</tool_call></tool_call>",
        f"<TOOL_CALL>{OBJECT}</TOOL_CALL>",
        f"<toolcall>{OBJECT}</toolcall>",
        f"<functioncall> {OBJECT} </functioncall>",
        f"{BLOCK},{BLOCK}",
        f"{BLOCK} and {BLOCK}",
        f"{BLOCK} done",
        f"Sure: {BLOCK}",
        f"{BLOCK}[f(a=1)]",
        f"{BLOCK}<tool_call>{{broken</tool_call>",
        f"{BLOCK}<tool_call>",
        f"{BLOCK}</tool_call>",
        f"[{BLOCK}]",
        f"{BLOCK}<|im_end|>",
        f"```json\n[{OBJECT}]\n```",
    ],
    ids=lambda text: text[:60],
)
def test_rejected(text):
    calls, error = parse_calls(text)
    assert calls is None
    assert error and len(error) < 300


@pytest.mark.parametrize(
    "calls",
    [
        [Call("Get League Home Standings", {"ref-number": 1})],
        [Call("f", {"from": "x"}), Call("g", {})],
        [Call("a..b", {})],
        [Call("a.", {})],
        [Call("", {})],
        [Call("f", {"": 1})],
        [Call("None", {})],
        [Call("\ufb01nd", {})],  # not what Python would read back
        [Call("f g", {"a": '"\\\n\x00\x7f\u2028', "é": "é😀"})],
        [Call("f g", {"a": "\ud800", "\udc00": 1})],
        [Call("f g", {"a": -0.0, "b": 1e300, "c": 5e-324, "d": 10**300})],
        [Call("f g", {"a": {"1": None, "b": [True, {}]}})],
    ],
)
def test_unpythonic_names_are_written_as_json(calls):
    text = render_calls(calls)
    assert text.startswith('[{"name": ')
    assert repr(parse_calls(text)[0]) == repr(calls)


def test_json_keeps_characters_as_they_are():
    assert render_calls([Call("f g", {"a": "é😀"})]) == '[{"name": "f g", "arguments": {"a": "é😀"}}]'


def test_python_where_names_allow_it():
    calls = [Call("a.b", {"x": "it's", "y": [1, 2.0, None], "é": {"k": True}}), Call("match", {"type": "\ud83d\ude00"})]
    text = render_calls(calls)
    assert text == """[a.b(x="it's", y=[1, 2.0, None], é={'k': True}), match(type='\\ud83d\\ude00')]"""
    assert repr(parse_calls(text)[0]) == repr(calls)
    assert render_calls([]) == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        {"a": float("nan")},
        {"a": [float("inf")]},
        {"a": {1: 2}},
        {"a": {True: 2}},
        {"a": b"x"},
        {"a": {1, 2}},
        {"a": 1j},
        {"a": ...},
        {1: 2},
        {"a b": "\ud83d\ude00"},
    ],
)
def test_what_no_text_can_say_is_an_error(arguments):
    with pytest.raises(ValueError):
        render_calls([Call("f", arguments)])


def test_json_and_python_read_the_same():
    calls, _ = parse_calls("[f(a=[1, 2.0, True, None, {'x': 'é'}])]")
    text = json.dumps([{"name": "f", "arguments": {"a": [1, 2.0, True, None, {"x": "é"}]}}])
    assert repr(parse_calls(text)[0]) == repr(calls)


def test_calls_are_dumped_as_the_json_that_is_read():
    calls = [Call("f", {"city": "Örebro", "days": [1, None]}), Call("g", {})]
    text = '[{"name": "f", "arguments": {"city": "Örebro", "days": [1, null]}}, {"name": "g", "arguments": {}}]'
    assert dump_calls(calls) == text and as_calls(text) == calls


def test_as_calls_copies_and_turns_tuples_into_lists():
    arguments = {"a": (1, [2])}
    [call] = as_calls([Call("f", arguments)])
    assert call == Call("f", {"a": [1, [2]]})
    call.arguments["a"][1].append(3)
    assert arguments == {"a": (1, [2])}

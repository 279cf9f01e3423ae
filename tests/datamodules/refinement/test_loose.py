import json
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datamodules.refinement.loose import read_loosely
from rewards import Call, as_calls, match_calls, parse_calls

TWO = [Call("get_weather", {"city": "Paris", "days": 2}), Call("h.stop", {"now": True, "ids": [1, 2]})]
TYPES = {"get_weather": {"city": "str", "days": "int"}, "h.stop": {"now": "bool", "ids": "List[int]"}}
TOOLS = [{"name": n, "parameters": {k: {"type": t} for k, t in types.items()}} for n, types in TYPES.items()]
DICTS = [{"name": call.name, "arguments": call.arguments} for call in TWO]


@pytest.mark.parametrize(
    "text",
    [
        "[get_weather(city='Paris', days=2), h.stop(now=True, ids=[1, 2])]",
        "[get_weather(city='Paris', days=2), h.stop(now=True, ids=[1, 2])",
        "[get_weather(city='Paris', days=2), h.stop(now=True, ids=[1, 2]",
        "get_weather(city='Paris', days=2), h.stop(now=True, ids=[1, 2])",
        "[get_weather(city=Paris, days=2), h.stop(now=True, ids=[1, 2])]",
        "[get_weather('city'='Paris', \"days\"=2), h.stop('now'=True, 'ids'=[1, 2])]",
        "Here you are: [get_weather(city='Paris', days=2), h.stop(now=True, ids=[1, 2])]. Enjoy!",
        "```python\n[get_weather(city='Paris', days=2), h.stop(now=True, ids=[1, 2])]\n```",
        f"```json\n{json.dumps(DICTS)}\n```",
        str(DICTS),
        json.dumps(json.dumps(DICTS)),
        json.dumps(DICTS).replace("arguments", "parameters"),
        json.dumps(DICTS)[:-1],
    ],
)
def test_what_is_almost_right_is_read(text):
    assert read_loosely(text, TOOLS) == TWO


@pytest.mark.parametrize("text", ["", "I cannot help with that.", "[]", '"', "[1, 2]", '[{"arguments": {}}]', "("])
def test_what_is_no_call_is_not(text):
    assert read_loosely(text, TOOLS) is None


def test_nothing_is_executed():
    assert read_loosely("[get_weather(city=__import__('os').getcwd(), days=1)]", TOOLS) is None


@given(st.text(alphabet="[](){}'\"\\=,:` \nfa1", max_size=60))
def test_whatever_the_text_it_never_raises(text):
    calls = read_loosely(text, TOOLS)
    assert calls is None or as_calls(calls)


WEATHER = [{"name": "f", "parameters": {"city": {"type": "str"}, "unit": {"type": "str, optional"}}}]
WEATHER += [{"name": "Weather Lookup", "parameters": {"city": {"type": "str"}}}]
BLOCK = '<tool_call>{"name": "f", "arguments": {"city": "%s"}}</tool_call>'


@pytest.mark.parametrize(
    "text, calls",
    [
        ("[f(city='Oslo', unit=null)]", [Call("f", {"city": "Oslo", "unit": None})]),
        ("[f(city=Oslo, unit=null)]", None),  # the word, or nothing
        ("[f(city=6.10, 'unit'='x')]", None),  # read as a number it would lose its nought
        ("[f(city=6.10, unit=x)]", [Call("f", {"city": "6.10", "unit": "x"})]),
        (f"So: {BLOCK % 'Oslo'}{BLOCK % 'Bergen'}", [Call("f", {"city": "Oslo"}), Call("f", {"city": "Bergen"})]),
        (f"{BLOCK % 'Oslo'} and {BLOCK % 'Bergen'}", None),
        (f"{BLOCK % 'Oslo'}<tool_call>oops</tool_call>", None),
        ('Here: [f(city="a, unit=2")].', [Call("f", {"city": "a, unit=2"})]),
        ("[Weather Lookup(city=Oslo)]", [Call("Weather Lookup", {"city": "Oslo"})]),
        ("[Other Lookup(city='Oslo')]", None),
        ("I call [f(city='Oslo')] and then [f(city='Bergen')]", None),
        ("[f(city=Oslo, town=x)]", None),
        ("[f(city=['Os', 'lo'", None),  # a value that was cut off
        ("[f(city=what's on), f(city=it's)]", None),
    ],
)
def test_the_meaning_is_kept_or_nothing_is_read(text, calls):
    assert read_loosely(text, WEATHER) == calls


VALUES = {
    "str": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
    | st.text(alphabet="[](){}'\"\\,:` \na1.0", max_size=8)
    | st.sampled_from(["null", "None", "true", "6.10", "1e5", "<tool_call>", "```", "f(a=1)", "], f(a=", ""]),
    "int": st.integers(-(10**20), 10**20),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.booleans(),
    "List[str]": st.lists(st.text(alphabet="ab,'\"] ", max_size=5), max_size=3),
    "Dict": st.dictionaries(st.text(max_size=3), st.none() | st.integers(), max_size=2),
}


@st.composite
def calls_and_tools(draw):
    types = [draw(st.lists(st.sampled_from(list(VALUES)), max_size=3)) for _ in range(2)]
    specs = {f"f{n}.x": {f"a{at}": {"type": text} for at, text in enumerate(texts)} for n, texts in enumerate(types)}
    names = draw(st.lists(st.sampled_from(list(specs)), min_size=1, max_size=3))
    calls = [Call(n, {k: draw(VALUES[spec["type"]]) for k, spec in specs[n].items()}) for n in names]
    return calls, [{"name": name, "parameters": spec} for name, spec in specs.items()]


def written(calls, name=str, value=repr):
    inside = [", ".join(f"{name(k)}={value(v)}" for k, v in call.arguments.items()) for call in calls]
    return "[" + ", ".join(f"{call.name}({text})" for call, text in zip(calls, inside, strict=True)) + "]"


def dumped(calls):
    return json.dumps([{"name": call.name, "arguments": call.arguments} for call in calls])


RENDERINGS = {
    "fenced": lambda calls: f"```json\n{dumped(calls)}\n```",
    "fenced Python": lambda calls: f"```python\n{written(calls)}\n```",
    "sentences around": lambda calls: f"Here is what's needed: {written(calls)}. Enjoy!",
    "a sentence before JSON": lambda calls: f"Here it is: {dumped(calls)}",
    "list not closed": lambda calls: written(calls)[:-1],
    "call not closed": lambda calls: written(calls)[:-2],
    "JSON not closed": lambda calls: dumped(calls)[:-1],
    "Python dicts": lambda calls: str([{"name": call.name, "arguments": call.arguments} for call in calls]),
    "JSON in a string": lambda calls: json.dumps(dumped(calls)),
    "other keys": lambda calls: json.dumps([{"function": c.name, "parameters": c.arguments} for c in calls]),
    "quoted names": lambda calls: written(calls, name=repr),
    "JSON values": lambda calls: written(calls, value=json.dumps),
    "a call a line": lambda calls: written(calls)[1:-1].replace("), f", ")\nf"),
    "blocks": lambda calls: "So:" + "".join(
        f"<tool_call>{json.dumps({'name': c.name, 'arguments': c.arguments})}</tool_call>" for c in calls
    ),
    "no quotes": lambda calls: written(calls, value=str),
}  # fmt: skip


@pytest.mark.parametrize("rendering", RENDERINGS)
@given(made=calls_and_tools())
@settings(max_examples=50, deadline=None)
def test_calls_written_loosely_are_read_as_they_were_or_not_at_all(rendering, made):
    calls, tools = made
    text = RENDERINGS[rendering](calls)
    texts = [value for call in calls for value in call.arguments.values() if isinstance(value, str)]
    # A text with quotes of its own around it that gets no others is written as the one within them is.
    assume(rendering != "no quotes" or not any(re.fullmatch(r"""\s*(["']).*\1\s*""", text, re.S) for text in texts))
    assume(parse_calls(text)[0] is None)  # else there is nothing loose about it
    read = read_loosely(text, tools)
    assert read is None or match_calls(read, calls, tools).matched

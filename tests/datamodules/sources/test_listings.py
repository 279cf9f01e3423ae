"""Tools that a system's text lists in several places, and what in it is no tool."""

import json

import pytest

from datamodules.example import BadRow
from datamodules.rows import to_example

CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"name": "get_weather", "description": "Get the weather.", "parameters": CITY}
NOW = {"name": "now", "description": "Tell the time.", "parameters": {"type": "object", "properties": {}}}
WIND = {"name": "wind", "description": "Get the wind.", "parameters": CITY}
TOOLS = [WEATHER, NOW, WIND]
DUMPED = [json.dumps(tool) for tool in TOOLS]


def read(system):
    """The tools on offer, and what is left of the system's text."""
    chat = [{"role": "system", "content": system}, {"role": "user", "content": "Hi"}]
    example = to_example({"messages": [*chat, {"role": "assistant", "content": "Hello."}]})
    return json.loads(example.tools), [turn["content"] for turn in json.loads(example.history)]


@pytest.mark.parametrize(
    "text",
    [
        f"Be kind.\nOf the sky:\n{json.dumps([WEATHER])}\nOthers:\n{json.dumps([NOW, WIND])}",
        "Be kind.\n" + "".join(f"## {t['name']}\n\n{json.dumps(t, indent=4)}\n\n" for t in TOOLS),  # GLM-4's
        "Be kind.\n" + "\n".join(f"- {tool}" for tool in DUMPED),
        "Be kind.\n" + "\n".join(f"Tool {number}: {tool}" for number, tool in enumerate(DUMPED)),
        "Be kind.\n" + "\n".join(f"<tools>{tool}</tools>" for tool in DUMPED),
        "Be kind.\n<tools>\n" + "\n".join(f"<tool>{tool}</tool>" for tool in DUMPED) + "\n</tools>",
        "Be kind.\n" + "\nAnd:\n".join(repr({"type": "function", "function": tool}) for tool in TOOLS),
    ],
)
def test_tools_in_several_places(text):
    """Those after the first place were lost."""
    assert read(text) == (TOOLS, ["Be kind."])


@pytest.mark.parametrize(
    "other",
    [
        {"name": "get_weather", "parameters": {"city": "Oslo"}},  # a call
        {"name": "get_wind", "parameters": {"city": "Oslo"}},
        {"name": "Lamp", "description": "A bright one."},
        {"name": "get_weather", "description": "Again.", "parameters": CITY},
    ],
)
def test_what_follows_the_tools_and_is_none(other):
    text = f"{json.dumps([WEATHER])}\nBe kind.\n{json.dumps([other])}"
    assert read(text) == ([WEATHER], ["Be kind."])


@pytest.mark.parametrize("others", ["In this order:\n- now\n- get_weather\nFirst tool: now. Second: `wind`."])
def test_names_of_tools_that_are_no_headings_stay(others):
    """Wherever a line or sentence was a tool's name, it was left out."""
    for text in (f"{others}\n{json.dumps(TOOLS)}", f"{json.dumps(TOOLS)}\n{others}"):
        assert read(text) == (TOOLS, [others])


def test_lines_in_brackets_are_no_examples_of_calls():
    """Every line that began with a bracket was taken for one, and left out."""
    text = f"{json.dumps(TOOLS)}\n[Important] Never book without consent.\n[f(a=1), g()]\n{{'name': 'f'}}"
    assert read(text) == (TOOLS, ["[Important] Never book without consent."])


@pytest.mark.parametrize(
    "parameter",
    [
        {"name": "city", "description": "The city.", "required": True, "schema": {"type": "string"}},
        {"name": "city", "description": "The city.", "type": "string"},
        {"name": "city", "description": "The city.", "type": "List[int]"},
    ],
)
def test_parameters_of_a_tool_are_no_tools(parameter):
    """Qwen's prompts name a tool in words and list its parameters; these were on offer."""
    text = f"You have these APIs:\nget_weather: Call this tool. Parameters: {json.dumps([parameter])}"
    with pytest.raises(BadRow, match="neither a tools column nor a JSON list of tools"):
        read(text)


BROKEN = DUMPED[1].replace(": {", " {", 1)


@pytest.mark.parametrize(
    "text",
    [
        f"[{DUMPED[0]}, {BROKEN}, {DUMPED[2]}]",
        f"[{DUMPED[0]}, {BROKEN}]",
        f"[{DUMPED[0]}, 5]",
        f"<tools>\n{DUMPED[0]}\n{BROKEN}\n{DUMPED[2]}\n</tools>",
        f"<tools>\n{BROKEN}\n{DUMPED[2]}\n</tools>",
    ],
)
def test_a_list_in_which_a_tool_cannot_be_read_is_refused(text):
    """The others alone were on offer."""
    with pytest.raises(BadRow, match="tools"):
        read(f"Be kind.\n{text}")
    with pytest.raises(BadRow, match="tools"):
        to_example({"query": "Hi", "tools": text, "answers": "[]"})
    with pytest.raises(BadRow, match="tools are readable neither as JSON nor as a Python literal"):
        to_example({"query": "Hi", "tools": f"{DUMPED[0]}\n{BROKEN}", "answers": "[]"})


@pytest.mark.parametrize("more", [{}, {"properties": {"city": {"type": "string"}}}])
def test_a_tool_that_is_the_schema_of_its_arguments_is_no_parameter(more):
    tool = {"name": "now", "description": "Tell the time.", "type": "object"} | more
    assert read(json.dumps([tool])) == ([tool], [])


def test_a_parameter_that_is_listed_twice():
    tools = [{"name": "f", "parameters": [{"name": "a", "type": "string"}] * count} for count in (1, 2)]
    once, twice = (to_example({"query": "Hi", "tools": [tool], "answers": "[]"}).tools for tool in tools)
    assert once == twice


def test_parameters_of_one_name_are_refused():
    tool = {"name": "f", "parameters": [{"name": "a", "type": "string"}, {"name": "a", "type": "integer"}]}
    with pytest.raises(BadRow, match="the parameters of 'f' have 'a' more than once"):
        to_example({"query": "Hi", "tools": [tool], "answers": "[]"})

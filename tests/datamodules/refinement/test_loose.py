import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.refinement.loose import read_loosely
from rewards import Call, as_calls

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

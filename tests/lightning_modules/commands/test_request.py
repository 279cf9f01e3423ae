"""A request as a row."""

import json

import pytest

from lightning_modules.commands.request import request

TOOLS = json.dumps([{"name": "f", "description": "", "parameters": {"a": {"type": "int", "required": True}}}])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("", TOOLS), "'query': is empty"),
        (("q", "{"), "the tools cannot be read"),
        (("q", TOOLS, "f("), "the reference cannot be read as calls"),
        (("q", TOOLS, "[g()]"), "calls 'g', which is not among the tools"),
        (("q", TOOLS, "", "{}"), "must be a list of turns"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(fields, message):
    with pytest.raises(ValueError, match=message):
        request(*fields)


def test_a_reference_is_read_as_python_and_as_json():
    calls = [{"name": "f", "arguments": {"a": 1}}]
    assert json.loads(request("q", TOOLS, "[f(a=1)]").answers) == calls
    assert json.loads(request("q", TOOLS, json.dumps(calls)).answers) == calls
    assert request("q", "", " []").answers == "[]" and request("q", "").answers == ""

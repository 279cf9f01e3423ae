"""Turns of a chat: which belong together, and in which order they stand."""

import json

import pytest

from datamodules.example import BadRow
from datamodules.rows import read_raw

NAMES = ("get_weather", "now")
TOOLS = [{"name": name, "description": name, "parameters": {"type": "object", "properties": {}}} for name in NAMES]
ASK = {"role": "user", "content": "Hi"}


def said(content=None, **keys):
    return {"role": "assistant", "content": content, **keys}


def read(*messages, turns="last", **columns):
    return read_raw({"messages": list(messages), "tools": TOOLS} | columns, turns)


def test_words_before_an_empty_list_of_calls_are_its_thought():
    """They were lost."""
    for turns in ([said("None fits. <TOOLCALL>[]</TOOLCALL>")], [said("None fits."), said("[]")]):
        (example,) = read(ASK, *turns).examples
        assert (example.answers, example.cot, example.response) == ("[]", "None fits.", "")


def test_words_after_an_empty_list_of_calls_belong_to_no_answer():
    reading = read(ASK, said("[]"), said("Sorry."))
    assert (reading.examples[0].answers, reading.examples[0].cot, reading.examples[0].response) == ("[]", "", "")
    assert reading.notes["left out/assistant turns that are no target"] == 1


@pytest.mark.parametrize(
    "called",
    [
        said(tool_calls=[{"id": name[0], "function": {"name": name}} for name in NAMES]),
        {"role": "model", "parts": [{"functionCall": {"id": name[0], "name": name, "args": {}}} for name in NAMES]},
    ],
)
def test_results_that_have_the_name_of_a_call_that_has_an_id(called):
    results = [{"role": "tool", "name": name, "content": f"of {name}"} for name in reversed(NAMES)]
    history = json.loads(read(ASK, called, *results, said("ok"), turns="every").examples[1].history)
    assert [turn["content"] for turn in history[2:]] == ["of get_weather", "of now"]


@pytest.mark.parametrize("keys", [("human", "assistant"), ("assistant", "human"), ("assistant", "user")])
def test_pairs_whose_keys_are_sorted(keys):
    pairs = [{key: {"assistant": "Hello."}.get(key, "Hi") for key in keys} for _ in "12"]
    example = read(*pairs).examples[0]
    assert [turn["role"] for turn in json.loads(example.history)] == ["user", "assistant"]
    assert (example.query, example.response) == ("Hi", "Hello.")


def test_a_column_of_thought_is_that_of_the_last_answer_alone():
    """It was given to the call before the answer, where that is the target."""
    chat = [ASK, said("[now()]"), {"role": "tool", "content": "12"}, said("Noon.")]
    last = read(*chat, cot="It is 12.")
    assert (last.examples[0].cot, last.notes["unused/cot"]) == ("", 1)
    every = read(*chat, cot="It is 12.", turns="every")
    assert ([example.cot for example in every.examples], every.notes["unused/cot"]) == (["", "It is 12."], 0)


def test_the_roles_of_a_history_are_those_of_other_projects():
    """They stood in the prompt as they are."""
    history = [
        {"role": "human", "content": "Hi"},
        {"role": "gpt", "content": "[now()]"},
        {"role": "ipython", "content": "12"},
    ]
    for value in (history, json.dumps(history)):
        example = read_raw({"query": "And now?", "tools": TOOLS, "answers": [], "history": value}).examples[0]
        assert json.loads(example.history) == [
            {"role": role, "content": turn["content"]}
            for role, turn in zip(("user", "assistant", "tool"), history, strict=True)
        ]


def test_a_history_with_the_marks_of_other_projects():
    """It stood in the prompt as it is, in another syntax than that of the answer."""
    history = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": '<think>Hm.</think><tool_call>{"name": "now", "arguments": {}}</tool_call>'},
        {"role": "tool", "content": "<tool_response>12</tool_response>"},
        {"role": "assistant", "content": "Noon."},
    ]
    reading = read_raw({"query": "And now?", "tools": TOOLS, "answers": [], "history": history})
    ours = [turn["content"] for turn in json.loads(reading.examples[0].history)]
    assert ours == ["Hi", "[now()]", "12", "Noon."]
    assert reading.notes["left out/chains of thought of earlier turns"] == 1


@pytest.mark.parametrize(
    "picture",
    [
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "image", "source": {}},
        {"image": {"format": "png", "source": {}}},
        {"inlineData": {"data": ""}},
        {"type": "image"},
        {"type": "image", "data": "", "mimeType": "image/png"},
    ],
)
def test_pictures_that_a_tool_gave_back_are_refused(picture):
    """They stood in the history as JSON."""
    for content in ([picture], [{"type": "text", "text": "See:"}, picture]):
        with pytest.raises(
            BadRow, match=r"turn 3 has a part of the type '(image_url|image|inlineData)', which is not read"
        ):
            read(ASK, said("[now()]"), {"role": "tool", "content": content}, said("ok"), turns="every")
    own = [
        *({"image": "a.png"}, {"kind": "image"}, {"image": {"name": "debian"}, "id": 1}),
        *({"image": {"id": 1}, "sold": True}, {"image": {"data": "a"}, "sold": True}),
        *({"type": "image", "title": "A cat"}, {"type": "media", "name": "NRK", "url": "nrk.no"}),
    ]  # objects of the tool
    history = (
        read(ASK, said("[now()]"), {"role": "tool", "content": own}, said("ok"), turns="every").examples[1].history
    )
    assert json.loads(history)[-1] == {"role": "tool", "content": json.dumps(own)}


def test_messages_that_say_their_type_beside_their_role():
    """A thought was an answer, and a result a request."""
    thought = {"role": "assistant", "type": "thinking", "content": "Hm."}
    call = {"role": "assistant", "type": "function_call", "name": "now", "arguments": "{}"}
    result = {"role": "user", "type": "tool_result", "content": "12"}
    both = {
        "role": "assistant",
        "type": "function",
        "content": "I look.",
        "tool_calls": [{"function": {"name": "now"}}],
    }
    assert json.loads(read(ASK, both).examples[0].answers) == [{"name": "now", "arguments": {}}]
    first, answer = read(ASK, thought, call, result, said("Noon.", type="message"), turns="every").examples
    assert (first.cot, json.loads(first.answers)) == ("Hm.", [{"name": "now", "arguments": {}}])
    assert (answer.query, answer.response) == ("Hi", "Noon.")
    assert json.loads(answer.history)[-1] == {"role": "tool", "content": "12"}
    for role, kind in (("user", "thinking"), ("assistant", "tool_result"), ("tool", "function_call")):
        with pytest.raises(BadRow, match=f"turn 2 has a role that its type '{kind}' contradicts"):
            read(ASK, {"role": role, "type": kind, "content": "Hm."}, said("ok"))


@pytest.mark.parametrize("key", ["input", "arguments", "parameters", "args"])
@pytest.mark.parametrize("result", ["content", "output", "result"])
def test_parts_whose_keys_have_other_names(key, result):
    """Arguments and results were lost."""
    call = {"type": "tool_use", "id": "c", "name": "now", key: {"zone": "CET"}}
    given = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", result: "12"}]}
    first, answer = read(ASK, said([call]), given, said("Noon."), turns="every").examples
    assert json.loads(first.answers) == [{"name": "now", "arguments": {"zone": "CET"}}]
    assert json.loads(answer.history)[-1] == {"role": "tool", "content": "12"}
    held = {"toolUseId": "c", "name": "now", key: {"zone": "CET"}}
    assert json.loads(read(ASK, said([{"toolUse": held}])).examples[0].answers) == json.loads(first.answers)


def test_a_text_that_is_marked_as_a_thought():
    parts = [{"type": "text", "text": "Hm.", "thought": True}, {"type": "text", "text": "Noon.", "thought": False}]
    (example,) = read(ASK, said(parts)).examples
    assert (example.cot, example.response) == ("Hm.", "Noon.")


def test_a_sentence_in_several_parts_is_one():
    """As servers send what has citations; parts of which each is whole are lines."""
    parts = ("The sky ", "is", " blue", ", they say.", "Bye.", "    - Al", ".Bo")
    example = read(ASK, said([{"type": "text", "text": text} for text in parts])).examples[0]
    assert example.response == "The sky is blue, they say.\nBye.\n    - Al\n.Bo"

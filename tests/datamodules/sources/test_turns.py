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
        *({"type": "image", "title": "A cat"}, {"type": "media", "name": "NRK", "url": "nrk.no"}),
    ]  # objects of the tool
    history = (
        read(ASK, said("[now()]"), {"role": "tool", "content": own}, said("ok"), turns="every").examples[1].history
    )
    assert json.loads(history)[-1] == {"role": "tool", "content": json.dumps(own)}


def test_a_sentence_in_several_parts_is_one():
    """As servers send what has citations; parts of which each is whole are lines."""
    parts = ("The sky ", "is", " blue", ", they say.", "Bye.")
    example = read(ASK, said([{"type": "text", "text": text} for text in parts])).examples[0]
    assert example.response == "The sky is blue, they say.\nBye."

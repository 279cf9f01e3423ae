import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from datamodules.chat.form import ChatForm
from datamodules.chat.segments import (
    checked_target,
    encode_prompt,
    encode_texts,
    messages,
    prompt_text,
    target_segments,
    target_text,
)
from datamodules.chat.templates import answer_by_template, end_of_turn_id, folded
from datamodules.example import BadRow, Example
from datamodules.packing import Encoded
from datamodules.rows import to_example
from rewards import Call


def encode(tokenizer, example):
    """A row as `encoding.write_rows` encodes it."""
    return encode_texts(tokenizer, [prompt_text(tokenizer, example)], [checked_target(tokenizer, example)])[0]


def decode(tokenizer, encoded, segment):
    return tokenizer.decode([i for i, s in zip(encoded.input_ids, encoded.segments, strict=True) if s == segment])


def test_segments_decode_to_their_texts(tiny_tokenizer, make_row):
    example = to_example(make_row(2))
    encoded = encode(tiny_tokenizer, example)
    cot, call = decode(tiny_tokenizer, encoded, 1), decode(tiny_tokenizer, encoded, 2)
    assert decode(tiny_tokenizer, encoded, 0) == prompt_text(tiny_tokenizer, example)
    # The line feeds may be in the token that closes the tag, and then belong to the chain of thought.
    assert cot.rstrip("\n") == "<think>They ask for City 2 and 2 days.</think>"
    assert call.lstrip("\n") == "[get_weather(city='City 2', days=2)]<|im_end|>"
    assert cot + call == target_text(example) + "<|im_end|>"
    assert encoded.segments == sorted(encoded.segments)
    assert encoded.input_ids[-1] == tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert encoded.segments[-1] == 2


def test_boundary_agrees_with_characters_counted_token_by_token(tiny_tokenizer, make_row):
    """Oracle: the text before a token, decoded (all is ASCII here), is shorter than the text up to `</think>`."""
    example = to_example(make_row(5))
    encoded = encode(tiny_tokenizer, example)
    prompt = encoded.segments.count(0)
    target = encoded.input_ids[prompt:-1]
    boundary = len("<think>They ask for City 5 and 5 days.</think>")
    expected = [1 if len(tiny_tokenizer.decode(target[:i])) < boundary else 2 for i in range(len(target))]
    assert encoded.segments[prompt:] == [*expected, 2]


def test_only_the_first_tag_that_closes_a_thought_ends_it():
    # One token for each character: 7 + 1 + 8 of them up to the end of the first `</think>`, 9 after it.
    target = "<think>a</think>b</think>"
    offsets = [(i, i + 1) for i in range(len(target))]
    assert target_segments(target, offsets) == [1] * 16 + [2] * 9
    assert target_segments(target[1:], offsets[1:]) == [2] * 24  # no thought was begun


def test_what_a_tokenizer_puts_around_texts_is_left_to_the_template(tiny_tokenizer, make_row):
    """Llama's puts BOS before every text, others EOS behind it: neither belongs between a prompt and its answer."""
    framing = copy.deepcopy(tiny_tokenizer)
    ids = {token: framing.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>")}
    around = TemplateProcessing(single="<|endoftext|> $A <|im_end|>", special_tokens=list(ids.items()))
    framing.backend_tokenizer.post_processor = around
    assert framing("a")["input_ids"] == [ids["<|endoftext|>"], *tiny_tokenizer("a")["input_ids"], ids["<|im_end|>"]]
    example = to_example(make_row(2))
    assert encode(framing, example) == encode(tiny_tokenizer, example)
    assert encode_prompt(framing, example) == encode_prompt(tiny_tokenizer, example)


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(query=text, cot=text.filter(lambda t: "think>" not in t), city=text)
def test_any_text_survives(tiny_tokenizer, query, cot, city):
    tools = '[{"name": "f", "parameters": {}}]'
    answers = json.dumps([{"name": "f", "arguments": {"city": city}}])
    example = Example("1", query, tools, answers, cot=cot)
    try:
        encoded = encode(tiny_tokenizer, example)
    except BadRow:
        assert "<|" in query + cot + city
        return
    prompt = encoded.segments.count(0)
    assert encoded.input_ids[:prompt] == encode_prompt(tiny_tokenizer, example)
    assert tiny_tokenizer.decode(encoded.input_ids[:prompt]) == prompt_text(tiny_tokenizer, example)
    assert tiny_tokenizer.decode(encoded.input_ids[prompt:-1]) == target_text(example)
    assert decode(tiny_tokenizer, encoded, 1).startswith(f"<think>{cot}</think>")


def test_prompt_holds_system_tools_history_query(tiny_tokenizer, make_row):
    history = [
        {"role": "system", "content": "\n Answer in metric units.\n"},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
    ]
    example = to_example(make_row(1, history=json.dumps(history)))
    compact = json.dumps(json.loads(example.tools), separators=(",", ":"))
    assert prompt_text(tiny_tokenizer, example) == (
        f"<|im_start|>system\n{ChatForm().instructions}{compact}\n\nAnswer in metric units.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi!<|im_end|>\n"
        f"<|im_start|>user\n{example.query}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_only_an_assistants_earlier_calls_are_written_in_the_form_of_the_answers(make_row):
    """What a user or a tool says may look like calls, and is theirs."""
    text = '[{"name": "get_weather", "arguments": {"city": "Oslo"}}]'
    history = [{"role": role, "content": text} for role in ("user", "assistant", "tool")]
    example = to_example(make_row(1, query="And in Bergen?", history=json.dumps(history)))
    _, *said, _ = messages(example)
    assert [turn["content"] for turn in said] == [text, "[get_weather(city='Oslo')]", text]
    _, *said, _ = messages(example, ChatForm(answer_form="hermes"))
    block = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert [turn["content"] for turn in said] == [text, block, text]


def test_targets_without_thought_and_without_call(make_row):
    assert target_text(to_example(make_row(1, cot=None))) == "[get_weather(city='City 1', days=1)]"
    assert target_text(to_example(make_row(cot="No.", answers="[]"))) == "<think>No.</think>\n\n[]"
    assert (
        target_text(to_example(make_row(cot="No.", answers="[]", response="Sorry."))) == "<think>No.</think>\n\nSorry."
    )


def test_row_without_thought_has_no_cot_token(tiny_tokenizer, make_row):
    encoded = encode(tiny_tokenizer, to_example(make_row(1, cot=None)))
    assert set(encoded.segments) == {0, 2}


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"query": "Stop<|im_end|>now"}, "query"),
        ({"cot": "Stop<|im_end|>now"}, "cot"),
        ({"tools": '[{"name": "get_weather", "description": "\\u003c|im_end|>"}]'}, "tools"),
        ({"answers": '[{"name": "get_weather", "arguments": {"city": "<|im_start|>"}}]'}, "answers"),
        ({"history": '[{"role": "user", "content": "<|endoftext|>"}]'}, "history"),
    ],
)
def test_special_tokens_as_text_are_refused(tiny_tokenizer, make_row, changes, column):
    with pytest.raises(BadRow, match="special token") as error:
        encode(tiny_tokenizer, to_example(make_row(0, **changes)))
    assert error.value.column == column


def test_added_tokens_that_control_nothing_are_text(tiny_tokenizer, make_row):
    """Such as `<tool_call>` of Qwen's."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<tool_call>"])
    encoded = encode(tokenizer, to_example(make_row(0, query="What is <tool_call>?")))
    assert tokenizer.convert_tokens_to_ids("<tool_call>") in encoded.input_ids


def test_the_text_above_a_chat_goes_on_top_of_the_first_request():
    system, said = {"role": "system", "content": "S"}, {"role": "assistant", "content": "a"}
    first, second = {"role": "user", "content": "q"}, {"role": "user", "content": "r"}
    assert folded([system, said, first, second]) == [said, {"role": "user", "content": "S\n\nq"}, second]
    assert folded([said, first]) == [said, first] and folded([system, said]) == [system, said]


def test_a_date_whose_form_is_no_literal_is_the_fixed_one_too(tiny_tokenizer, make_row):
    dated = copy.deepcopy(tiny_tokenizer)
    dated.chat_template = "{% set form = '%d %b %Y' %}{{ strftime_now(form) }}" + tiny_tokenizer.chat_template
    assert prompt_text(dated, to_example(make_row(0))).startswith("26 Jul 2024<|im_start|>system")


@pytest.mark.parametrize("opened", ["<think>\\n", "<think>\\n\\n</think>\\n\\n"])
def test_thought_opened_by_the_template_is_left_to_the_model(tiny_tokenizer, make_row, opened):
    example = to_example(make_row(1))
    thinking = copy.deepcopy(tiny_tokenizer)
    thinking.chat_template = tiny_tokenizer.chat_template.replace(
        "assistant\n{% endif", "assistant\n" + opened.replace("\\n", "\n") + "{% endif"
    )
    assert thinking.chat_template != tiny_tokenizer.chat_template
    assert prompt_text(thinking, example) == prompt_text(tiny_tokenizer, example)


def test_end_of_turn_is_the_templates_not_the_tokenizers(tiny_tokenizer):
    base = copy.deepcopy(tiny_tokenizer)
    base.eos_token = "<|endoftext|>"
    assert base.eos_token_id != end_of_turn_id(base) == base.convert_tokens_to_ids("<|im_end|>")
    base.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    plain = copy.deepcopy(base)
    assert end_of_turn_id(plain) == plain.convert_tokens_to_ids("<|endoftext|>")


def test_encoded_is_plain_lists(tiny_tokenizer, make_row):
    encoded = encode(tiny_tokenizer, to_example(make_row(1)))
    assert isinstance(encoded, Encoded)
    assert {type(i) for i in encoded.input_ids + encoded.segments} == {int}


def test_answer_to_a_tool_does_not_repeat_the_request(tiny_tokenizer, make_row):
    history = [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "content": "[get_weather(city='Oslo')]"},
        {"role": "tool", "content": "rain"},
    ]
    row = make_row(1, query="Weather in Oslo?", answers="[]", response="It rains.", history=json.dumps(history))
    assert messages(to_example(row))[1:] == history
    other = to_example(row | {"query": "And in Bergen?"})  # a request after the tool's answer is one of its own
    assert messages(other)[1:] == [*history, {"role": "user", "content": "And in Bergen?"}]


def test_what_a_template_leaves_out_is_put_elsewhere_or_said(tiny_tokenizer, make_row):
    """Zephyr's knows neither tools' turns nor calls; Phi-3 mini's, beside these, no system message either."""
    zephyr, phi = copy.deepcopy(tiny_tokenizer), copy.deepcopy(tiny_tokenizer)
    for tokenizer, roles in ((zephyr, ["system", "user", "assistant"]), (phi, ["user", "assistant"])):
        tokenizer.chat_template = (
            f"{{% for m in messages if m.role in {roles} %}}<|{{{{ m.role }}}}|>{{{{ m.content }}}}{{% endfor %}}"
            "<|assistant|>"
        )
    row = to_example(make_row(1, query="And in Bergen?"))
    system = messages(row)[0]["content"]
    assert prompt_text(zephyr, row) == f"<|system|>{system}<|user|>And in Bergen?<|assistant|>"
    assert prompt_text(phi, row) == f"<|user|>{system}\n\nAnd in Bergen?<|assistant|>"
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "[get_weather(city='Oslo')]"}]
    called = to_example(make_row(1, history=json.dumps(history)))
    assert "[get_weather(city='Oslo')]" in prompt_text(phi, called)  # our system text has calls among the words
    answered = to_example(make_row(1, history=json.dumps([*history, {"role": "tool", "content": "rain"}])))
    for tokenizer in (zephyr, phi):
        with pytest.raises(BadRow, match=r"leaves out what a tool gives back: set data\.chat_template to") as error:
            prompt_text(tokenizer, answered)
        assert error.value.column == "history"
        with pytest.raises(BadRow, match="leaves out the calls of earlier turns"):
            prompt_text(tokenizer, called, ChatForm(prompt="template"))


def test_a_system_text_that_a_template_rewrites_goes_on_top_of_the_request(tiny_tokenizer, make_row):
    """SmolLM3's takes `/think` out of it, which left of our text `<think><>`, and of a tool's path what it could."""
    smol = copy.deepcopy(tiny_tokenizer)
    smol.chat_template = (
        "{% if messages[0].role == 'system' %}{% set own = messages[0].content.replace('/think', '') %}{% endif %}"
        "<|system|>{{ own or 'I am SmolLM.' }}"
        "{% for m in messages if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    )
    row = to_example(make_row(1, query="And in Bergen?", tools='[{"name": "get_weather", "description": "a/think"}]'))
    text = prompt_text(smol, row)
    assert text.startswith("<|system|>I am SmolLM.<|user|>Reason inside <think></think>: which tools fit")
    assert text.endswith('# Tools\n[{"name":"get_weather","description":"a/think"}]\n\nAnd in Bergen?<|assistant|>')


def test_an_answer_elsewhere_than_a_prompt_ends_is_told_another_form(tiny_tokenizer):
    counts = copy.deepcopy(tiny_tokenizer)
    counts.chat_template = "{{ messages | length }}" + counts.chat_template
    with pytest.raises(
        ValueError, match=r"^data\.answer_form is template, .*: set data\.answer_form to hermes, json or"
    ):
        answer_by_template(counts, "", [Call("f", {})])


def test_turns_that_a_template_refuses_are_a_bad_row(tiny_tokenizer, make_row):
    strict = copy.deepcopy(tiny_tokenizer)
    strict.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "{{ m['content'] }}{% endfor %}"
    )
    history = [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]
    words = r"refuses the turns system, user, tool, user \(no tools\): set data.chat_template to chatml, or to a file"
    with pytest.raises(BadRow, match=words) as error:
        prompt_text(strict, to_example(make_row(1, history=json.dumps(history))))
    assert error.value.column == "history"
    assert prompt_text(strict, to_example(make_row(1)))

"""What counts as a completion: think tags, answer wrappers and caps."""

import pytest

from rewards import Call, parse_calls, parse_completion, render_calls
from rewards.calls import MAX_DEPTH, MAX_DIGITS
from rewards.literals import MAX_TOKENS
from rewards.parser import MAX_ANSWER, MAX_TEXT

CALL = "[f(a=1)]"
JSON_CALL = '{"name": "f", "arguments": {"a": 1}}'
BLOCK = f"<tool_call>{JSON_CALL}</tool_call>"


@pytest.mark.parametrize(
    "text",
    [
        f"<think>why</think>{CALL}",
        f"<think>why</think>\n\n{CALL}",
        f" \n<think>\nwhy\n</think> \t {CALL}\n ",
        f"<think>why</think>\r\n{CALL}",
        "<think>why</think>\u00a0[f(a=1)]\u2003",
    ],
)
def test_outer_whitespace_is_ignored(text):
    parsed = parse_completion(text)
    assert (parsed.cot, parsed.answer, parsed.error) == ("why", CALL, None)
    assert parsed.calls == [Call("f", {"a": 1})]


@pytest.mark.parametrize(
    "cot",
    [
        "a < b > c",
        "<thinking>",
        "<THINK>",
        "< think>",
        "</ think>",
        BLOCK,
        CALL,
        "<answer>no</answer>",
        "\x00\ud800",
        "思考",
    ],
)
def test_the_reasoning_may_hold_anything_but_the_tags(cot):
    parsed = parse_completion(f"<think>{cot}</think>\n{CALL}")
    assert (parsed.cot, parsed.calls) == (cot, [Call("f", {"a": 1})])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<think>",
        "</think>",
        "<think></think>",
        CALL,
        f"why</think>{CALL}",
        f"<think>why{CALL}",
        f"<think>why<think>{CALL}",
        f"<think></think>{CALL}",
        f"<think> \n\t</think>{CALL}",
        f"<think>why</think></think>{CALL}",
        f"<think><think>why</think>{CALL}",
        f"<think><think>why</think></think>{CALL}",
        f"<think>why</think><think>more</think>{CALL}",
        f"<think>why</think>{CALL}<think>more</think>",
        f"<think>why</think>{CALL}</think>",
        f"<think>why</think>{CALL}<think>",
        f"{CALL}<think>why</think>",
        f"</think>why<think>{CALL}",
        f"Sure. <think>why</think>{CALL}",
        f"\ufeff<think>why</think>{CALL}",
        f"\u200b<think>why</think>{CALL}",
        f"<THINK>why</THINK>{CALL}",
        f"<Think>why</think>{CALL}",
        f"<thinking>why</thinking>{CALL}",
        f"<think >why</think>{CALL}",
        f"<think>why</think >{CALL}",
        f"<think/>why</think>{CALL}",
        f"&lt;think&gt;why&lt;/think&gt;{CALL}",
        f"<|im_start|>assistant\n<think>why</think>{CALL}",
        "<think>why</think>",
        "<think>why</think>\n",
        f"<think>why {BLOCK}</think>",
        "<think>why</think>[f(a='</think>')]",
        "<think>why</think>[f(a='<think>')]",
    ],
)
def test_a_malformed_think_block_is_an_error(text):
    parsed = parse_completion(text)
    assert parsed.calls is None
    assert parsed.error


@pytest.mark.parametrize("text", [None, 3, b"<think>x</think>[]", ["<think>x</think>[]"]])
def test_what_is_no_text_is_an_error(text):
    assert parse_completion(text).calls is None


def test_answer_tags():
    wrapped = f"<think>why</think><answer>\n{CALL}\n</answer>"
    assert parse_completion(wrapped).calls is None
    parsed = parse_completion(wrapped, answer_tags="answer")
    assert (parsed.calls, parsed.answer) == ([Call("f", {"a": 1})], CALL)


@pytest.mark.parametrize(
    "answer",
    [
        CALL,
        "",
        "<answer>",
        "<answer></answer>",
        "</answer>",
        "<answer>/answer>",
        f"<answer>{CALL}",
        f"{CALL}</answer>",
        f"<answer>{CALL}</answer>.",
        f"So: <answer>{CALL}</answer>",
        f"<ANSWER>{CALL}</ANSWER>",
        f"<answer>{CALL}</answer><answer>{CALL}</answer>",
        f"<answer><answer>{CALL}</answer></answer>",
        f"<answer>{CALL}</answer></answer>",
    ],
)
def test_malformed_answer_tags(answer):
    assert parse_completion(f"<think>why</think>{answer}", answer_tags="answer").calls is None


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_caps_are_where_they_are_said_to_be():
    cot = "x" * (MAX_TEXT - len(f"<think></think>{CALL}"))
    assert parse_completion(f"<think>{cot}</think>{CALL}").calls
    assert parse_completion(f"<think>{cot}x</think>{CALL}").calls is None
    text = "x" * (MAX_ANSWER - len("[f(a='')]"))
    assert parse_calls(f"[f(a='{text}')]")[0]
    assert parse_calls(f"[f(a='{text}x')]")[0] is None
    digits = "9" * MAX_DIGITS
    for form in ("[f(a=%s)]", '{"name": "f", "arguments": {"a": %s}}'):
        assert parse_calls(form % digits)[0] == [Call("f", {"a": int(digits)})]
        assert parse_calls(form % (digits + "9"))[0] is None
    for form in ("[f(a=%s)]", '{"name": "f", "arguments": {"a": %s}}', '[{"name": "f", "arguments": {"a": %s}}]'):
        assert parse_calls(form % nested(MAX_DEPTH + 1))[0]
        assert parse_calls(form % nested(MAX_DEPTH + 2))[0] is None
    # "[" + "f", "(", ")", "," per call + "]"
    assert len(parse_calls(f"[{'f(),' * ((MAX_TOKENS - 2) // 4)}]")[0]) == (MAX_TOKENS - 2) // 4
    assert parse_calls(f"[{'f(),' * (MAX_TOKENS // 4)}]")[0] is None


@pytest.mark.parametrize(
    "unit", ["[", "{", "(", "-", "a.", "1+", "'", '"', "\\", "<tool_call>", '{"a":', "f(a=", "[{", "9"]
)
def test_endless_repetition_is_no_call(unit):
    for text in (unit * 10_001, f"[f(a={unit * 10_001})]", f'[{{"name": "f", "arguments": {{"a": {unit * 10_001}'):
        assert parse_calls(text)[0] is None
        assert parse_calls(text[:MAX_ANSWER])[0] is None


def test_a_megabyte_is_no_completion():
    assert parse_completion("<think>" + "x" * 1_000_000 + f"</think>{CALL}").error
    assert parse_completion("<think>x</think>" + "[" * 1_000_000).error


def test_written_calls_pass_even_when_a_value_holds_a_tag():
    for name in ("f", "not a name"):
        calls = [Call(name, {"a": "</think> and <think>"})]
        assert parse_completion(f"<think>why</think>{render_calls(calls)}").calls == calls

"""Completions as text, rendered by TensorBoard itself."""

import html
import json
import re

import pytest
from tensorboard.plugin_util import markdown_to_safe_html

from datamodules.example import Example
from lightning_modules.callbacks.samples import SampleTable, quotation, sample_block
from lightning_modules.rollout.rollout import Rollout
from rewards import FunctionCallReward

NASTY = [
    "<script>alert(1)</script><b>bold</b>",
    "a | b | c",
    "**bold** _it_ `code` ~~no~~ # head",
    "[link](javascript:alert(1)) ![img](http://x/y.png)",
    "&lt;b&gt; &#124; &amp;",
    "back\\slash \\| pipe",
    "http://x.y/z www.x.y $x$ :tag: @who",
    "1. one * two - three + four",
    "# head\n- list\n+ list\n1. one\n> quoted\n    code\ntitle\n===\ntitle\n---\n\tcode",
    "<think>line\nline</think>\n\n[f(a='x|y')]",
]
TOOLS = json.dumps([{"name": "f", "parameters": {"days": {"type": "int"}}}])
ALL = ["Query", "Chain of thought", "Call", "Reference"]
GOLD = '[{"name": "f", "arguments": {"days": 5}}]'


def rollout(text, query="q", finish_reason="stop"):
    result = FunctionCallReward()(text, TOOLS, GOLD)
    example = Example(id="row-1", query=query, tools=TOOLS, answers=GOLD)
    return Rollout(example, text, result.parsed, result, 5, 10, finish_reason)


@pytest.mark.parametrize("text", NASTY)
def test_text_comes_out_of_the_rendered_block_as_it_went_in(text):
    page = markdown_to_safe_html(sample_block(rollout("<think>x</think>\n\n[f(days=5)]", query=text), max_chars=200))
    first, _, call, reference = re.findall(r"<blockquote>\n<p>(.*?)</p>\n</blockquote>", page, re.DOTALL)
    assert "<" not in first
    shown = "\n".join(line.replace("\xa0", " ") for line in html.unescape(first).split("\n"))
    wanted = "\n".join(line if line.strip() else " " for line in text.expandtabs(4).split("\n"))
    assert shown == wanted
    assert html.unescape(call) == html.unescape(reference) == "[f(days=5)]"


@pytest.mark.parametrize(
    ("text", "heading", "wrong", "parts"),
    [
        ("<think>x</think>\n\n[f(days=5)]", "✓ row-1: score 1", None, ALL),
        ("<think>x</think>\n\n[f(days=3)]", "✗ row-1: score 0", "f: days is 3, not 5", ALL),
        ("<think>x</think>\n\n[f()]", "✗ row-1: score 0", "f: days is missing", ALL),
        ("[f(days=5)]", "✗ row-1: score 0", "the text does not start with <think>",
         ["Query", "Completion", "Reference"]),
    ],
)  # fmt: skip
def test_a_block_marks_right_and_wrong_and_names_the_argument(text, heading, wrong, parts):
    page = html.unescape(markdown_to_safe_html(sample_block(rollout(text), max_chars=200)))
    assert f"<h3>{heading}</h3>" in page
    assert re.findall(r"<p><strong>(\w[\w ]*)</strong></p>", page) == parts
    assert re.findall(r"<strong>Wrong:</strong> (.*?)</p>", page) == ([wrong] if wrong else [])


def test_what_was_cut_says_so():
    assert "**Wrong:** cut at the length limit" in sample_block(rollout("<think>x", finish_reason="length"), 200)


def test_long_parts_are_cut_before_they_are_escaped_and_hold_no_control_characters():
    assert quotation("a||||", 3) == "> a&#124;…"
    assert quotation("a\x1b[2Jb\r\nc\u202e", 100) == "> a&#92;x1b&#91;2Jb\n> c&#92;u202e"


def test_no_more_completions_are_shown_than_asked_for():
    table = SampleTable(rows=3)
    for outputs in ([1, 2], [3, 4], [5]):
        table.on_validation_batch_end(None, None, outputs)
    assert table.samples == [1, 2, 3]

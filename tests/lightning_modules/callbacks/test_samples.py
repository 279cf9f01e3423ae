"""Completions as text, rendered by TensorBoard itself."""

import html
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tensorboard.plugin_util import markdown_to_safe_html

from datamodules.example import Example
from lightning_modules.callbacks.samples import RolloutTable, SampleTable, quotation, sample_block, scored
from lightning_modules.grpo import GRPOModule
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
    "title\n===\nwhere it begins a paragraph",
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


def test_a_group_of_training_is_shown_every_so_many_steps_also_of_a_run_that_goes_on(tmp_path):
    trainer = SimpleNamespace(log_dir=tmp_path, fast_dev_run=False, is_global_zero=True, logger=None)
    right, failed = rollout("<think>x</think>\n\n[f(days=5)]"), rollout("<think>x</think>\n\n[f()]")
    right = replace(right, scores={"call": 1.0, "mine": 0.5}, reward=1.5, penalty=-0.25)
    failed = replace(failed, scores={"call": 0.0, "mine": None}, errors={"mine": "it died"})
    module = GRPOModule(init_from="none")
    module.rollout_advantages = torch.tensor([0.5, 0.0, 7.0])

    def shown(table, steps):
        for trainer.global_step in steps:
            module.rollouts = [right, failed, right] if trainer.global_step != 9 else []  # 9 learns from those before
            table.on_train_batch_end(trainer, module)
        lines = [json.loads(line) for line in (tmp_path / "train_samples.jsonl").read_text().splitlines()]
        return lines, table.state_dict()

    lines, state = shown(RolloutTable(every_n_steps=4, rows=2), [1, 3, 4, 5])
    assert [(line["step"], line["reward"], line["advantage"]) for line in lines] == [
        (1, 1.25, 0.5), (1, None, 0.0), (5, 1.25, 0.5), (5, None, 0.0),
    ]  # fmt: skip
    assert lines[1]["scores"] == {"call": 0.0, "mine": None} and lines[1]["errors"] == {"mine": "it died"}
    resumed = RolloutTable(every_n_steps=4, rows=2)
    resumed.load_state_dict(state)
    assert [line["step"] for line in shown(resumed, [7, 9, 10, 11])[0][4:]] == [10, 10]
    assert shown(RolloutTable(rows=0), [20])[1] == {"shown": 0}
    heading = scored(right, 0.5, 100).splitlines()[0]
    assert heading == "### ✓ row-1: score 1, reward 1.25 (call 1, mine 0.5), advantage 0.500"
    assert "reward failed (call 0, mine failed), advantage 0.000" in scored(failed, 0.0, 100)

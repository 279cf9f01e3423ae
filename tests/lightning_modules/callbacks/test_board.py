"""What TensorBoard shows of a run, asked of TensorBoard itself."""

import html
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from types import SimpleNamespace

import pytest
from lightning.pytorch.trainer.states import TrainerFn
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.program import TensorBoard

from datamodules.example import Example
from lightning_modules.callbacks.board import SETTINGS, quotation, sample_block, settings_of
from lightning_modules.cli import main
from lightning_modules.rollout.rollout import Rollout
from lightning_modules.srml import SRMLModule
from rewards import FunctionCallReward

CONFIG = ["--config", "configs/srml.yaml"]
RUN = {"trainer.max_steps": 2, "trainer.val_check_interval": 1, "data.init_args.batch_size": 4}
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base_args):
    root = tmp_path_factory.mktemp("runs")
    main(["fit", *CONFIG, *base_args(root, **RUN)])
    main(["test", *CONFIG, *base_args(root, **{"model.init_args.init_from": root / "srml-fit-0"})])
    return root


@pytest.fixture(scope="module")
def ask(runs):
    """Asks a TensorBoard that serves the runs for what one of its plug-ins says."""
    board = TensorBoard()
    board.configure(argv=[None, "--logdir", str(runs), "--host=127.0.0.1", "--port=0", "--load_fast=false"])
    url = board.launch()

    def ask(path, body=None, **query):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}data/{path}?{urllib.parse.urlencode(query)}", data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    for _ in range(100):  # it reads the files in the background
        if len(ask("runs")) == 4 and "tool/exact_match" in ask("plugin/scalars/tags").get("srml-test-0", {}):
            return ask
        time.sleep(0.2)
    pytest.fail("TensorBoard has not read the runs")


def test_runs_and_segments_have_names_and_hence_colours_of_their_own(ask):
    assert set(ask("runs")) == {"srml-fit-0", "srml-fit-0/cot", "srml-fit-0/call", "srml-test-0"}
    values = {}
    for name in ("", "/cot", "/call"):
        points = ask("plugin/scalars/scalars", run=f"srml-fit-0{name}", tag="train/loss")
        assert [step for _, step, _ in points] == [1, 2]
        values[name] = [value for *_, value in points]
    for name in ("cot", "call"):
        points = ask("plugin/scalars/scalars", run="srml-fit-0", tag=f"train/loss_{name}")
        assert [value for *_, value in points] == values[f"/{name}"]
    assert len({tuple(curve) for curve in values.values()}) == 3
    tags = ask("plugin/scalars/tags")
    assert {"train/loss", "train/weight", "train/entropy", "train/token_acc"} <= set(tags["srml-fit-0/cot"])


def test_scores_are_on_top_and_every_chart_of_training_has_a_curve(ask):
    categories = ask("plugin/custom_scalars/layout")["category"]
    assert [category["title"] for category in categories] == ["Scores", "Loss", "Optimizer", "Speed"]
    assert categories[0]["chart"][0]["multiline"]["tag"] == ["^tool/exact_match$"]
    logged = {tag for tags in ask("plugin/scalars/tags").values() for tag in tags}
    for category in categories[1:3]:
        for chart in category["chart"]:
            if not chart["title"].startswith("loss of the validation"):
                assert any(re.search(tag, name) for tag in chart["multiline"]["tag"] for name in logged), chart


def test_a_tests_scores_are_at_the_step_of_its_model(ask, runs):
    for tag in ask("plugin/scalars/tags")["srml-test-0"]:
        assert [step for _, step, _ in ask("plugin/scalars/scalars", run="srml-test-0", tag=tag)] == [2], tag
    (sample,) = ask("plugin/text/text", run="srml-test-0", tag="samples/test/text_summary")
    assert sample["step"] == 2 and "<blockquote>" in sample["text"]
    assert {line.split(",")[0] for line in (runs / "srml-test-0/metrics.csv").read_text().split()[1:]} == {"2"}


def test_samples_are_blocks_that_wrap(ask):
    texts = ask("plugin/text/text", run="srml-fit-0", tag="samples/val/text_summary")
    assert [text["step"] for text in texts] == [1, 2]
    for text in texts:
        assert re.search(r"<h3>[✓✗] \S+ score [01]</h3>", text["text"])
        assert re.findall(r"<strong>(Query|Reference)</strong>", text["text"])[:2] == ["Query", "Reference"]


@pytest.mark.parametrize(
    ("balance", "listed"), [("fixed", {"cot_weight": 0.4}), ("learnable", {"cot_weight": 0.4}), ("sft", {})]
)
def test_a_weight_that_nothing_uses_is_not_listed(balance, listed):
    state = SimpleNamespace(fn=TrainerFn.FITTING)
    trainer = SimpleNamespace(datamodule=None, precision="32-true", world_size=1, state=state)
    trainer.estimated_stepping_batches = 2
    settings = settings_of(trainer, SRMLModule(init_from="x", balance=balance, cot_weight=0.4))
    assert {name: value for name, value in settings.items() if name == "cot_weight"} == listed


def test_settings_are_listed_beside_the_final_metrics(ask, runs):
    experiment = ask("plugin/hparams/experiment", {"experimentName": ""})
    assert {info["name"] for info in experiment["hparamInfos"]} == set(SETTINGS)
    columns = [{"metric": info["name"]} for info in experiment["metricInfos"]]
    order = {"sliceSize": 9, "allowedStatuses": ["STATUS_SUCCESS"], "colParams": columns}
    groups = ask("plugin/hparams/session_groups", order)["sessionGroups"]
    fit, test = sorted(groups, key=lambda group: group["sessions"][0]["name"])
    assert (fit["sessions"][0]["name"], test["sessions"][0]["name"]) == ("srml-fit-0", "srml-test-0")
    assert fit["hparams"].items() >= {"method": "srml", "steps": 2, "rows_per_step": 4}.items()
    assert test["hparams"]["model"] == str(runs / "srml-fit-0") and "steps" not in test["hparams"]
    found = {value["name"]["tag"]: value for value in fit["metricValues"]}
    assert found["train/loss"]["trainingStep"] == found["tool/exact_match"]["trainingStep"] == 2

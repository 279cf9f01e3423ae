import json

import pytest
import torch

from datamodules.example import Example
from lightning_modules import metrics
from lightning_modules.callbacks.board import LAYOUT
from lightning_modules.callbacks.summary import accuracy_table
from lightning_modules.metrics import CallAccuracy, Throughput
from lightning_modules.rollout.rollout import Rollout
from rewards import FunctionCallReward, parse_completion

TOOLS = json.dumps([{"name": "f", "description": "", "parameters": {"a": {"type": "int", "description": ""}}}])


def rollout(text, answers, category="", finish_reason="stop", tokens=10):
    example = Example(id="1", query="q", tools=TOOLS, answers=json.dumps(answers), category=category)
    result = FunctionCallReward()(text, TOOLS, example.answers)
    return Rollout(example, text, parse_completion(text), result, 5, tokens, finish_reason)


RIGHT = rollout("<think>yes</think>\n\n[f(a=1)]", [{"name": "f", "arguments": {"a": 1}}])
WRONG_VALUE = rollout("<think>yes</think>\n\n[f(a=2)]", [{"name": "f", "arguments": {"a": 1}}], tokens=20)
CUT = rollout("<think>no", [], finish_reason="length", tokens=30)


def test_rates_by_hand():
    accuracy = CallAccuracy()
    for one in (RIGHT, WRONG_VALUE, CUT):
        accuracy.update(one)
    metrics = accuracy.compute()
    # One tool and one call: the first two are "simple"; no call at all: the third is "irrelevance".
    assert metrics["tool/exact_match"] == pytest.approx(1 / 3)
    assert metrics["tool/format_rate"] == pytest.approx(2 / 3)
    assert metrics["tool/arg_name_acc"] == pytest.approx(2 / 3)
    assert metrics["tool/arg_value_acc"] == pytest.approx(1 / 3)
    assert metrics["tool/simple/exact_match"] == 0.5
    assert metrics["tool/simple/name_acc"] == 1.0
    assert metrics["tool/irrelevance_acc"] == 0.0
    assert metrics["tool/n_calls"] == pytest.approx(2 / 3)
    assert metrics["completion/truncated_frac"] == pytest.approx(1 / 3)
    assert metrics["completion/mean_length"] == 20  # (10 + 20 + 30) / 3
    assert not any("parallel" in name for name in metrics)  # no such rows: no metric, no NaN


def test_nothing_seen_gives_no_metrics():
    assert CallAccuracy().compute() == {}


def test_split_over_batches_does_not_matter():
    whole, first, second = CallAccuracy(), CallAccuracy(), CallAccuracy()
    for one in (RIGHT, WRONG_VALUE, CUT):
        whole.update(one)
    first.update(RIGHT)
    second.update(WRONG_VALUE)
    second.update(CUT)
    for name in ("sums", "counts", "others"):  # what a reduction over two ranks does to the states
        setattr(first, name, getattr(first, name) + getattr(second, name))
    assert first.compute() == whole.compute()


def test_names_are_never_both_leaf_and_prefix():
    accuracy = CallAccuracy()
    for category in ("simple", "multiple", "parallel", "parallel_multiple", "irrelevance"):
        accuracy.update(rollout("<think>x</think>\n\n[]", [], category=category))
    names = list(accuracy.compute())
    assert len(names) == 6 * 6 + 1 + 4
    assert not [a for a in names for b in names if b.startswith(f"{a}/")]
    charts = [tag[1:-1] for group in LAYOUT.values() for _, tags in group.values() for tag in tags]
    assert {tag for tag in charts if tag.startswith("tool/")} <= set(names)


def test_row_of_a_rollout():
    row = RIGHT.as_row()
    assert json.loads(row["calls"]) == [{"name": "f", "arguments": {"a": 1}}]
    assert (row["cot"], row["score"], row["category"]) == ("yes", 1.0, "simple")
    assert json.loads(json.dumps(row)) == row
    assert CUT.as_row()["calls"] is None


def test_table():
    accuracy = CallAccuracy()
    accuracy.update(RIGHT)
    lines = accuracy_table(accuracy.compute()).splitlines()
    assert [line.split()[0] for line in lines] == ["format_rate", "all", "simple"]
    assert lines[1].split()[1:] == ["1.000"] * 6


def test_states_are_summed_over_ranks():
    accuracy = CallAccuracy()
    assert set(accuracy._reductions) == {"sums", "counts", "others"}
    stacked = torch.stack([torch.tensor(1.0), torch.tensor(2.0)])
    assert all(reduce(stacked) == 3 for reduce in accuracy._reductions.values())


def test_throughput_of_the_last_steps(monkeypatch):
    clock = iter([10.0, 12.0, 13.0, 20.0])  # ends of steps; they begin at 8, 10, 12 and 19
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(Throughput, "WINDOW", 2)
    speed = Throughput()
    assert speed.update(8.0, 100, 4) == {"time/step": 2, "perf/tokens_per_s": 50, "perf/samples_per_s": 2}
    assert speed.update(10.0, 200, 4) == {"time/step": 2, "perf/tokens_per_s": 75, "perf/samples_per_s": 2}
    # The first step has left the window: 200 + 100 tokens from 10 to 13.
    assert speed.update(12.0, 100, 2) == {"time/step": 1, "perf/tokens_per_s": 100, "perf/samples_per_s": 2}
    speed.clear()
    assert speed.update(19.0, 30, 1) == {"time/step": 1, "perf/tokens_per_s": 30, "perf/samples_per_s": 1}

import json

import pytest

from datamodules.example import Example
from datamodules.refinement import Panel, RuleJudge, fcdr
from datamodules.refinement.corruption import FAULTS, KINDS, Corpus, corrupted_rows, planted_metrics
from datamodules.rows import unchecked_example
from datamodules.toolbox.rows import make_corpus
from rewards import parse_calls


def refined(rows, run):
    async def all_of_them():
        panel = Panel([RuleJudge()])
        return [await fcdr(unchecked_example(row), panel) for row in rows]

    return run(all_of_them())


def test_the_same_seed_gives_the_same_rows_and_the_share_is_kept():
    rows = list(corrupted_rows(Corpus(400, 3)))
    assert rows == list(corrupted_rows(Corpus(400, 3))) != list(corrupted_rows(Corpus(400, 4)))
    kinds = [kind for _, _, kind in rows]
    assert 90 < len(kinds) - kinds.count("") < 150  # 400 x 0.3 = 120, standard deviation 9
    counts = [kinds.count(kind) for kind in KINDS]
    assert max(counts) - min(counts) <= 1
    assert all((planted != row) == bool(kind) for planted, row, kind in rows)
    assert all(row["id"] == planted["id"] for planted, row, _ in rows)


def test_the_share_is_of_all_rows_however_few_of_them_call():
    rows = list(corrupted_rows(Corpus(1000, 3, share=0.15, split="habits")))
    assert 0.5 < sum(row["answers"] != "[]" for _, row, _ in rows) / 1000 < 0.62  # 0.86 x (1 - 0.35) = 0.56
    # 1000 x 0.15 = 150, less one in nine of which had nothing to spoil; standard deviation 11
    assert 100 < sum(bool(kind) for _, _, kind in rows) < 175


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"share": 1.5}, {"share": -0.1}])
def test_an_impossible_corpus(wrong):
    with pytest.raises(ValueError, match=r"corpus.rows must be at least 1 and corpus.share from 0 to 1"):
        Corpus(**wrong)


def test_broken_formats_cannot_be_read():
    rows = [row for row, _, kind in corrupted_rows(Corpus(600, 5)) if kind == "broken_format"]
    assert len(rows) > 20 and all(parse_calls(row["answers"])[0] is None for row in rows)


@pytest.mark.parametrize("corpus", [Corpus(1200, 11), Corpus(1200, 12), Corpus(1200, 13, split="habits")])
def test_every_kind_is_found_by_its_stage(corpus, run):
    truths = list(corrupted_rows(corpus))
    metrics = planted_metrics(refined([row for row, _, _ in truths], run), truths)
    assert list(metrics) == list(FAULTS) and len(metrics) >= 5
    for kind, values in metrics.items():
        assert values["planted"] >= 40 and values["precision"] >= 0.95 and values["recall"] >= 0.95, kind


@pytest.mark.parametrize("split", ["train", "heldout", "unseen"])
def test_good_rows_pass(split, run):
    rows = make_corpus(split, 150, 21)
    outcomes = refined(rows, run)
    assert all(outcome.kept for outcome in outcomes)
    assert [outcome.example.answers for outcome in outcomes] == [row["answers"] for row in rows]


def test_metrics_by_hand(run):
    """Two rows with a wrong type, of which one is mended wrongly, and one good row that is called wrong."""
    tools = json.dumps([{"name": "f", "parameters": {"a": {"type": "int"}}}])
    truth = {"answers": '[{"name": "f", "arguments": {"a": 1}}]', "tools": tools}
    from datamodules.refinement import Outcome, Verdict

    def outcome(answers, *verdicts):
        return Outcome(Example("", "", tools, answers), verdicts)

    refused, kept = Verdict("call", False, "type"), Verdict("row", True)
    outcomes = [
        outcome(truth["answers"], refused, kept),
        outcome('[{"name": "f", "arguments": {"a": 2}}]', refused, kept),
        outcome(truth["answers"], refused),
    ]
    metrics = planted_metrics(outcomes, [({}, truth, "wrong_type"), ({}, truth, "wrong_type"), ({}, truth, "")])
    # found 1; named 3; planted 2
    assert metrics["wrong_type"] == {"planted": 2, "named": 3, "found": 1, "precision": 0.3333, "recall": 0.5}
    assert metrics["wrong_tool"]["recall"] is None


def test_the_judge_speaks_of_real_rows_too(shared_data, run):
    lines = (shared_data / "toolrl_r1_cot.jsonl").read_text(encoding="utf-8").splitlines()
    outcomes = refined(lines, run)
    assert len(outcomes) == 240 and any(outcome.kept for outcome in outcomes)

"""The columns of the BFCL leaderboard, worked out by hand; the table that is printed."""

import pytest

from datamodules.bfcl.package import BFCLPackage
from datamodules.bfcl.rows import CATEGORIES
from lightning_modules.bfcl.official import compare, official_columns
from lightning_modules.bfcl.scores import SUMMARIES, BFCLAccuracy, Score, summarize
from lightning_modules.bfcl.table import bfcl_table, percent

SIZES = {
    3: dict(zip(CATEGORIES[3], [400, 100, 50, 200, 200, 200, 240, 258, 1053, 16, 24, 882, 18], strict=True)),
    4: dict(zip(CATEGORIES[4], [400, 100, 50, 200, 200, 200, 240, 258, 1053, 16, 24, 884, 16], strict=True)),
}


def scores(version, **right):
    """Complete scores with so many right answers in each category, all wrong where none is said."""
    return {c: Score(right.get(c, 0) / size, size) for c, size in SIZES[version].items()}


def test_non_live_columns():
    # simple: (0.5 + 0.25 + 0.1) / 3 = 0.28333; AST: (0.28333 + 0.8 + 0.6 + 0.4) / 4 = 0.52083
    right = dict(multiple=160, parallel=120, parallel_multiple=80, irrelevance=120)
    v3 = summarize(scores(3, simple=200, java=25, javascript=5, **right), 3)
    v4 = summarize(scores(4, simple_python=200, simple_java=25, simple_javascript=5, **right), 4)
    for found in (v3, v4):
        assert found["simple_ast"].accuracy == pytest.approx(0.28333, abs=1e-5)
        assert found["non_live_ast"].accuracy == pytest.approx(0.52083, abs=1e-5)
    # v3 takes irrelevance in, (4 * 0.52083 + 0.5) / 5 = 0.51667; v4 does not
    assert v3["non_live"].accuracy == pytest.approx(0.51667, abs=1e-5)
    assert v4["non_live"].accuracy == v4["non_live_ast"].accuracy
    assert v3["irrelevance_detection"].accuracy == 0.25  # (0.5 + 0) / 2


def test_live_columns():
    # EGPO-4B's four live accuracies give 221 + 837 + 14 + 18 = 1090 right answers of 1351
    right = dict(live_simple=221, live_multiple=837, live_parallel=14, live_parallel_multiple=18)
    v3 = summarize(scores(3, live_irrelevance=600, live_relevance=9, **right), 3)
    v4 = summarize(scores(4, live_irrelevance=600, live_relevance=9, **right), 4)
    assert v3["live_ast"].accuracy == v4["live_ast"].accuracy == pytest.approx(1090 / 1351)
    assert v3["live"].accuracy == pytest.approx((1090 + 600 + 9) / 2251)
    assert v4["live"].accuracy == pytest.approx(1090 / 1351)


def test_the_papers_mean():
    # Non-Live AST 0.25 (multiple alone is right) and Live 900 / 2251: their mean
    found = summarize(scores(3, multiple=200, live_irrelevance=882, live_relevance=18), 3)
    assert found["mean"].accuracy == pytest.approx((0.25 + 900 / 2251) / 2)
    assert set(found) == set(SUMMARIES)


def test_missing_categories_count_as_wrong_and_as_unknown():
    accuracy = BFCLAccuracy(3, SIZES[3])
    for number in range(258):
        accuracy.update("live_simple", number < 129)
    found = accuracy.compute()
    assert found["live_simple"] == Score(0.5, 258) and found["live_multiple"] == Score(0.0, 1053, known=False)
    assert found["live"] == Score(129 / 2251, 2251, known=False)
    shown = [percent(name, found[name]) for name in ("live_simple", "live_multiple", "live", "live_ast", "mean")]
    assert shown == ["50.00", "N/A", "5.73", "N/A", "N/A"]  # as the official tool prints them


def test_states_add_up():
    one, two, both = (BFCLAccuracy(4, SIZES[4]) for _ in range(3))
    for metric, category, right in ((one, "parallel", True), (two, "parallel", False), (two, "multiple", True)):
        metric.update(category, right)
        both.update(category, right)
    assert (one.right + two.right).tolist() == both.right.tolist()
    assert (one.total + two.total).tolist() == both.total.tolist()
    assert both.compute()["parallel"] == Score(0.5, 2)


PACKAGE = BFCLPackage(None, "2025.8.6.2")


def complete():
    return scores(3) | summarize(scores(3), 3)


def test_table_of_a_complete_evaluation():
    found = complete() | {"live_multiple": Score(0.75, 1053), "live": Score(0.81635, 2251), "mean": Score(0.5, 1)}
    text = bfcl_table(found, PACKAGE, SIZES[3], "model", 1)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == "BFCL v3 (bfcl-eval 2025.8.6.2), model, 1 sample a row".split()
    assert ["live_multiple", "75.00", "1,053"] in lines
    assert ["this", "model", "0.00", "81.64", "50.00"] in lines
    assert ["FunReason,", "Qwen2.5-Coder-7B", "(2505.20192v1)", "87.00", "80.31", "83.66"] in lines
    assert "PARTIAL" not in text


def test_table_of_a_part():
    missing = {category: Score(0.0, size, known=False) for category, size in SIZES[3].items()}
    found = missing | {"java": Score(0.5, 40)}
    text = bfcl_table(found | summarize(found, 3), PACKAGE, SIZES[3], "model", 4)
    lines = [line.split() for line in text.splitlines()]
    assert ["java", "50.00", "first", "10", "of", "100"] in lines  # 40 answers, 4 samples a row
    assert ["this", "model", "(PARTIAL)", "N/A", "0.00", "N/A"] in lines
    assert lines[-1][0] == "PARTIAL:" and not any(line[:1] == ["simple"] for line in lines)


def test_comparison_with_the_official_tables():
    found = complete()
    theirs = {place: f"{found[name].accuracy * 100:.2f}%" for place, name in official_columns(3).items()}
    text, equal = compare(found, theirs, 3)
    assert equal and "data_live.csv: Live Overall Acc" in text
    assert len(theirs) == 21
    assert not compare(found, theirs | {("data_live.csv", "Live Overall Acc"): "0.01%"}, 3)[1]

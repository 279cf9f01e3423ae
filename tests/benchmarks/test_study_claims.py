"""The arithmetic of the study's claims, by hand, and that lines of runs become verdicts and tables."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are run from the repository and not installed
from benchmarks import study_claims
from benchmarks.study_papers import CLAIMS, Claim
from benchmarks.study_tables import claims_table, span


def line(arm, seed, metrics, scale="small"):
    return {"scale": scale, "arm": arm, "seed": seed, "metrics": metrics, "commit": "abc", "command": "x"}


RUNS = {
    ("small", "srml"): {1: line("srml", 1, {"hits": [1, 1, 0, 1]}), 2: line("srml", 2, {"hits": [1, 0, 1, 1]})},
    ("small", "sft"): {2: line("sft", 2, {"hits": [0, 0, 1, 1]}), 1: line("sft", 1, {"hits": [1, 0, 0, 0]})},
    ("small", "base"): {0: line("base", 0, {"hits": [0, 0, 0, 1]})},
}
OVER_SFT = Claim("better", "both", "small", "hits", {"srml": 1, "sft": -1})


def test_a_measure_is_a_row_of_values_a_number_a_mean_or_the_last_fifth_of_a_curve():
    metrics = {"hits": [1, 0], "loss": {"cot": 1.0, "call": 3.0}, "curves": {"kl": [1, 2, 3, 4, 5, 6, 7, 8, 9, 11]}}
    assert study_claims.values_of(metrics, "hits") == [1.0, 0.0]
    assert study_claims.values_of(metrics, "loss.call") == [3.0]
    assert study_claims.values_of(metrics, "loss") == [2.0]  # (1 + 3) / 2
    assert study_claims.values_of(metrics, "curves.kl") == [10.0]  # (9 + 11) / 2
    assert study_claims.values_of(metrics, "curves.kl:rise") == [8.5]  # 10 - (1 + 2) / 2
    with pytest.raises(KeyError):
        study_claims.values_of(metrics, "curves.entropy")


def test_rows_of_bfcl_that_want_calls_are_those_of_all_categories_but_irrelevance():
    sizes = {"simple": 2, "irrelevance": 3, "multiple": 1, "live_irrelevance": 1, "live_relevance": 2}
    rows = [*(1, 0), *(1, 1, 1), 1, 0, *(0, 1)]  # by category
    got = study_claims.values_of({"bfcl_rows": rows, "bfcl_sizes": sizes}, "bfcl_call_rows")
    assert got == [1.0, 0.0, 1.0, 0.0, 1.0]
    with pytest.raises(KeyError):
        study_claims.values_of({}, "bfcl_call_rows")


def test_arms_are_paired_by_seed_and_row_whatever_the_order_of_their_lines():
    assert study_claims.contrast(RUNS, OVER_SFT, [1, 2]).tolist() == [[0, 1, 0, 1], [1, 0, 0, 0]]
    against_base = Claim("better", "", "small", "hits", {"srml": 1, "base": -1})  # one run stands for both seeds
    assert study_claims.common_seeds(RUNS, against_base) == [1, 2]
    assert study_claims.contrast(RUNS, against_base, [1, 2]).tolist() == [[1, 1, 0, 0], [1, 0, 1, 0]]


def test_interval_of_seeds_alone_is_students():
    values = np.array([[1.0], [2.0], [3.0]])  # mean 2, deviation 1, t 4.303
    low, high = study_claims.interval(values)
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    # a new seed: 4.303 x 1 x sqrt(1 + 1/3) = 4.969
    assert study_claims.prediction(values) == pytest.approx((2 - 4.969, 2 + 4.969), abs=1e-3)


def test_interval_over_rows_is_that_of_a_share():
    values = np.array([[1.0] * 50 + [0.0] * 50])  # one seed: 0.5 +/- 1.96 x sqrt(0.25 / 100) = 0.098
    assert study_claims.interval(values) == pytest.approx((0.402, 0.598), abs=0.01)
    assert study_claims.prediction(values) is None


def test_seeds_that_agree_do_not_hide_that_other_rows_might_have_been_drawn():
    values = np.array([[1.0] * 50 + [0.0] * 50] * 4)  # Student's is the point 0.5
    assert study_claims.interval(values) == pytest.approx((0.402, 0.598), abs=0.01)


def test_intervals_of_three_seeds_hold_the_mean_of_which_seeds_and_rows_are_drawn():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):  # with the variances of BFCL's call rows; a bootstrap alone holds it 176 times
        rows, seeds = rng.normal(0, 0.12, 500), rng.normal(0, 0.03, (3, 1))
        low, high = study_claims.interval(rows + seeds + rng.normal(0, 0.27, (3, 500)), draws=200)
        held += low <= 0 <= high
    assert held >= 184  # an exact interval: 0.95 x 200 = 190, give or take 3


def test_a_seed_of_the_study_lands_where_the_others_of_its_claim_say():
    runs, landed = study_claims.read_runs(study_claims.HERE / "study_runs.jsonl"), []
    for claim in CLAIMS:
        seeds = study_claims.common_seeds(runs, claim)
        if len(seeds) < 3:
            continue
        values = study_claims.contrast(runs, claim, seeds)
        for at, mean in enumerate(values.mean(axis=1)):
            low, high = study_claims.prediction(np.delete(values, at, axis=0))
            landed.append(low <= mean <= high)
    assert len(landed) > 200
    assert 0.9 < np.mean(landed) < 0.99  # 0.95 is expected


def test_a_single_value_has_no_interval_and_decides_nothing():
    assert study_claims.interval(np.array([[0.5]])) is None
    runs = {("small", arm): {1: line(arm, 1, {"kl": value})} for arm, value in (("egpo", 0.2), ("grpo", 0.1))}
    assert study_claims.judged(runs, Claim("", "", "small", "kl", {"egpo": 1, "grpo": -1}), [1]) is None


def test_verdict_is_undecided_unless_the_whole_interval_lies_on_one_side():
    assert study_claims.verdict(0.01, 0.2) is True
    assert study_claims.verdict(-0.2, -0.01) is False
    assert study_claims.verdict(-0.01, 0.2) == study_claims.verdict(0.0, 0.2) == "undecided"


def test_weights_of_every_claim_sum_to_0_or_are_of_a_rise():
    for claim in CLAIMS:
        total = sum(claim.weights.values())
        assert total == pytest.approx(1 if claim.measure.endswith(":rise") else 0), claim.claim
    assert len({(claim.scale, claim.claim) for claim in CLAIMS}) == len(CLAIMS)


def test_claims_with_too_few_seeds_have_no_verdict_and_their_runs_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(study_claims, "CLAIMS", (OVER_SFT, Claim("x", "", "small", "hits", {"other": 1, "sft": -1})))
    file = tmp_path / "runs.jsonl"
    lines = [json.dumps(run) for arm in RUNS.values() for run in arm.values()]
    file.write_text("\n".join([*lines, '{"scale": "small", "arm": "cut of']), encoding="utf-8")
    words = ["--runs", str(file), "--out", str(tmp_path / "study.json"), "--page", str(tmp_path / "study.md")]

    study_claims.main(words)
    assert json.loads((tmp_path / "study.json").read_text())["claims"] == []
    assert "missing: small other: 0 of 8 seeds" in capsys.readouterr().out

    study_claims.main([*words, "--budget", "2"])
    (entry,) = json.loads((tmp_path / "study.json").read_text())["claims"]
    assert entry["ours"] == 0.375  # (2 + 1) / 8
    assert (entry["seeds"], entry["rows"], entry["held"], entry["commit"]) == (2, 4, "undecided", "abc")
    # seeds 0.5 and 0.25: deviation 0.1768, t 12.706, so 12.706 x 0.1768 / sqrt(2) = 1.588
    # rows 0.5, 0.5, 0, 0.5: deviation 0.25, so 1.96 x 0.25 / sqrt(4) = 0.245; both: sqrt(1.588^2 + 0.245^2) = 1.607
    assert entry["interval"] == pytest.approx([0.375 - 1.607, 0.375 + 1.607], abs=1e-3)
    assert "| better | both | +0.375 (-1.23 to +1.98) |" in (tmp_path / "study.md").read_text()


def test_a_category_of_bfcl_is_its_part_of_the_rows_and_zeros_alone_do_not_prove_0():
    hits = {"bfcl_rows": [1, 0, 1, 1, 0, 0, 0], "bfcl_sizes": {"simple": 4, "java": 3}}
    entry = study_claims.bfcl_entries({("real", "sft"): {0: line("sft", 0, hits, "real")}})["sft"]
    assert entry["simple"][0] == 0.75 and 0 < entry["simple"][1] < 0.75 < entry["simple"][2] <= 1
    assert entry["java"] == pytest.approx([0, 0, 0.5615], abs=1e-4)  # 1.96^2 / (3 + 1.96^2)
    # of either seed 60 rows, all right: 60 / (60 + 1.96^2)
    assert study_claims.of_hits(np.ones((2, 60))) == pytest.approx([1, 0.9398, 1], abs=1e-4)


def test_one_hit_of_60_rows_leaves_room_for_a_share_of_8_percent():
    hits = np.array([[1.0] + [0.0] * 59])  # of which a bootstrap says 0 to 5 %
    # where (1/60 - p)^2 = 1.96^2 p (1 - p) / 60, the ends of Wilson's interval
    low, high = study_claims.of_hits(hits)[1:]
    for end in (low, high):
        assert (1 / 60 - end) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / 60, rel=0.01)
    assert low < 0.01 and 0.08 < high < 0.09


def test_few_hits_of_several_seeds_that_are_all_of_one_row_count_as_one_of_its_rows():
    hits = np.zeros((3, 60))
    hits[:, 7] = 1  # a bootstrap over seeds and rows ends at 5 %
    assert study_claims.of_hits(hits) == study_claims.of_hits(hits[:1])


def test_a_table_has_a_line_for_each_claim():
    entry = {"claim": "a", "paper": "b", "scale": "real", "ours": 0.1, "interval": [0.05, 0.15]}
    entry |= {"prediction": None, "seeds": 1, "rows": 600, "held": True}
    assert claims_table([entry]).splitlines()[2] == "| a | b | +0.1 (+0.05 to +0.15) |  | 1 x 600 | yes |"
    assert span([0.5, -1.0]) == "(+0.5 to -1)"

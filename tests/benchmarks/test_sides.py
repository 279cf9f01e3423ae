"""What the benchmarks beside TRL compute beside times: ratios, rows of both sides, the page that they end up on."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are run from the repository and not installed
from benchmarks import record as recording
from benchmarks.our_side import StepsOfRows, data_options
from benchmarks.sft import choose_steps, make_job, speeds
from benchmarks.sides import check_same, in_process, ratio
from datamodules.packing import IGNORED, pack


def test_ratio_is_that_of_the_medians_and_the_spread_that_of_the_pairs():
    # medians 6 and 2, so 3; pairs 4 / 2, 9 / 1 and 6 / 4
    assert ratio([4.0, 9.0, 6.0], [2.0, 1.0, 4.0]) == (3.0, 1.5, 9.0)


def test_tokens_of_the_first_step_are_not_counted():
    # 30 + 20 tokens in 2 + 3 s
    assert speeds([{"seconds": [2.0, 3.0]}], {"tokens": [100, 30, 20]}) == [10.0]


def test_sides_that_compute_different_things_are_refused():
    assert "2.001 with ours, 2 with TRL" in check_same("loss", 2.001, 2.0, 1e-3)
    for other in (2.1, float("nan")):
        with pytest.raises(RuntimeError, match="the sides compute different things"):
            check_same("loss", other, 2.0, 1e-3)


def test_rows_of_a_step_fill_two_packed_rows():
    lengths = [100, 300, 500, 700] * 10  # mean 400, so that 5 rows fill 2 x 1,000 tokens
    steps = choose_steps(lengths, 3, 1000)
    for step in steps:
        assert len(step) == len(set(step)) == 5
        assert len(pack([lengths[i] for i in step], 1000)) == 2
        assert sum(lengths[i] for i in step) >= 1800  # of 200 draws, the fullest
    assert choose_steps(lengths, 3, 1000) == steps


def test_rows_that_fit_in_no_pair_are_refused():
    with pytest.raises(ValueError, match="No rows fill 2 packed rows of 1000 tokens"):
        choose_steps([900], 1, 1000)


@pytest.fixture
def job(make_model_dir, tmp_path, monkeypatch):
    """Two steps of rows of the shipped corpus for a tiny model."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    model = str(make_model_dir(hidden_size=32, num_attention_heads=2, num_key_value_heads=1))
    return make_job(model, "toolbox:train:40", 2, 3072, rows_together=2)


def test_both_sides_learn_the_same_targets_from_the_same_documents(job):
    data = StepsOfRows(**data_options(job), batch_size=len(job["steps"][0]))
    data.steps = job["steps"]
    data.setup("fit")
    for ours, theirs in zip(data.train_dataloader(), job["packed"], strict=True):
        assert [row for micro in ours for row in unpacked(micro)] == [(r["input_ids"], r["labels"]) for r in theirs]
        assert all(sum(row["seq_lengths"]) == len(row["input_ids"]) for row in theirs)


def unpacked(micro):
    """Ids of each row of ours, without padding, and of each the target of the one before it."""
    for ids, targets, doc_ids in zip(micro["input_ids"], micro["targets"], micro["doc_ids"], strict=True):
        tokens = int((doc_ids >= 0).sum())
        yield ids[:tokens].tolist(), [IGNORED, *targets[: tokens - 1].tolist()]


def test_memory_is_that_of_the_process_that_did_the_work():
    taken, peak = in_process(bytes.__len__, b"x" * 10)
    assert taken == 10
    assert 0.01 < peak < 100  # GB: an interpreter takes more than 10 MB


def test_ratios_stand_in_results_under_their_key_and_in_one_table_of_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/benchmarks/sft.py", "--model", "/somewhere/else/gemma"])
    found = {"speed_vs_trl": 4.125, "speed_spread": [4.0, 4.25]}
    recording.record("Speed", ["side", "s"], [["ours", "1"]], "A note.", key="sft_gemma", ratios=found)
    recording.record("Other", ["side"], [["ours"]], "Not kept.", key="sft", ratios={"speed_vs_trl": 1.0}, keep=False)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["sft_gemma"] == found
    assert results["Speed"]["command"] == "python -m benchmarks.sft --model gemma"
    assert set(results) == {"Speed", "sft_gemma"}
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| `sft_gemma` | `speed_vs_trl` | 4.12 |" in page
    assert "| `sft_gemma` | `speed_spread` | 4 to 4.25 |" in page
    assert page.index("## Ratios") < page.index("## Speed")

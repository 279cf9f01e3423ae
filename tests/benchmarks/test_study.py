"""The study's runner: which runs it starts, what a line of the file says, and one real run from rows to its line."""

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are run from the repository and not installed
from benchmarks import study, study_real, study_rows
from benchmarks.study import Place, Run, append, estimate, finished, without_lost
from datamodules.system.files import write_text
from datamodules.toolbox.rows import make_corpus

BASE = str(Path(__file__).parents[2] / "assets" / "tiny-base")
LINE = {"scale": "real", "arm": "sft", "seed": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The rows of a quick study, of the shipped corpus."""
    folder = tmp_path_factory.mktemp("study")
    rows = folder / "rows.jsonl"
    write_text(rows, "".join(json.dumps(row) + "\n" for row in make_corpus("train", 150, 0)))
    study_rows.prepare(BASE, rows, None, folder / "data", quick=True)
    return folder / "data"


def test_a_run_has_one_line_and_a_line_that_was_cut_off_is_none(tmp_path):
    file = tmp_path / "runs.jsonl"
    for line in (LINE | {"metrics": 1}, LINE | {"metrics": 2}, LINE | {"seed": 2}):
        append(file, line)
    lines = file.read_text().splitlines()
    assert [json.loads(line).get("metrics") for line in lines] == [1, None]
    file.write_text(lines[0] + "\n" + lines[1][:20])
    assert finished(file) == {("real", "sft", 1)}
    append(file, LINE | {"seed": 2})
    assert finished(file) == {("real", "sft", 1), ("real", "sft", 2)}


def test_a_run_takes_as_long_as_the_longest_of_its_arm_or_else_of_its_kind():
    runs = [Run("real", arm, seed, after=after) for arm, seed, after in (("sft", 0, None), ("srml", 0, None))]
    took = {runs[0]: 5.0, Run("real", "sft", 1): 7.0, Run("real", "egpo", 0, after="srml"): 20.0}
    assert estimate(Run("real", "sft", 2), took) == 7.0
    assert estimate(runs[1], took) == 7.0  # 20 is of another kind
    assert estimate(Run("real", "grpo", 0, after="srml"), took) == 20.0
    assert estimate(runs[1], {}) == 0.0


def test_what_is_to_be_started_from_is_run_again_where_its_folder_is_gone_and_so_is_what_that_started_from(tmp_path):
    place = Place("", tmp_path, tmp_path)
    planned = [Run("small", "a", 0), Run("small", "b", 0, after="a"), Run("small", "c", 0, after="b")]
    done = {run.key for run in planned[:2]}
    assert without_lost(done | {planned[2].key}, planned, place) == {run.key for run in planned}  # nothing is missing
    assert without_lost(done, planned, place) == set()
    place.folder("b", 0).mkdir()
    assert without_lost(done, planned, place) == done  # nothing starts from `a` any more


def test_every_arm_has_its_seeds_and_reinforcement_follows_the_run_of_its_seed():
    planned = study_real.runs(False, [0, 1])
    assert len(planned) == 1 + 2 * (len(study_real.ARMS) + len(study_real.RL_ARMS))
    assert len({run.key for run in planned}) == len(planned)
    assert {run.after for run in planned if run.arm in study_real.RL_ARMS} == {study_real.BEST}
    assert study_real.BEST in study_real.ARMS


def test_rows_held_out_call_only_tools_that_no_training_row_offers(data):
    train, held_out = (study_rows.lines(data / name) for name in (study_rows.TRAIN, study_rows.HELD_OUT))
    offered = {name for row in train for name in study_rows.offered(row)}
    assert train and held_out
    assert not offered & {name for row in held_out for name in study_rows.called(row)}
    facts = json.loads((data / study_rows.FACTS).read_text())
    assert facts["rows"][study_rows.TRAIN] == len(train)
    assert sum(facts["fcdr"].values()) == len(train) - facts["rows"][study_rows.FCDR]
    # A loss on plain text compares with those of the committed runs, whatever the documents say by now.
    base = next(line for line in study_rows.lines(study.RUNS) if line["arm"] == "base" and line["scale"] == "real")
    assert facts["hashes"]["text.json"] == base["settings"]["data"]["text.json"]


def test_srml_and_egpo_from_it_leave_a_line_each_and_a_lost_start_is_only_trained_again(data, tmp_path):
    file, work = tmp_path / "runs.jsonl", tmp_path / "work"
    words = ["--quick", "--seeds=3", f"--data={data}", f"--work={work}", f"--runs={file}", f"--model={BASE}"]
    assert study.main([*words, f"--arms={study_real.BEST}"]) == 0
    log = work / f"{study_real.BEST}-3.log"
    assert "BFCL v3" in log.read_text()  # it was tested
    shutil.rmtree(work / f"{study_real.BEST}-3")
    assert study.main([*words, f"--arms={study_real.BEST},egpo,rate_0"]) == 0
    assert "BFCL v3" not in log.read_text()
    srml, egpo, still = study_rows.lines(file)
    for line in (srml, egpo):
        assert line["metrics"]["train_steps"] == 2
        assert len(line["metrics"]["bfcl_rows"]) == line["rows"] == study_rows.BFCL_QUICK
        assert len(line["metrics"]["heldout_rows"]) == line["settings"]["held_out_rows"] > 0
    assert (srml["arm"], egpo["arm"], still["arm"]) == (study_real.BEST, "egpo", "rate_0")
    assert len(egpo["metrics"]["curves"]["kl"]) == 2
    curves, of_start = egpo["metrics"]["curves"], still["metrics"]["curves"]
    assert of_start["entropy"][0] == curves["entropy"][0] > 0  # of the same completions for the same prompts
    assert of_start["kl"] == [0, 0]
    assert "heldout_rows" not in still["metrics"] and still["rows"] == 0  # it is its start, which was tested
    assert [path.name for path in work.iterdir() if path.is_dir()] == [f"{study_real.BEST}-3"]  # what others start from


def test_the_runner_runs_what_is_missing_and_nothing_twice(data, tmp_path, capfd):
    words = ["--quick", "--arms=base", "--seeds=0", f"--data={data}", f"--work={tmp_path / 'work'}"]
    words += [f"--runs={tmp_path / 'runs.jsonl'}", f"--model={BASE}"]
    assert study.main(words) == 0
    (line,) = study_rows.lines(tmp_path / "runs.jsonl")
    assert (line["arm"], line["seed"], line["rows"]) == ("base", 0, study_rows.BFCL_QUICK)
    assert study.main(words) == 0
    assert len(study_rows.lines(tmp_path / "runs.jsonl")) == 1
    assert "0 runs done" in capfd.readouterr().out


def test_a_folder_of_something_else_and_an_unknown_arm_end_the_command_in_a_sentence(tmp_path):
    words = [f"--work={tmp_path / 'work'}", f"--runs={tmp_path / 'runs.jsonl'}", f"--data={tmp_path}"]
    with pytest.raises(SystemExit, match="holds no rows that this version prepared"):
        study.main(words)
    (tmp_path / "data.json").write_text('{"system_prompt": ""}')
    with pytest.raises(SystemExit, match=r"there is no arm nope; there are [a-z0-9_., ]*srml_learnable"):
        study.main([*words, "--arms=nope"])
    assert not (tmp_path / "runs.jsonl").exists()


@pytest.mark.parametrize("words", [["--data=nowhere"], ["--scale=large"]])
def test_without_rows_or_with_another_scale_the_command_ends(words):
    with pytest.raises(SystemExit):
        study.parse(words)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_model_that_is_not_there_is_named_in_one_sentence(name, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        study.main([f"--model={tmp_path / name}", "--rows=rows.jsonl"])
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert said.endswith(f"argument --model: {tmp_path / name} is no folder of a model: it has no config.json")

"""The table of steps on a GPU: each row is kept as it ends, and one that fails is a row that says so."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are run from the repository and not installed
from benchmarks import gpu_step, record
from benchmarks.sharded_step import Case

NAMES = [("all weights, bf16-true", overlay) for overlay in ("fsdp", "ddp", "fsdp2")]
CASE = Case("SRML", "small")


@pytest.fixture
def steps(monkeypatch, tmp_path):
    """Runs that succeed but under ddp, and where they are recorded; gives the tables there were, one for each run."""
    tables = []

    def run(command, **options):
        if tables_of(tmp_path):
            tables.append(tables_of(tmp_path))
        if any("ddp" in word for word in command):
            return SimpleNamespace(returncode=1, stdout="memory  about 4 GiB", stderr="Traceback\nOutOfMemory: 1 | 2\n")
        (root,) = (Path(word.partition("=")[2]) for word in command if "default_root_dir" in word)
        (root / "srml-fit-0").mkdir(parents=True)
        (root / "srml-fit-0" / "metrics.csv").write_text(
            "name,value\nperf/tokens_per_s,1000\nperf/peak_mem_gb,2.147483648\n"
        )
        return SimpleNamespace(returncode=0, stdout="  memory        about 3.0 GiB of 80", stderr="")

    monkeypatch.setattr(record, "FOLDER", tmp_path)
    monkeypatch.setattr(record, "commit", lambda: "abc")
    monkeypatch.setattr(gpu_step.subprocess, "run", run)
    return tables


def tables_of(folder):
    results = folder / "results.json"
    if not results.exists():
        return []
    return json.loads(results.read_text())["Steps of a 7B shape on one GPU"]["rows"]


def test_a_failed_row_is_a_row_and_costs_no_other(steps, tmp_path, capsys):
    assert gpu_step.record_each(NAMES, CASE, "a card") == 1
    good, failed, last = tables_of(tmp_path)
    # 2.147483648 GB are 2 GiB, 3 of them 1.5 times as much.
    assert good[1:5] == ["fsdp", "2.0", "3.0", "1.50"] and last[1:5] == ["fsdp2", "2.0", "3.0", "1.50"]
    assert failed == ["all weights, bf16-true", "ddp", "failed: OutOfMemory: 1 / 2", "", "", "", ""]
    assert [len(table) for table in steps] == [1, 2]  # before the second and the third run
    assert "Traceback" in capsys.readouterr().err


def test_a_run_that_says_nothing_of_its_memory_has_failed(steps, monkeypatch, tmp_path):
    monkeypatch.setattr(
        gpu_step.subprocess, "run", lambda *a, **o: SimpleNamespace(returncode=0, stdout="", stderr="odd")
    )
    assert gpu_step.measured(*NAMES[0], CASE, [])[2] == "failed: odd"


@pytest.mark.slow
def test_a_run_is_measured_and_leaves_no_weights_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "0")  # of one rank: a port that is found free can be taken before it is bound
    gpu_step.model_folder(CASE, tmp_path / "model")
    brief = ["--trainer.max_steps=2", "--data.path=toolbox:train:8", "--data.batch_size=4", "--data.max_length=1024"]
    cpu = ["--trainer.accelerator=cpu", "--trainer.strategy.process_group_backend=gloo", *brief]
    metrics, guess = gpu_step.run(tmp_path / "model", "fsdp2", cpu, tmp_path / "runs")
    assert metrics["perf/tokens_per_s"] > 0 and guess > 0
    files = [file for file in (tmp_path / "runs").rglob("*") if file.is_file()]
    assert {"metrics.csv", "config.yaml"} <= {file.name for file in files}
    # A shape of two million weights: 8 MB in float32, and what is logged is far less than one of them.
    assert sum(file.stat().st_size for file in files) < 1e6


def test_without_a_gpu_nothing_is_recorded(steps, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_step.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_step"])
    with pytest.raises(SystemExit):
        gpu_step.main()
    assert "there is no GPU here to measure" in capsys.readouterr().err and not tables_of(tmp_path)

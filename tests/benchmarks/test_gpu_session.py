"""The steps of a GPU session, tried on the CPU; a measurement or a step that fails costs itself alone."""

import json
import re
import subprocess
import sys
import time
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are run from the repository and not installed
from benchmarks import gpu_attention, gpu_checks, gpu_device, gpu_report, gpu_session
from benchmarks.sharded_step import SHAPES


def ends(pid):
    """Whether a process is gone soon; a zombie, which nobody collects here, is."""
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def values_of(step, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", open("/dev/null"))
    gpu_session.measure(step, small=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    values = {name: value for line in lines for name, value in line.items()}
    assert not [value for value in values.values() if isinstance(value, dict) and "error" in value]
    assert values.pop("machine")["device"] == "CPU"
    return values


@pytest.mark.parametrize("step", ["versions", "attention", "head", "decode"])
def test_steps_measure(step, capsys, monkeypatch):
    assert len(values_of(step, capsys, monkeypatch)) >= 2


def test_scores_gradients_generation_and_optimizer_are_right_on_the_cpu(capsys, monkeypatch):
    values = values_of("correct", capsys, monkeypatch)
    for name, value in values.items():
        limit = 1e-4 if "float32" in name else 0.2
        for path in ("alone", "mask", "each document"):
            if path in value:
                assert value[path]["largest error, nats"] < limit and value[path]["gradient, relative"] < limit
        if "probe" in name:
            assert value["leak"] == "" and value["by document"] and value["shares prefixes"]
        if "generation" in name:
            assert value["greedy as generate"] == value["of"] == 6 and value["again"] and value["few"]
    assert values["AdamW"]["relative"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("step", ["bf16_true", "sft", "nccl", "compiled"])
def test_steps_that_train_measure(step, capsys, monkeypatch):
    assert values_of(step, capsys, monkeypatch)


@pytest.mark.slow
def test_the_step_of_the_whole_model_has_all_its_layers_and_the_estimate(capsys, monkeypatch):
    (value,) = values_of("whole", capsys, monkeypatch).values()
    assert value["layers"] == SHAPES["small"][2] and value["estimate, GiB"] > 0  # the peak is a GPU's


TESTS = """
import os, time
import pytest

def test_right():
    assert os.environ["FUNREASON_GPU_TESTS"] == "1"

def test_wrong():
    assert 1 == 2

@pytest.mark.skip("no such card")
def test_skipped():
    pass

def test_endless():
    time.sleep(600)
"""


@pytest.fixture
def some_tests(monkeypatch, tmp_path):
    """What the step of the tests runs; gives their file, and the processes that were started."""
    (file := tmp_path / "test_some.py").write_text(TESTS)
    processes, popen = [], gpu_checks.subprocess.Popen

    def started(*args, **options):
        processes.append(popen(*args, **options))
        return processes[-1]

    monkeypatch.setattr(gpu_checks, "GPU_TESTS", [str(file)])
    monkeypatch.setattr(gpu_checks.subprocess, "Popen", started)
    return file, processes


@pytest.mark.slow
def test_each_test_is_a_measurement_that_is_there_before_the_next_has_ended(some_tests):
    _, processes = some_tests
    values, step = {}, gpu_checks.tests(small=True)
    for name, take in step:
        values[name.rpartition(":")[2]] = take()
        if name.endswith("test_skipped"):
            break
    assert processes[0].poll() is None  # in the last of the tests
    step.close()
    assert processes[0].wait(60)  # and no longer
    assert values["test_right"]["outcome"] == "passed" and "error" not in values["test_right"]
    assert values["test_wrong"]["outcome"] == "failed" and "assert 1 == 2" in values["test_wrong"]["error"]
    assert values["test_skipped"]["outcome"] == "skipped"


@pytest.mark.slow
def test_the_end_of_pytest_is_there_behind_its_tests_and_an_error_where_it_had_none(some_tests, capsys, monkeypatch):
    file, _ = some_tests
    file.write_text("def test_one():\n    pass\n")
    *_, (_, test), (_, end) = values_of("tests", capsys, monkeypatch).items()
    assert test["outcome"] == "passed" and end["exit code"] == 0 and "1 passed" in end["end"]
    file.write_text("import no_such_module")
    *_, (_, take) = gpu_checks.tests(small=True)
    with pytest.raises(RuntimeError, match=r"pytest ended with exit code 2: (.|\n)*no_such_module"):
        take()


@pytest.mark.slow
def test_the_tests_that_need_a_gpu_are_found_and_skipped_without_one(capsys, monkeypatch):
    *found, end = values_of("tests", capsys, monkeypatch).values()
    assert [value["outcome"] for value in found] == ["skipped"] * 4 and end["exit code"] == 0


@pytest.fixture
def runs(monkeypatch):
    """Stands in for the runs of all strategies; gives their commands."""
    commands = {}

    class Run:
        returncode = 0

        def __init__(self, command, **options):
            given = dict(word.removeprefix("--").split("=", 1) for word in command if "=" in word)
            self.overlay, self.root = Path(given["config"]).stem, Path(given["trainer.default_root_dir"])
            commands[self.overlay] = given

        def communicate(self, timeout=None):
            if self.overlay == "ddp":
                if timeout is None:  # it was ended
                    return "", "waits for rank 1"
                raise subprocess.TimeoutExpired("fit", timeout)
            (self.root / "run").mkdir(parents=True)
            (self.root / "run" / "metrics.csv").write_text("name,value\ntrain/loss,4.5\ntrain/grad_norm,1\n")
            return "", ""

    monkeypatch.setattr(gpu_checks.subprocess, "Popen", Run)
    return commands


@pytest.mark.parametrize(("there", "used"), [(1, 1), (2, 2), (8, 2)])
def test_strategies_use_two_cards_where_there_are_and_one_that_hangs_costs_itself_alone(runs, monkeypatch, there, used):
    ended = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setattr(gpu_checks, "end", lambda process: ended.append(process.overlay))
    _, gpu, ddp, *others = gpu_checks.nccl(small=False)
    assert gpu[0] == "gpu" and gpu[1]() == {"devices": 1, "train/loss": [4.5], "train/grad_norm": [1.0]}
    with pytest.raises(TimeoutError, match=f"on {used} devices, ended late: \nwaits for rank 1"):
        ddp[1]()
    assert ended == ["ddp"]
    assert {name: take()["devices"] for name, take in others} == {"fsdp": used, "fsdp2": used}
    assert {name: given["trainer.devices"] for name, given in runs.items()} == {
        "gpu": "1",
        **dict.fromkeys(("ddp", "fsdp", "fsdp2"), str(used)),
    }


def test_the_table_of_strategies_says_how_many_cards_and_leaves_out_what_failed():
    values = {"ddp": {"devices": 2, "train/loss": [4.5, 2.25]}, "fsdp": {"error": "TimeoutError"}}
    _, columns, cells, _ = gpu_report.nccl(values | {"earlier": {"train/loss": [4.0]}})
    assert cells == [["ddp", "2", "4.5000 2.2500"], ["earlier", "1", "4.0000"]] and len(columns) == 3


@pytest.mark.skipif(bool(find_spec("vllm")), reason="of an environment without vLLM")
def test_the_step_of_vllm_says_where_there_is_none(capsys, monkeypatch):
    (said,) = values_of("vllm", capsys, monkeypatch).values()
    assert said.startswith("vLLM is not installed here, so nothing was measured")


def test_what_fails_costs_its_own_measurement_alone(capsys, monkeypatch):
    def versions(small):
        yield "first", partial(int, "x")
        yield "second", lambda: {"value": 2}

    monkeypatch.setattr(gpu_checks, "versions", versions)
    monkeypatch.setattr(sys, "stdin", open("/dev/null"))
    gpu_session.measure("versions", small=True)
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["first"]["error"].startswith("ValueError: invalid literal") and second["second"]["value"] == 2


def test_a_step_that_runs_out_of_time_keeps_what_it_said():
    said = "import sys, time; sys.stdin.readline(); print('{\"a\": 1}', flush=True); time.sleep(60)"
    crashed = "import sys; sys.stdin.readline(); print('{\"a\": 1}', flush=True); sys.exit('no memory')"
    late, _ = gpu_session.finish(gpu_session.child("sft", [sys.executable, "-c", said]), 2)
    assert late["values"] == {"a": 1} and late["error"] == "ended after 2 s"
    wrong, _ = gpu_session.finish(gpu_session.child("sft", [sys.executable, "-c", crashed]), 30)
    assert wrong["values"] == {"a": 1} and wrong["error"] == "exit code 1: no memory\n"


@pytest.mark.kills
def test_a_step_that_runs_out_of_time_leaves_nothing_behind():
    step = """
import json, subprocess, sys, time

sys.stdin.readline()
child = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE)  # as pytest has ranks
print(json.dumps({"started": [child.pid, int(child.stdout.readline())]}), flush=True)
time.sleep(600)
"""
    late, _ = gpu_session.finish(gpu_session.child("tests", [sys.executable, "-c", step]), 3)
    assert len(late["values"]["started"]) == 2 and late["error"] == "ended after 3 s"
    assert all(map(ends, late["values"]["started"]))


def test_every_step_is_where_the_session_looks_for_it():
    for step, (module, _) in gpu_session.STEPS.items():
        assert callable(getattr(import_module(f"benchmarks.{module}"), step))


def test_the_steps_end_within_the_time_of_the_script_and_each_within_nine_minutes():
    script = (Path(gpu_session.__file__).parent / "gpu_session.sh").read_text()
    limits = [seconds for _, seconds in gpu_session.STEPS.values()]
    assert sum(limits) <= int(re.search(r"LIMIT:-(\d+)", script)[1]) and max(limits) <= 9 * 60


def test_mixes_fill_a_row():
    assert all(sum(lengths) == 4096 for lengths in gpu_attention.MIXES.values())
    assert gpu_device.device_of(True) == torch.device("cpu")

"""The steps of a GPU session, tried on the CPU; a measurement or a step that fails costs itself alone."""

import json
import re
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are run from the repository and not installed
from benchmarks import gpu_attention, gpu_checks, gpu_device, gpu_session
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


def test_the_step_of_the_tests_shows_them_the_gpus(capsys, monkeypatch):
    given = {}

    def run(command, env=None, **options):
        given.update(command=command, shown=env["FUNREASON_GPU_TESTS"])
        return SimpleNamespace(returncode=0, stdout="1 passed")

    monkeypatch.setattr(gpu_checks.subprocess, "run", run)
    assert values_of("tests", capsys, monkeypatch)["test_fsdp1.py"]["exit code"] == 0
    assert given["shown"] == "1" and given["command"][-1].endswith("test_fsdp1.py")


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


def test_the_steps_end_within_the_time_of_the_script():
    script = (Path(gpu_session.__file__).parent / "gpu_session.sh").read_text()
    assert sum(seconds for _, seconds in gpu_session.STEPS.values()) <= int(re.search(r"LIMIT:-(\d+)", script)[1])


def test_mixes_fill_a_row():
    assert all(sum(lengths) == 4096 for lengths in gpu_attention.MIXES.values())
    assert gpu_device.device_of(True) == torch.device("cpu")

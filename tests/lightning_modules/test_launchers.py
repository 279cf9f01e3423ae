"""The launch scripts of `docs`, as two nodes of one CPU process each on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_runs import free_port, metrics, saved_state

DOCS = Path(__file__).resolve().parents[2] / "docs"
# 23 rows in batches of 8, 8 and 7: three steps.
RUN = {
    "data.init_args.batch_size": 8,
    "data.init_args.micro_batch_tokens": 4096,
    "trainer.max_epochs": 1,
    "trainer.strategy": "ddp",
    "last_checkpoint.every_n_train_steps": 50,
}
# What SLURM sets for a job of two nodes; its `srun` starts a task on each.
JOB = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "srml", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1"}
SRUN = f"""#!{sys.executable}
import os, sys

sys.path.insert(0, {str(Path(__file__).parent)!r})
from killed import kill_at
from lightning_modules.cli import main

_, program, *words = sys.argv[1:]
assert program == "funreason"
os.environ |= {{"SLURM_NTASKS": "2", "SLURM_NODELIST": "localhost", "SLURM_LOCALID": "0"}}
tasks = []
for number in "01":
    tasks.append(os.fork())  # of what is imported once
    if not tasks[-1]:
        os.environ |= {{"SLURM_PROCID": number, "SLURM_NODEID": number}}
        if "ENDED_IN_STEP" in os.environ:
            kill_at("SIGTERM", "SRMLModule.training_step", os.environ["ENDED_IN_STEP"])
        sys.argv = [program, *words]
        sys.exit(main())
ends = [os.waitstatus_to_exitcode(os.waitpid(task, 0)[1]) for task in tasks]
sys.exit(max(end if end >= 0 else 128 - end for end in ends))
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" > "$ASKED"
"""


@pytest.fixture
def environment(tmp_path):
    """Variables for the scripts, whose programs are looked for in `bin` first."""
    (tmp_path / "bin").mkdir()
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}


def write_program(folder, name, text):
    file = folder / "bin" / name
    file.write_text(text)
    file.chmod(0o755)


def start(script, args, environment):
    command = ["bash", str(DOCS / script), "--config", "configs/srml.yaml", *args]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def assert_steps(run, steps):
    """That two ranks have taken these steps, and left one folder."""
    assert {step for step, _ in metrics(run, ("train/",))} == steps
    assert len(saved_state(run, max(steps))["callbacks"]["ExactResume"]["ranks"]) == 2


@pytest.mark.ranks
@pytest.mark.kills
def test_two_nodes_by_torchrun_and_by_slurm_where_a_job_is_ended_and_requeued(base_args, tmp_path, environment):
    by_torchrun, by_slurm = tmp_path / "torchrun", tmp_path / "slurm"
    node = environment | {"NODES": "2", "GPUS": "1"}
    nodes = [start("torchrun.sh", base_args(by_torchrun, **RUN), node | {"NODE": rank}) for rank in "01"]
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert [run.name for run in by_torchrun.iterdir()] == ["srml-fit-0"]
    assert_steps(by_torchrun / "srml-fit-0", {1, 2, 3})

    asked = tmp_path / "asked"
    job = environment | JOB | {"RUNS": str(by_slurm), "ASKED": str(asked)}
    write_program(tmp_path, "srun", SRUN)
    write_program(tmp_path, "scontrol", SCONTROL)
    ended = start("slurm.sh", base_args(tmp_path, **RUN), job | {"ENDED_IN_STEP": "1"})
    said = ended.communicate(timeout=300)[0]
    assert ended.returncode == 143, said
    assert asked.read_text() == "requeue 4242\n"
    assert_steps(by_slurm / "srml-fit-0", {1, 2})  # the step of the signal is finished

    asked.unlink()
    requeued = start("slurm.sh", base_args(tmp_path, **RUN), job)
    said = requeued.communicate(timeout=300)[0]
    assert requeued.returncode == 0 and not asked.exists(), said
    assert_steps(by_slurm / "srml-fit-1", {3})
    expected = saved_state(by_torchrun / "srml-fit-0", 3)["state_dict"]
    for name, weight in saved_state(by_slurm / "srml-fit-1", 3)["state_dict"].items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("script", sorted(DOCS.glob("*.sh")), ids=lambda path: path.name)
def test_bash_can_read_the_scripts(script):
    subprocess.run(["bash", "-n", str(script)], check=True)

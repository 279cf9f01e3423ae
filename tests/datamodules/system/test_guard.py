"""Programs that another has started end with it, though nothing tells them to."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from datamodules.system import guard

ROOT = Path(__file__).resolve().parents[3]
STARTER = """
import os, sys
from datamodules.system import guard

guard.run([sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"])
"""
SAVING = """
import signal, sys
from datamodules.system import guard

signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
program = "import time"
program += "\\ntry: print('begun', flush=True), time.sleep(600)"
program += "\\nexcept KeyboardInterrupt: time.sleep(1), print('saved', flush=True)"
try:
    guard.run([sys.executable, "-c", program])
except KeyboardInterrupt:
    print("interrupted")
"""


def ends(pid, seconds=10):
    """Whether a process is gone by then; a zombie, which nobody collects here, is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.kills
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_program_ends_with_the_one_that_runs_it(number):
    command = [sys.executable, "-c", STARTER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as starter:
        pid = int(starter.stdout.readline())
        assert psutil.pid_exists(pid)
        starter.send_signal(number)
        assert starter.wait(30) == -number
    assert ends(pid)


@pytest.mark.kills
def test_ctrl_c_leaves_a_program_the_time_to_save():
    command = [sys.executable, "-c", SAVING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True) as starter:
        assert starter.stdout.readline() == "begun\n"
        os.killpg(starter.pid, signal.SIGINT)
        assert starter.stdout.read() == "saved\ninterrupted\n"


def test_a_program_that_runs_to_its_end_is_left_alone():
    assert guard.run(["sh", "-c", "exit 3"]).returncode == 3


def test_a_process_whose_parent_has_ended_before_it_could_ask_ends_too():
    other = os.getpid() + 1  # any number but the parent's, as there is once the parent is gone
    with subprocess.Popen(["sleep", "600"], preexec_fn=partial(guard.die_with_parent, other)) as process:
        assert process.wait(30) == -signal.SIGKILL


def test_children_inherit_nothing_of_a_distributed_run(monkeypatch):
    run = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    run["TORCHELASTIC_RUN_ID"] = "x"
    for name, value in run.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MINE", "before")
    before = dict(os.environ)
    with guard.environment_of_children({"MINE": "own", "MINE_TOO": "own"}):
        os.environ["SET_WITHIN"] = "1"
        inside = subprocess.run(["env"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    names = {line.split("=")[0] for line in inside}
    assert not names & run.keys() and {"MINE=own", "MINE_TOO=own"} <= {*inside} and "PATH" in names
    assert dict(os.environ) == before

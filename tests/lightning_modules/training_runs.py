"""What tests of training share: given batches, several ranks, and what a run has logged and saved."""

import csv
import os
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from lightning_modules.checkpointing.formats import load

REPEATABLE = ("train/", "tool/", "reward/", "policy/", "advantage/", "entropy_bonus/", "completion/")
"""Starts of the names of metrics that do not depend on the clock."""


class Steps:
    """A loader of given optimizer batches."""

    def __init__(self, *batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def metrics(run, prefixes=REPEATABLE):
    """What a run has logged, by step and name."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {(int(r["step"]), r["name"]): float(r["value"]) for r in rows if r["name"].startswith(prefixes)}


def saved_state(run, step):
    return load(run / "checkpoints" / f"last-{step:06d}.ckpt")


def assert_same(one, other):
    """That two states are equal to the bit."""
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, list | tuple):
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


@contextmanager
def rewards_module(folder, text):
    """The module `toy_rewards`, for this process and those that it starts."""
    (folder / "toy_rewards.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.delitem(sys.modules, "toy_rewards", raising=False)  # that of another file's tests
        patch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        yield patch


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(*args, ranks=2):
    """What two gloo ranks, or more, end with that run a program: a file or `-m MODULE`, and its arguments."""
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", f"--master_port={free_port()}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)

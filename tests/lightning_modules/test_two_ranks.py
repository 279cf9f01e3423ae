"""One process and two gloo ranks take the same optimizer steps, alpha included."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_modules.cli import main

# A micro-batch is one row of one document. 23 rows in batches of 11, 11 and 1: the ranks of the first two have six and
# five micro-batches, and in the third one rank has none.
OPTIONS = {
    "model.init_args.balance": "learnable",
    "model.init_args.alpha_lr_mult": 100,
    "model.init_args.learning_rate": 0.001,
    "data.init_args.batch_size": 11,
    "data.init_args.max_length": 700,
    "data.init_args.micro_batch_tokens": 700,
    "data.init_args.val_fraction": 0.05,
    "trainer.max_epochs": 1,
    "trainer.precision": "64-true",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base_args):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    command = ["fit", "--config", "configs/srml.yaml"]
    main(command + base_args(one, **OPTIONS))
    ranks = {"trainer.devices": 2, "trainer.strategy": "ddp"}
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    worker = str(Path(__file__).with_name("two_ranks.py"))
    done = subprocess.run(
        [sys.executable, *launcher, worker, *command, *base_args(two, **OPTIONS | ranks)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return one / "version_0", two / "version_0"


def checkpoint(run):
    return torch.load(run / "checkpoints" / "last-000003.ckpt", weights_only=True)


def test_weights_and_alpha_are_the_same(runs):
    one, two = (checkpoint(run)["state_dict"] for run in runs)
    assert one["alpha_logit"].dtype == torch.float64 and one["alpha_logit"].item() != pytest.approx(0.8473, abs=0.01)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-9, atol=1e-9, msg=name)


def test_figures_are_the_same(runs):
    figures = []
    for run in runs:
        with (run / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["name"].startswith(("train/", "tool/"))]
        figures.append({(row["step"], row["name"]): float(row["value"]) for row in rows})
    assert figures[0] == pytest.approx(figures[1], rel=1e-6)
    assert ("3", "train/grad_norm") in figures[0] and ("3", "tool/exact_match") in figures[0]


def test_one_folder_with_the_random_states_of_both(runs):
    assert [path.name for path in runs[1].parent.iterdir()] == ["version_0"]
    assert len(checkpoint(runs[1])["callbacks"]["ExactResume"]["ranks"]) == 2
    samples = (runs[1] / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in samples] == [3]
    assert (runs[1] / "hf" / "model.safetensors").is_file()

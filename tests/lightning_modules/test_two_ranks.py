"""One process and two gloo ranks take the same optimizer steps, alpha included, and predict the same."""

import json

import pytest
import torch
from training_runs import command_on_ranks, metrics, saved_state

from lightning_modules.cli import main

pytestmark = pytest.mark.ranks

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


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base_args):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    command = ["fit", "--config", "configs/srml.yaml"]
    main(command + base_args(one, **OPTIONS))
    ranks = {"trainer.devices": 2, "trainer.strategy": "ddp"}
    done = command_on_ranks(*command, *base_args(two, **OPTIONS | ranks))
    assert done.returncode == 0, done.stderr[-4000:]
    return one / "srml-fit-0", two / "srml-fit-0"


def test_weights_and_alpha_are_the_same(runs):
    one, two = (saved_state(run, 3)["state_dict"] for run in runs)
    assert one["alpha_logit"].dtype == torch.float64 and one["alpha_logit"].item() != pytest.approx(0.8473, abs=0.01)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-9, atol=1e-9, msg=name)


def test_metrics_are_the_same(runs):
    one, two = (metrics(run, ("train/", "tool/", "val/")) for run in runs)
    assert one == pytest.approx(two, rel=1e-6)
    assert (3, "train/grad_norm") in one and (3, "tool/exact_match") in one
    assert {(3, "val/loss_cot"), (3, "val/loss_call")} <= one.keys()


def test_one_folder_with_the_random_states_of_both(runs):
    assert [path.name for path in runs[1].parent.iterdir()] == ["srml-fit-0"]
    assert len(saved_state(runs[1], 3)["callbacks"]["ExactResume"]["ranks"]) == 2
    samples = (runs[1] / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in samples] == [3]
    assert (runs[1] / "hf" / "model.safetensors").is_file()


def test_rows_that_cannot_be_read_are_one_sentence_of_all_ranks(base_args, tmp_path):
    options = {"data.init_args.path": tmp_path / "absent.jsonl", "trainer.devices": 2, "trainer.strategy": "ddp"}
    done = command_on_ranks("fit", "--config", "configs/srml.yaml", *base_args(tmp_path, **options))
    assert done.returncodes == [1, 1]
    assert done.stderr.count("error: ") == 1 and "Connection closed" not in done.stderr, done.stderr
    assert f"error: there is no file, folder or data set {tmp_path / 'absent.jsonl'} (traceback" in done.stderr


@pytest.mark.parametrize("strategy", ["DDP", "FSDP2"])
def test_rollouts_of_all_ranks_are_in_one_file_once_each_in_the_order_of_the_rows(base_args, tmp_path, strategy):
    # of 24 rows in batches of 7 the ranks have 4 and 3, four times less the one of the last batch
    options = {"data.init_args.eval_batch_size": 7}
    command = ["predict", "--config", "configs/sample.yaml"]
    main(command + base_args(tmp_path / "one", **options))
    ranks = {"trainer.devices": 2, "trainer.strategy.class_path": f"lightning_modules.strategies.{strategy}"}
    done = command_on_ranks(*command, *base_args(tmp_path / "two", **options | ranks))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("Rollouts: ") == 1
    one, two = (tmp_path / which / "srml-predict-0" for which in ("one", "two"))
    rows = [json.loads(line) for line in (two / "rollouts.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [str(i) for i in range(24)]
    assert rows == [json.loads(line) for line in (one / "rollouts.jsonl").read_text().splitlines()]
    assert {path.name for path in two.glob("rollouts*")} == {"rollouts.jsonl"}

"""FSDP1 takes the steps of a process without it: on one GPU, over two gloo ranks, and over two nodes of two."""

import pytest
import torch
from safetensors.torch import load_file
from training_runs import command_on_ranks, metrics
from two_nodes import stand_on_two_nodes

from lightning_modules.checkpointing.formats import load
from lightning_modules.cli import main

pytestmark = pytest.mark.ranks
OPTIONS = {
    "trainer.accelerator": "gpu",
    "trainer.devices": 1,
    "trainer.max_epochs": 2,
    "model.init_args.learning_rate": 0.001,
    "model.init_args.epsilon": 0.001,  # no gradient that is all rounding decides a step
    "model.init_args.weight_decay": 0.1,
    "model.init_args.max_grad_norm": 0.5,
    "data.init_args.batch_size": 11,
    "data.init_args.val_fraction": 0.05,
    "best_checkpoint.monitor": "null",  # keep every step
    "best_checkpoint.every_n_train_steps": 1,
    "best_checkpoint.save_top_k": -1,
}
KINDS = {
    "alpha": {"model.init_args.balance": "learnable", "model.init_args.alpha_lr_mult": 100},
    "adapters": {"model.init_args.lora.r": 4},
}
EPOCH = OPTIONS | KINDS["alpha"] | {"trainer.accelerator": "cpu", "trainer.max_epochs": 1}
SRML = ["fit", "--config", "configs/srml.yaml"]
FSDP1 = "--trainer.strategy.class_path=lightning_modules.strategies.FSDP1"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="of one GPU")
@pytest.mark.parametrize("sharded", ["true", "false"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_clipping_checkpoints_and_export(base_args, tmp_path, kind, sharded):
    options = OPTIONS | KINDS[kind]
    main(SRML + base_args(tmp_path / "plain", **options))
    shards = [FSDP1, f"--trainer.strategy.init_args.save_sharded={sharded}"]
    command = [*SRML, *base_args(tmp_path / "fsdp", **options), *shards]
    done = command_on_ranks(*command, ranks=1)
    assert done.returncode == 0, done.stderr[-4000:]
    half = tmp_path / "fsdp" / "srml-fit-0" / "checkpoints" / "best-000002.ckpt"
    assert half.is_dir() == (sharded == "true")
    done = command_on_ranks(*command, "--ckpt_path", str(half), ranks=1)
    assert done.returncode == 0, done.stderr[-4000:]
    plain, *others = tmp_path / "plain" / "srml-fit-0", *(tmp_path / "fsdp" / f"srml-fit-{i}" for i in (0, 1))
    assert metrics(plain)[1, "train/grad_norm"] > 0.5
    for run in others:
        assert_same_run(plain, run, 6)


@pytest.fixture(scope="module")
def plain(base_args, tmp_path_factory):
    """An epoch of one process with a learnable alpha."""
    root = tmp_path_factory.mktemp("plain")
    main(SRML + base_args(root, **EPOCH))
    return root / "srml-fit-0"


def test_two_ranks_take_the_steps_of_one_and_go_on_from_either_kind_of_checkpoint(base_args, tmp_path, plain):
    others = [tmp_path / f"srml-fit-{i}" for i in range(3)]
    command = [*SRML, *base_args(tmp_path, **EPOCH | {"trainer.devices": 2})]
    shards, file = others[0] / "checkpoints" / "best-000002.ckpt", plain / "checkpoints" / "best-000002.ckpt"
    one_file = "--trainer.strategy.init_args.save_sharded=false"
    for more in ([], [one_file, "--ckpt_path", str(shards)], ["--ckpt_path", str(file)]):
        done = command_on_ranks(*command, FSDP1, *more)
        assert done.returncode == 0, done.stderr[-4000:]
    assert shards.is_dir() and file.is_file() and (others[1] / "checkpoints" / "best-000003.ckpt").is_file()
    for run in others:
        assert_same_run(plain, run, 3)


def test_two_nodes_of_hybrid_shards_take_the_steps_of_one_process_and_go_on(base_args, tmp_path, plain):
    command = [*SRML, *base_args(tmp_path, **EPOCH | {"trainer.devices": 2, "trainer.num_nodes": 2}), FSDP1]
    command.append("--trainer.strategy.init_args.sharding_strategy=HYBRID_SHARD")
    runs = [tmp_path / f"srml-fit-{i}" for i in range(2)]
    half = runs[0] / "checkpoints" / "best-000002.ckpt"
    for more in ([], ["--ckpt_path", str(half)]):
        done = command_on_ranks(*command, *more, ranks=4, before=stand_on_two_nodes)
        assert done.returncode == 0, done.stderr[-4000:]
    assert half.is_dir()
    for run in runs:
        assert_same_run(plain, run, 3)


def test_two_ranks_go_on_from_the_file_of_one_process_that_leaves_frozen_weights_out(base_args, tmp_path):
    options = OPTIONS | KINDS["adapters"] | {"trainer.accelerator": "cpu", "trainer.max_epochs": 1}
    main(SRML + base_args(tmp_path / "plain", **options))
    plain, command = tmp_path / "plain" / "srml-fit-0", [*SRML]
    file = plain / "checkpoints" / "best-000002.ckpt"
    command += [*base_args(tmp_path / "fsdp", **options | {"trainer.devices": 2}), FSDP1, "--ckpt_path", str(file)]
    done = command_on_ranks(*command)
    assert done.returncode == 0, done.stderr[-4000:]
    assert_same_run(plain, tmp_path / "fsdp" / "srml-fit-0", 3)


def assert_same_run(plain, run, steps):
    logged = metrics(run)
    assert logged == pytest.approx({key: metrics(plain)[key] for key in logged}, rel=1e-4, abs=1e-5)
    for read in (lambda r: load(r / "checkpoints" / f"best-{steps:06d}.ckpt")["state_dict"], read_export):
        expected, got = read(plain), read(run)
        assert expected.keys() == got.keys()
        for name, weight in expected.items():
            torch.testing.assert_close(got[name].cpu(), weight.cpu(), rtol=1e-4, atol=1e-5, msg=name)


def read_export(run):
    return load_file(run / "hf" / "model.safetensors")

"""EGPO in shards over gloo ranks: rollouts from gathered weights, the updates of one process, and how it goes on."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import assert_same, command_on_ranks, metrics, rewards_module, run_ranks

from lightning_modules.checkpointing.formats import load
from lightning_modules.cli import main

pytestmark = pytest.mark.ranks

TOY = '''
"""A reward that a model of random weights earns now and then."""
def vowels(completion, tools, answers):
    return sum(c in "aeiou" for c in completion) / 4
'''
CONFIG = ["fit", "--config", "configs/grpo.yaml"]
# 23 rows in batches of 22 prompts and of 1, each in two mini-batches: of the last a rank has nothing, or nobody has.
RUN = {
    "data.init_args.val_path": "null",
    "data.init_args.prompts_per_step": 22,
    "model.init_args.sampling.group_size": 2,
    "model.init_args.mini_batches": 2,
    "model.init_args.micro_batch_tokens": 1400,
    "model.init_args.learning_rate": 0.001,
    "model.init_args.epsilon": 0.001,  # no gradient that is all rounding decides a step
    "model.init_args.loss.kl_coef": 0.1,
    "model.init_args.entropy_bonus.level": "token",  # random weights write no chain of thought
    "model.init_args.rewards": '{"vowels": {"function": "toy_rewards.vowels"}}',
    "model.init_args.reward_timeout": 60,
    "trainer.max_epochs": 1,
    "trainer.max_steps": -1,
    "trainer.val_check_interval": "null",
    "trainer.check_val_every_n_epoch": 1,
    "best_checkpoint.monitor": "null",  # keep every step
    "best_checkpoint.every_n_train_steps": 1,
    "best_checkpoint.save_top_k": -1,
}
SHARDED = ["--trainer.devices=2", "--trainer.strategy.class_path=lightning_modules.strategies.FSDP2"]
KINDS = {
    "all weights": {},
    "adapters": {
        "model.init_args.lora.r": 4,
        "model.init_args.lora.target_modules": "all-linear",
        "model.init_args.dynamic_sampling.max_draws": 2,  # of the prompts of the other batch
    },
}


@pytest.fixture(scope="module", autouse=True)
def toy(tmp_path_factory):
    with rewards_module(tmp_path_factory.mktemp("toy"), TOY):
        yield


def at(run, step):
    return run / "checkpoints" / f"best-{step:06d}.ckpt"


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_sample_and_learn_what_one_does_and_go_on_half_way(base_args, tmp_path, kind):
    options = RUN | KINDS[kind]
    main(CONFIG + base_args(tmp_path / "one", **options))
    command = [*CONFIG, *base_args(tmp_path / "two", **options), *SHARDED]
    done = command_on_ranks(*command)
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = (tmp_path / which / "egpo-fit-0" for which in ("one", "two"))
    states = [load(at(run, 4))["state_dict"] for run in (one, two)]
    assert states[0].keys() == states[1].keys()
    for name, weight in states[0].items():
        torch.testing.assert_close(states[1][name], weight, rtol=1e-5, atol=1e-5, msg=name)
    logged = metrics(one)
    assert metrics(two) == pytest.approx(logged, rel=1e-4, abs=1e-5)
    assert logged[1, "policy/loss"] != 0 and logged[3, "policy/kl"] > 0 and logged[1, "entropy_bonus/mean"] != 0
    weights = [load_file(run / "hf" / "model.safetensors") for run in (one, two)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-5, atol=1e-5, msg=name)
    if kind == "adapters":
        tries = [metrics(run, ("sampling/",)) for run in (one, two)]
        assert tries[0] == tries[1] and tries[0][1, "sampling/tries"] == 1  # then no prompt is left
        return
    done = command_on_ranks(*command, "--ckpt_path", str(at(two, 1)))  # in the middle of the first batch's rollouts
    assert done.returncode == 0, done.stderr[-4000:]
    assert_same(load(at(two.with_name("egpo-fit-1"), 4))["state_dict"], states[1])
    flat = command[-1].replace("FSDP2", "FSDP1")  # which then checks the reference that it has shards of
    done = command_on_ranks(*command[:-1], flat, "--ckpt_path", str(at(two, 1)))
    assert done.returncode == 0, done.stderr[-4000:]
    for name, weight in load(at(two.with_name("egpo-fit-2"), 4))["state_dict"].items():
        torch.testing.assert_close(weight, states[1][name], rtol=1e-5, atol=1e-5, msg=name)


def test_one_of_two_ranks_receives_sigterm_and_both_save_their_shards(base_args, tmp_path):
    command = [*CONFIG, *base_args(tmp_path, **RUN), *SHARDED]
    done = run_ranks(Path(__file__).with_name("killed.py"), "SIGTERM", "GRPOModule.clip_gradients", 0, *command)
    assert done.returncode != 0 and "exitcode  : 143" in done.stderr, done.stderr[-4000:]
    saved = tmp_path / "egpo-fit-0" / "checkpoints" / "last-000001.ckpt"
    assert saved.is_dir() and len(load(saved)["rollouts"]) == 2

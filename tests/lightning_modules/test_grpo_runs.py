"""Whole GRPO runs through the command line: what they leave, how they go on after SIGKILL, two ranks, refusals."""

import json
import math
import os
import re
import signal
from functools import partial

import pytest
import torch
import yaml
from killed import kill_at
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import (
    assert_same,
    command_on_ranks,
    metrics,
    press_ctrl_c_in_step,
    rewards_module,
    saved_state,
)
from transformers import AutoModelForCausalLM

from lightning_modules import GRPOModule, evaluation
from lightning_modules.callbacks.validations import KNOWN
from lightning_modules.cli import FunReasonCLI, main

CONFIG = ["fit", "--config", "configs/grpo.yaml"]
TOY = '''
"""Rewards that a model of random weights earns now and then, and a loss."""
from dataclasses import dataclass
from lightning_modules.objectives import PolicyLoss
def vowels(completion, tools, answers):
    return float(sum(c in "aeiou" for c in completion) > 2)
def picky(completion, tools, answers):
    if len(completion) % 5 == 0:
        raise ValueError("a length that nobody can judge")
    return sum(c in "aeiou" for c in completion) / 4
def lucky(completion, tools, answers):
    return float(vowels(completion, tools, answers) > 0.5)
def boom(completion, tools, answers):
    raise KeyError("city")
@dataclass(frozen=True)
class Halved(PolicyLoss):
    share: float = 1.0
    def __call__(self, *tensors, **options):
        loss, parts = super().__call__(*tensors, **options)
        return self.share * loss, parts
def moody(completion, tools, answers):
    return None if "e" in completion else 1.0
'''
# 23 rows to train on, 4 prompts a batch, 4 optimizer steps a batch: step 6 is the middle of the second one's buffer.
# Some groups are alike, and further prompts are drawn for each batch.
RUN = {
    "data.init_args.val_path": "null",
    "data.init_args.prompts_per_step": 4,
    "model.init_args.sampling.group_size": 4,
    "model.init_args.mini_batches": 2,
    "model.init_args.inner_epochs": 2,
    "model.init_args.dynamic_sampling.max_draws": 2,
    "model.init_args.micro_batch_tokens": 1400,
    "model.init_args.learning_rate": 0.01,
    "model.init_args.rewards": '{"vowels": {"function": "toy_rewards.vowels"}}',
    "model.init_args.reward_timeout": "null",
    "trainer.max_steps": 10,
    "trainer.val_check_interval": 5,
    "last_checkpoint.every_n_train_steps": 1,
}
ROWS_TOGETHER = (
    r"(\d+) rows together on each rank, (\d+) after the longest prompts \(token_budget 2,000\): (\d+) turns of at "
    r"most 8 tokens, so up to (\d+) decoding steps"
)
LORA = {"model.init_args.lora.r": 2, "model.init_args.lora.dropout": 0.2}  # of which no update makes use


@pytest.fixture(scope="module", autouse=True)
def toy(tmp_path_factory):
    with rewards_module(tmp_path_factory.mktemp("toy"), TOY) as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # sums are bit-equal only over as many threads
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tmp_path_factory, base_args):
    root = tmp_path_factory.mktemp("runs")
    main(CONFIG + base_args(root, **RUN | LORA))
    return root / "egpo-fit-0"


def test_metrics_of_a_run(run):
    logged = metrics(run, ("",))
    assert all(math.isfinite(value) for value in logged.values())
    validated = {name for _, name in logged if name.startswith(("tool/", "val/"))}
    assert {"tool/exact_match", "val/loss_call"} <= validated <= KNOWN  # to the check of what checkpoints go by
    sampled = {step for step, name in logged if name == "reward/mean"}
    assert sampled == {1, 5, 9}  # the first of every four
    every_step = {"policy/loss", "policy/kl", "policy/entropy", "policy/clip_low", "policy/clip_high"}
    every_step |= {"policy/ratio_mean", "policy/ratio_max", "train/grad_norm", "train/lr", "time/step", "time/update"}
    every_step |= {"perf/tokens_per_s", "perf/samples_per_s", "perf/pad_frac"}
    per_batch = {f"advantage/{name}" for name in ("mean", "std", "min", "max")}
    per_batch |= {f"reward/{name}" for name in ("std", "vowels/mean", "errors", "frac_zero_std", "mean_first")}
    per_batch |= {f"entropy_bonus/{n}" for n in ("mean", "raw_mean", "clipped_frac", "share_of_advantage")}
    per_batch |= {
        f"completion/{n}" for n in ("mean_length", "min_length", "max_length", "truncated_frac", "no_eos_frac")
    }
    per_batch |= {"rollout/exact_match", "rollout/parse_rate", "rollout/n_calls", "sampling/resampled_frac"}
    per_batch |= {"sampling/tries", "sampling/filled_frac"}
    per_batch |= {f"time/{n}" for n in ("generate", "reward", "old_logprob", "ref_logprob", "weight_sync", "wait")}
    for step in range(1, 11):
        names = {name for s, name in logged if s == step}
        assert every_step <= names
        assert (per_batch <= names) == (step in sampled)
    assert {step for step, name in logged if name == "tool/exact_match"} == {5, 10}
    assert (5, "val/completion/mean_length") in logged
    assert logged[1, "reward/frac_zero_std"] < 1 and logged[2, "policy/kl"] > logged[1, "policy/kl"]
    tries = {step: logged[step, "sampling/tries"] for step in sampled}
    assert set(tries.values()) <= {0, 1, 2} and max(tries.values()) > 0
    for step in sampled:
        assert logged[step, "sampling/filled_frac"] == 1 - logged[step, "reward/frac_zero_std"] > 0
    for step in sampled:  # whose update is on policy: nothing is dropped out
        assert logged[step, "policy/ratio_max"] == pytest.approx(1, abs=1e-5)


def test_tensorboard_has_panels_histogram_and_samples(run):
    events = EventAccumulator(str(run), {"histograms": 0, "scalars": 0, "tensors": 0}).Reload()
    assert [event.step for event in events.Scalars("policy/kl")] == list(range(1, 11))
    assert {"samples/train/text_summary", "samples/val/text_summary"} <= set(events.Tags()["tensors"])
    assert [event.step for event in events.Histograms("advantage/histogram")] == [1, 5, 9]
    (layout,) = events.Tensors("custom_scalars__config__")
    for tag in (b"policy/kl", b"reward/mean", b"entropy_bonus/mean", b"clipped_frac", b"share_of_advantage"):
        assert tag in layout.tensor_proto.string_val[0]
    rows = [json.loads(line) for line in (run / "train_samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1] * 8  # next after ten steps
    assert {"completion", "scores", "reward", "advantage", "answers", "parts"} <= rows[0].keys()


def test_table_at_the_start(base_args, tmp_path, capsys):
    options = {"trainer.max_steps": 5, "model.init_args.loss.ratio_level": "sequence", "data.init_args.seed": 3}
    options |= {"model.init_args.generator.init_args.token_budget": 2000}
    main(CONFIG + base_args(tmp_path, **RUN | options))
    lines = capsys.readouterr().out.splitlines()
    table = {line[2:16].strip(): line[16:] for line in lines if line.startswith("  ")}
    assert table["rollouts"].startswith("4 prompts x 4 completions = 16 a batch, of at most 8 tokens")
    assert table["updates"] == "2 x 2 mini-batches of 8 rollouts = 4 optimizer steps a batch"
    assert table["whole run"] == "2 batches, 8 prompts, 32 rollouts at most"
    assert (
        table["rollouts"].endswith("temperature 1 and top-p 1, by seed 42") and "order is that of seed 3." in lines[1]
    )
    assert table["validation"] == "1 prompts, 64 at a time over all ranks"
    # GSPO as published, and rows of at most 2,000 tokens with their 8 new ones.
    assert table["objective"].endswith("ratio by sequence, clipped at 1 - 0.0003 and 1 + 0.0004; seq_mean")
    together, fewest, turns, steps = map(int, re.match(ROWS_TOGETHER, table["generation"]).groups())
    assert 1 < fewest <= together < 16 and turns == -(-16 // together) and steps == turns * 8
    (said,) = [line for line in lines if line.startswith("The first batch of rollouts took")]
    seconds = sum(value for (step, name), value in metrics(tmp_path / "egpo-fit-0", ("time/step",)).items() if step < 5)
    first, each, rest = map(
        float, re.search(r"took ([\d.]+) s, ([\d.]+) s an .* the (\d) steps to come", said).groups()
    )
    assert (first, each, rest) == pytest.approx((seconds, seconds / 4, 1), abs=0.06)
    assert table["more prompts"] == "up to 2 times 4 a batch, until 4 groups have rewards that differ"
    assert "a frozen copy" in table["objective"] and "(100.0%)" in table["model"]
    assert table["rewards"] == (
        "1 x vowels; a completion on which one fails is not learnt from, and more than 25% of a batch stop the run"
    )


@pytest.mark.slow
def test_exported_model_and_saved_config_that_runs_again(run, tmp_path):
    AutoModelForCausalLM.from_pretrained(run / "hf")
    main(["fit", "--config", str(run / "config.yaml"), f"--trainer.default_root_dir={tmp_path}"])
    assert metrics(tmp_path / "egpo-fit-0") == metrics(run)
    assert_same(saved_state(tmp_path / "egpo-fit-0", 10)["state_dict"], saved_state(run, 10)["state_dict"])


@pytest.mark.slow
def test_the_order_of_the_prompts_and_the_sampler_take_the_seed_of_the_run_unless_they_have_their_own(
    base_args, tmp_path
):
    own = {"data.init_args.seed": 1, "model.init_args.generator.init_args.seed": 1}
    runs = [{"seed_everything": 1}, {"seed_everything": 1}, {"seed_everything": 2}, {"seed_everything": 2} | own]
    options = RUN | {"trainer.max_steps": 2, "trainer.limit_val_batches": 0}
    for i, seeds in enumerate(runs):
        main(CONFIG + base_args(tmp_path / str(i), **options | seeds))
    states = [saved_state(tmp_path / str(i) / "egpo-fit-0", 2)["state_dict"] for i in range(len(runs))]
    prompts = [
        [json.loads(line)["id"] for line in (tmp_path / str(i) / "egpo-fit-0/train_samples.jsonl").open()]
        for i in range(len(runs))
    ]
    assert_same(states[1], states[0])
    assert_same(states[3], states[0])  # all weights are trained, and nothing else draws random numbers
    assert prompts[0] == prompts[3] != prompts[2]
    with pytest.raises(AssertionError):
        assert_same(states[2], states[0])


@pytest.mark.slow
def test_at_a_rate_of_0_a_run_samples_its_start_for_the_prompts_that_it_would_have_learnt_from(
    base_args, tmp_path, tiny_model_dir
):
    one_each = {f"model.init_args.{key}": 1 for key in ("mini_batches", "inner_epochs")}
    options = RUN | one_each | {"model.init_args.dynamic_sampling.max_draws": 0, "trainer.max_steps": 3}
    options |= {"trainer.limit_val_batches": 0, "rollouts.every_n_steps": 1, "rollouts.rows": 16}
    sampled = []
    for rate in (0.01, 0):
        root = tmp_path / str(rate)
        main(CONFIG + base_args(root, **options | {"model.init_args.learning_rate": rate}))
        lines = map(json.loads, (root / "egpo-fit-0/train_samples.jsonl").open())
        sampled.append([(line["step"], line["id"], line["completion"]) for line in lines])
    learnt, still = sampled
    assert len(learnt) == 3 * 16 and [row[:2] for row in learnt] == [row[:2] for row in still]
    assert learnt[:16] == still[:16] and learnt[16:] != still[16:]
    ours, start = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (root / "egpo-fit-0/hf", tiny_model_dir)
    )
    assert_same(ours, start)


def assert_went_on(run, resumed, step):
    """That a run resumed at a step did the same as the one that was not interrupted, bit for bit."""
    whole, again = metrics(run), metrics(resumed)
    assert {s for s, name in again if name == "policy/loss"} == set(range(step + 1, 11))
    assert {key: whole[key] for key in again} == again
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "rollouts"):
        assert_same(saved_state(resumed, 10)[key], saved_state(run, 10)[key])
    assert_same(saved_state(resumed, 10)["callbacks"]["ExactResume"], saved_state(run, 10)["callbacks"]["ExactResume"])
    batches, whole = (
        saved_state(of, 10)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"] for of in (resumed, run)
    )
    assert batches == whole


# Between two optimizer steps and inside one; in the middle of a buffer, and while one is filled (step 8 samples anew).
PLACES = [("training_step", 6), ("clip_gradients", 3), ("score", 8)]


@pytest.mark.kills
@pytest.mark.parametrize(("method", "step"), PLACES)
def test_run_killed_by_sigkill_goes_on_as_if_it_had_not_been(run, base_args, tmp_path, method, step):
    args = base_args(tmp_path, **RUN | LORA)
    dying = partial(kill_at, "SIGKILL", f"GRPOModule.{method}", step)
    done = command_on_ranks(*CONFIG, *args, ranks=1, before=dying)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    killed = tmp_path / "egpo-fit-0"
    assert max(path.name for path in (killed / "checkpoints").glob("last-*")) == f"last-{step:06d}.ckpt"
    (buffer,) = saved_state(killed, step)["rollouts"]
    assert (buffer and buffer["updates_done"]) == (step % 4 or None)
    main([*CONFIG, *args, "--ckpt_path", str(killed)])
    assert_went_on(run, tmp_path / "egpo-fit-1", step)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def press_ctrl_c():
    raise KeyboardInterrupt


def engine_dies():
    raise RuntimeError("The engine died.")


ENDS = [
    ("clip_gradients", 2, terminate, 3, SystemExit, 143),  # the step is finished first
    ("clip_gradients", 5, press_ctrl_c, 5, SystemExit, 130),  # the step is undone
    ("score", 8, engine_dies, 8, SystemExit, None),  # and its rollouts are sampled again
    ("log_metrics", 6, press_ctrl_c, 6, SystemExit, None),  # the step is taken, in the middle of a buffer
]


@pytest.mark.kills
@pytest.mark.parametrize(("method", "step", "event", "saved", "raised", "code"), ENDS)
def test_what_ends_a_run_leaves_a_checkpoint_to_go_on_from(
    run, base_args, tmp_path, monkeypatch, method, step, event, saved, raised, code
):
    original = getattr(GRPOModule, method)

    def end(module, *args, **named):
        if module.global_step == step and not module.trainer.sanity_checking:
            event()
        return original(module, *args, **named)

    args = base_args(tmp_path, **RUN | LORA | {"last_checkpoint.every_n_train_steps": 50})
    with monkeypatch.context() as patch, pytest.raises(raised) as error:
        patch.setattr(GRPOModule, method, end)
        main(CONFIG + args)
    assert code is None or error.value.code == code
    ended = tmp_path / "egpo-fit-0"
    assert [path.name for path in (ended / "checkpoints").glob("last-*")] == [f"last-{saved:06d}.ckpt"]
    assert not (ended / "hf").exists()
    main([*CONFIG, *args, "--ckpt_path", str(ended)])
    assert_went_on(run, tmp_path / "egpo-fit-1", saved)


@pytest.mark.kills
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_that_meets_the_optimizer_waits_until_the_step_is_whole(run, base_args, tmp_path, monkeypatch):
    args = base_args(tmp_path, **RUN | LORA | {"last_checkpoint.every_n_train_steps": 50})
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as error:
        press_ctrl_c_in_step(6, patch)  # the second of four on the second batch
        main(CONFIG + args)
    ended = tmp_path / "egpo-fit-0"
    assert error.value.code == 130 and (ended / "checkpoints" / "last-000006.ckpt").exists()
    main([*CONFIG, *args, "--ckpt_path", str(ended)])
    assert_went_on(run, tmp_path / "egpo-fit-1", 6)


class Killed(BaseException):
    """What no handler turns into an orderly end."""


@pytest.mark.kills
def test_full_fine_tuning_resumes_beside_a_frozen_copy(base_args, tmp_path, tiny_model_dir, monkeypatch):
    options = RUN | {"trainer.max_steps": 4}
    main(CONFIG + base_args(tmp_path, **options))
    update = GRPOModule.update

    def kill(module, buffer):
        if module.global_step == 3:
            raise Killed
        return update(module, buffer)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(GRPOModule, "update", kill)
        main(CONFIG + base_args(tmp_path, **options))
    whole, killed, resumed = (tmp_path / f"egpo-fit-{i}" for i in range(3))
    saved = saved_state(killed, 3)
    assert not any(name.startswith("reference.") for name in saved["state_dict"])
    assert saved["derived"]["init_from"] == str(tiny_model_dir)
    main([*CONFIG, *base_args(tmp_path, **options), "--ckpt_path", str(killed)])
    assert_same(saved_state(resumed, 4)["state_dict"], saved_state(whole, 4)["state_dict"])
    options |= {"model.init_args.init_from": whole / "hf"}  # another reference than the run had
    with pytest.raises(SystemExit) as exit_:
        main([*CONFIG, *base_args(tmp_path, **options), "--ckpt_path", str(killed)])
    assert "does not hold the weights that the checkpoint's run started from" in exit_.value.code


@pytest.fixture(scope="module")
def one_and_two(base_args, tmp_path_factory):
    """Commands that take the same steps on one rank and on two, and what the former left.

    Batches of 22 prompts and of 1: of the latter a rank has nothing, and in its second mini-batch nobody has.
    """
    root = tmp_path_factory.mktemp("ranks")
    options = RUN | {"data.init_args.prompts_per_step": 22, "trainer.max_steps": -1, "trainer.max_epochs": 1}
    options |= {"trainer.precision": "64-true", "model.init_args.inner_epochs": 1}
    options |= {"model.init_args.sampling.group_size": 2}
    options |= {"trainer.val_check_interval": "null", "trainer.check_val_every_n_epoch": 1}
    options |= {"model.init_args.dynamic_sampling.max_resample": 1, "model.init_args.dynamic_sampling.max_draws": 0}
    options |= {"model.init_args.overlong.treatment": "mask"}
    options |= {"model.init_args.reward_timeout": 60, "model.init_args.learning_rate": 0.001}
    options |= {"model.init_args.rewards": '{"picky": {"function": "toy_rewards.picky"}}'}
    options |= {"model.init_args.max_reward_errors": 0.75}
    one = CONFIG + base_args(root / "one", **options)
    two = CONFIG + base_args(root / "two", **options | {"trainer.devices": 2, "trainer.strategy": "ddp"})
    main(one)
    return one, two, root


def assert_close(one, two):
    """That two ranks have logged and learnt what one has."""
    expected, got = (saved_state(run, 4)["state_dict"] for run in (one, two))
    for name, weight in expected.items():
        torch.testing.assert_close(got[name], weight, rtol=1e-9, atol=1e-9, msg=name)
    whole = metrics(one)
    assert {key: whole[key] for key in metrics(two)} == pytest.approx(metrics(two), rel=1e-6, abs=1e-9)


@pytest.mark.ranks
def test_two_ranks_take_the_steps_of_one(one_and_two):
    _, two, root = one_and_two
    done = command_on_ranks(*two)
    assert done.returncode == 0, done.stderr[-4000:]
    one = root / "one" / "egpo-fit-0"
    assert_close(one, root / "two" / "egpo-fit-0")
    logged = metrics(one)
    assert logged.keys() == metrics(root / "two" / "egpo-fit-0").keys()
    assert 0 < logged[1, "reward/errors"] < 44 and logged[1, "reward/mean"] != logged[1, "reward/mean_first"]
    assert (3, "reward/frac_zero_std") in logged and logged[1, "policy/loss"] != 0 and (4, "policy/kl") not in logged


@pytest.mark.kills
@pytest.mark.ranks
def test_two_ranks_save_when_one_receives_sigterm_and_go_on(one_and_two):
    one, two, root = one_and_two
    before = set((root / "two").glob("egpo-fit-*"))
    dying = partial(kill_at, "SIGTERM", "GRPOModule.clip_gradients", 0)
    done = command_on_ranks(*two, "--last_checkpoint.every_n_train_steps=50", before=dying)
    assert done.returncodes == [143, 143], done.stderr[-4000:]
    (ended,) = set((root / "two").glob("egpo-fit-*")) - before
    assert [path.name for path in (ended / "checkpoints").iterdir()] == ["last-000001.ckpt"]
    half = saved_state(ended, 1)["rollouts"]
    assert [buffer["groups"][::2] for buffer in half] == [list(range(0, 22, 2)), list(range(1, 22, 2))]
    with pytest.raises(SystemExit) as exit_:
        main([*one, "--ckpt_path", str(ended)])
    assert "half-used rollouts of 2 ranks, and this run has 1" in exit_.value.code
    before |= {ended}
    done = command_on_ranks(*two, "--ckpt_path", str(ended))
    assert done.returncode == 0, done.stderr[-4000:]
    (resumed,) = set((root / "two").glob("egpo-fit-*")) - before
    assert_close(root / "one" / "egpo-fit-0", resumed)


def function(name, **more):
    return "--model.init_args.rewards=" + json.dumps({name: {"function": f"toy_rewards.{name}"} | more})


@pytest.mark.slow
def test_rewards_of_several_kinds_in_yaml(base_args, tmp_path):
    strict = {"class_path": "rewards.FunctionCallReward", "init_args": {"no_call": "text"}}
    terms = {"vowels": {"function": "toy_rewards.vowels", "weight": 2.0}, "strict": {"function": strict}}
    terms["moody"] = {"function": "toy_rewards.moody", "weight": 0.0}
    options = {"trainer.max_steps": 1, "model.init_args.rewards": json.dumps(terms)}
    options |= {"model.init_args.max_reward_errors": 1.0, "model.init_args.reward_timeout": 20}
    main(CONFIG + base_args(tmp_path, **RUN | options))
    logged = metrics(tmp_path / "egpo-fit-0")
    total = 2 * logged[1, "reward/vowels/mean"] + logged[1, "reward/strict/mean"]
    assert logged[1, "reward/mean"] == pytest.approx(total) and logged[1, "reward/vowels/mean"] > 0
    assert 0 < logged[1, "reward/errors"] < 16 and logged[1, "reward/moody/mean"] == 1 and total > 0


def test_a_loss_of_one_s_own(base_args, tmp_path, capsys):
    options = RUN | {"trainer.max_steps": 1, "trainer.limit_val_batches": 0, "model.init_args.loss.kl_coef": 0.2}
    main(CONFIG + base_args(tmp_path / "ours", **options))
    own = {"model.init_args.loss": "toy_rewards.Halved", "model.init_args.loss.share": 0.5}
    capsys.readouterr()
    main(CONFIG + base_args(tmp_path / "own", **own | options))
    ours, halved = (metrics(tmp_path / name / "egpo-fit-0", ("train/", "policy/")) for name in ("ours", "own"))
    assert halved[1, "train/grad_norm"] == pytest.approx(ours[1, "train/grad_norm"] / 2)
    assert halved[1, "policy/loss"] == ours[1, "policy/loss"]  # a part, which was left as it is
    assert "KL 0.2 with a frozen copy; Halved" in capsys.readouterr().out
    saved = yaml.safe_load((tmp_path / "own" / "egpo-fit-0" / "config.yaml").read_text())["model"]["init_args"]["loss"]
    assert saved["class_path"] == "toy_rewards.Halved" and saved["init_args"]["share"] == 0.5


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([function("boom")], ["Reward function boom failed", "KeyError", "its input was completion"]),
        (["--model.init_args.sampling.group_size=1"], ["model.sampling.group_size is 1"]),
        (["--data.init_args.max_prompt_length=10"], ["max_prompt_length 10", "the shortest has"]),
        (["--data.init_args.prompts_per_step=3"], ["prompts_per_step 3", "2 mini-batches"]),
        (["--data.init_args.think=none"], ["model.entropy_bonus.scale", "data.think", "plain GRPO"]),
        (["--model.init_args.micro_batch_tokens=99"], ["micro_batch_tokens 99", "1032"]),  # 1024 + 8
        (["--model.init_args.loss.aggregation=mean"], ["aggregation", "mean"]),
        (["--model.init_args.rewards.x.function=toy_rewards.absent"], ["toy_rewards.absent"]),
    ],
)
def test_bad_input_ends_with_one_sentence_that_names_it(base_args, tmp_path, capsys, monkeypatch, args, words):
    if "boom" not in args[0]:  # which only shows when there is something to reward
        monkeypatch.setattr(evaluation, "build_policy", None)  # nothing is loaded
    with pytest.raises(SystemExit) as exit_:
        main(CONFIG + base_args(tmp_path, **RUN) + args)
    last = exit_.value.code if isinstance(exit_.value.code, str) else capsys.readouterr().err.splitlines()[-1]
    assert "\n" not in last and all(word in last for word in words), last


@pytest.mark.slow
def test_checkpoints_of_other_models_are_refused(run, base_args, tmp_path):
    cases = [
        (CONFIG, RUN, "The checkpoint holds another model than model.init_from"),  # LoRA's, and this run has none
        (["fit", "--config", "configs/srml.yaml"], {"data.init_args.val_path": "null"}, "is not one of SRMLModule"),
    ]
    for config, options, words in cases:
        with pytest.raises(SystemExit) as exit_:
            main([*config, *base_args(tmp_path, **options), "--ckpt_path", str(run)])
        assert words in exit_.value.code and "\n" not in exit_.value.code


def test_data_repeat_batches_as_often_as_the_model_learns_from_them(base_args, tmp_path):
    cli = FunReasonCLI(CONFIG[1:] + base_args(tmp_path, **RUN), run=False)
    assert cli.datamodule.hparams.repeats == 4

"""Whole runs through `main(args)`: what they leave behind, how they go on, how they refuse."""

import inspect
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import constants
from jsonargparse import ArgumentError
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import assert_same, metrics, press_ctrl_c_in_step, saved_state
from transformers import AutoModelForCausalLM, AutoTokenizer

from datamodules.sft import XLAMSFTDataModule
from lightning_modules import SRMLModule
from lightning_modules.callbacks.validations import check_monitors
from lightning_modules.checkpointing.last import LastCheckpoint
from lightning_modules.cli import FunReasonCLI, Parser, main
from lightning_modules.commands import given
from lightning_modules.policy.lora import LoRA

# 23 rows to train on and 8 a step: steps 1-3 are the first epoch, 4-6 the second; dropout draws random numbers.
RUN = {
    "model.init_args.balance": "learnable",
    "model.init_args.alpha_lr_mult": 100,
    "model.init_args.lora.dropout": 0.2,
    "model.init_args.learning_rate": 0.01,
    "data.init_args.batch_size": 8,
    "data.init_args.micro_batch_tokens": 4096,
    "trainer.max_epochs": 2,
    "last_checkpoint.every_n_train_steps": 1,
}
CONFIG = ["fit", "--config", "configs/srml.yaml"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, base_args):
    root = tmp_path_factory.mktemp("runs")
    main(CONFIG + base_args(root, **RUN))
    return root / "srml-fit-0"


def test_run_folder(run):
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "checkpoints", "samples.jsonl", "metrics.csv", "hf"}
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert "last-000006.ckpt" in names and len(names) == 2
    assert [path.name for path in run.parent.iterdir()] == ["srml-fit-0"]
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [3, 6]  # one row is held out, and validated on after each epoch


def test_checkpoints_written_in_the_background_are_those_that_the_run_waits_for(run, base_args, tmp_path):
    main(CONFIG + base_args(tmp_path, **RUN, **{"last_checkpoint.asynchronous": "true"}))
    other = tmp_path / "srml-fit-0"
    names, others = ({path.name for path in (which / "checkpoints").iterdir()} for which in (run, other))
    assert names == others
    states = [saved_state(which, 6) for which in (run, other)]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(*(state[part] for state in states))


def test_every_step_logs_both_segments_and_nothing_is_nan(run):
    logged = metrics(run, ("train/", "tool/", "perf/", "time/", "completion/", "reward/"))
    per_step = {"loss", "loss_cot", "loss_call", "tokens_cot", "tokens_call", "token_acc_cot", "token_acc_call"}
    per_step |= {"entropy_cot", "entropy_call", "grad_norm", "lr", "weight_cot", "weight_call"}
    for step in range(1, 7):
        assert {name for s, name in logged if s == step} >= {f"train/{name}" for name in per_step}
        assert {(step, "perf/tokens_per_s"), (step, "perf/pad_frac"), (step, "time/step")} <= logged.keys()
    assert all(math.isfinite(value) for value in logged.values())
    assert logged[6, "train/loss"] < logged[1, "train/loss"]
    weights = [logged[step, "train/weight_cot"] for step in range(1, 7)]
    assert weights[0] == pytest.approx(0.7) and len(set(weights)) == 6


def test_tensorboard_has_the_metrics_on_the_same_steps(run):
    events = EventAccumulator(str(run)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Scalars("tool/exact_match")] == [3, 6]
    assert {"custom_scalars__config__", "samples/val/text_summary"} <= set(events.Tags()["tensors"])
    assert "hp_metric" not in events.Tags()["scalars"]


def test_exported_folder_loads_and_starts_the_next_run(run, base_args, tmp_path):
    model, tokenizer = (kind.from_pretrained(run / "hf") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert tokenizer.chat_template and (run / "hf" / "adapter" / "adapter_model.safetensors").is_file()
    cli = FunReasonCLI(CONFIG[1:] + base_args(tmp_path, **{"model.init_args.init_from": run}), run=False)
    cli.model.configure_model()
    assert_same(cli.model.policy.model.state_dict(), model.state_dict())
    assert list(tmp_path.iterdir()) == []  # nothing has run


def test_saved_config_runs_again_and_gives_the_same_run(run, tmp_path):
    main(["fit", "--config", str(run / "config.yaml"), f"--trainer.default_root_dir={tmp_path}"])
    again = tmp_path / "srml-fit-0"
    assert metrics(again) == metrics(run)
    assert_same(saved_state(again, 6)["state_dict"], saved_state(run, 6)["state_dict"])


@pytest.mark.slow
def test_another_order_of_sets_gives_the_same_run(run, base_args, tmp_path):
    command = [sys.executable, "-m", "lightning_modules", *CONFIG, *base_args(tmp_path, **RUN)]
    subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "1"}, capture_output=True, check=True)
    again = tmp_path / "srml-fit-0"
    assert metrics(again) == metrics(run)
    for name in ("samples.jsonl", "hf/model.safetensors"):
        assert (again / name).read_bytes() == (run / name).read_bytes(), name


class Killed(BaseException):
    """What no handler of ours or of Lightning's turns into an orderly end."""


@pytest.mark.kills
@pytest.mark.parametrize(("hook", "step"), [("training_step", 2), ("validation_step", 3), ("training_step", 4)])
def test_killed_run_goes_on_as_if_it_had_not_been(run, base_args, tmp_path, monkeypatch, hook, step):
    original = getattr(SRMLModule, hook)

    def kill(module, *args):
        if module.global_step == step and not module.trainer.sanity_checking:
            raise Killed
        return original(module, *args)

    with monkeypatch.context() as patch:
        patch.setattr(SRMLModule, hook, kill)
        with pytest.raises(Killed):
            main(CONFIG + base_args(tmp_path, **RUN))
    killed = tmp_path / "srml-fit-0"
    assert max(path.name for path in (killed / "checkpoints").glob("last-*")) == f"last-{step:06d}.ckpt"
    main([*CONFIG, *base_args(tmp_path, **RUN), "--ckpt_path", str(killed)])
    resumed = tmp_path / "srml-fit-1"
    assert {s for s, name in metrics(resumed, ("train/",))} == set(range(step + 1, 7))
    whole = metrics(run)
    assert {key: whole[key] for key in metrics(resumed)} == metrics(resumed)
    expected, got = saved_state(run, 6), saved_state(resumed, 6)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(got[key], expected[key])
    assert_same(got["callbacks"]["ExactResume"], expected["callbacks"]["ExactResume"])


@pytest.mark.kills
def test_sigterm_saves_and_exits_143(run, base_args, tmp_path, monkeypatch):
    original = SRMLModule.training_step

    def terminate(module, *args):
        if module.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(module, *args)

    options = RUN | {"last_checkpoint.every_n_train_steps": 50}
    with monkeypatch.context() as patch:
        patch.setattr(SRMLModule, "training_step", terminate)
        with pytest.raises(SystemExit) as exit_:
            main(CONFIG + base_args(tmp_path, **options))
    assert exit_.value.code == 143
    assert [path.name for path in (tmp_path / "srml-fit-0" / "checkpoints").iterdir()] == ["last-000002.ckpt"]
    assert not (tmp_path / "srml-fit-0" / "hf").exists()
    main([*CONFIG, *base_args(tmp_path, **options), "--ckpt_path", str(tmp_path / "srml-fit-0")])
    assert_same(saved_state(tmp_path / "srml-fit-1", 6)["state_dict"], saved_state(run, 6)["state_dict"])


def no_row_to_be_had(patch):
    """The disk fails while the batch after step 2 is made."""
    make = XLAMSFTDataModule._packed_batches

    def fail(data, chosen):
        if data.trainer.global_step == 2:
            raise OSError("The disk is gone.")
        return make(data, chosen)

    patch.setattr(XLAMSFTDataModule, "_packed_batches", fail)


@pytest.mark.kills
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("event", "saved"), [(no_row_to_be_had, 2), (partial(press_ctrl_c_in_step, 3), 3)])
def test_what_ends_a_run_between_two_whole_steps_costs_none(run, base_args, tmp_path, monkeypatch, event, saved):
    args = base_args(tmp_path, **RUN | {"last_checkpoint.every_n_train_steps": 50})
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        event(patch)
        main(CONFIG + args)
    ended = tmp_path / "srml-fit-0"
    assert [path.name for path in (ended / "checkpoints").iterdir()] == [f"last-{saved:06d}.ckpt"]
    main([*CONFIG, *args, "--ckpt_path", str(ended)])
    got, expected = (saved_state(which, 6) for which in (tmp_path / "srml-fit-1", run))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(got[key], expected[key])
    assert_same(got["callbacks"]["ExactResume"], expected["callbacks"]["ExactResume"])


VALIDATION = ("tool/", "val/", "completion/")


@pytest.fixture(scope="module", params=[(2, {2, 5}), (1.0, {3, 6})], ids=["within", "at_the_end"])
def validated(request, tmp_path_factory, base_args):
    """Options of a run that validates within its two epochs or at their ends, row by row, and what that logged."""
    interval, steps = request.param
    root = tmp_path_factory.mktemp("validated")
    options = RUN | {"data.init_args.val_fraction": 0.1, "data.init_args.eval_batch_size": 1}
    options |= {"data.init_args.batch_size": 7, "trainer.val_check_interval": interval}
    main(CONFIG + base_args(root, **options))
    logged = metrics(root / "srml-fit-0", VALIDATION)
    assert {step for step, _ in logged} == steps
    return options, min(steps), logged


# Saved when the validation is broken off, or before it.
BROKEN_OFF = [("on_validation_start", 50), ("validation_step", 50), ("validation_step", 1), ("evaluated", 50)]


@pytest.mark.kills
@pytest.mark.parametrize(("method", "every"), BROKEN_OFF)
def test_a_validation_that_is_broken_off_is_done_again_as_a_whole(
    validated, base_args, tmp_path, monkeypatch, method, every
):
    options, step, whole = validated
    original = getattr(SRMLModule, method)

    def press_ctrl_c(module, *args):
        if module.global_step == step and (method != "validation_step" or args[1] == 2):
            raise KeyboardInterrupt
        return original(module, *args)

    args = base_args(tmp_path, **options | {"last_checkpoint.every_n_train_steps": every})
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(SRMLModule, method, press_ctrl_c)
        main(CONFIG + args)
    main([*CONFIG, *args, "--ckpt_path", str(tmp_path / "srml-fit-0")])
    assert metrics(tmp_path / "srml-fit-1", VALIDATION) == whole
    best = tmp_path / "srml-fit-1" / "checkpoints" / f"best-{step:06d}.ckpt"  # of the validation's end
    main([*CONFIG, *args, "--ckpt_path", str(best)])
    assert metrics(tmp_path / "srml-fit-2", VALIDATION) == {key: n for key, n in whole.items() if key[0] > step}


def test_more_epochs_after_the_end(run, base_args, tmp_path, capsys):
    main([*CONFIG, *base_args(tmp_path, **RUN | {"trainer.max_epochs": 3}), "--ckpt_path", str(run)])
    assert {step for step, _ in metrics(tmp_path / "srml-fit-0", ("train/",))} == {7, 8, 9}
    assert "stay in the order of seed" not in capsys.readouterr().out


@pytest.mark.parametrize(("before", "validates"), [(0.0, False), (0.5, True), (-1.0, True)])
def test_a_resumed_run_knows_what_was_best_before(run, base_args, tmp_path, capsys, before, validates):
    """The validations of so small a run score 0; its first one was after step 3."""
    old = tmp_path / "old" / "checkpoints"
    shutil.copytree(run / "checkpoints", old)
    checkpoint = saved_state(run, 6)
    (state,) = (state for state in checkpoint["callbacks"].values() if state.get("monitor"))
    best = str(old / "best-000003.ckpt")
    score = state["best_model_score"] = state["kth_value"] = torch.tensor(before)
    state |= {"best_model_path": best, "kth_best_model_path": best, "best_k_models": {best: score}}
    torch.save(checkpoint, old / "last-000006.ckpt")
    options = RUN | {"trainer.max_epochs": 3} | ({} if validates else {"trainer.limit_val_batches": 0})
    main([*CONFIG, *base_args(tmp_path, **options), "--ckpt_path", str(old)])
    new = tmp_path / "srml-fit-0" / "checkpoints" / "best-000009.ckpt"
    assert new.exists() == (before < 0) and {path.name for path in old.iterdir()} == {
        "best-000003.ckpt",
        "last-000006.ckpt",
    }
    said = f"tool/exact_match 0.0000 at step 9: {new}" if before < 0 else f"{before:.4f} at step 3: {best} "
    assert said in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("end", [1, 3])  # of 3 steps an epoch
def test_more_steps_after_an_end_within_an_epoch_or_with_it_are_on_the_rows_that_were_left(
    run, base_args, tmp_path, end
):
    once = RUN | {"last_checkpoint.every_n_train_steps": 50}
    main(CONFIG + base_args(tmp_path, **once, **{"trainer.max_steps": end}))
    more = base_args(tmp_path, **once, **{"trainer.max_steps": 5})
    main([*CONFIG, *more, "--ckpt_path", str(tmp_path / "srml-fit-0")])
    trained = [metrics(tmp_path / f"srml-fit-{i}", ("train/tokens",)) for i in (0, 1)]
    assert trained[0] | trained[1] == {k: n for k, n in metrics(run, ("train/tokens",)).items() if k[0] <= 5}


def stopped_by_the_clock(args, patch):
    steps, original = [], SRMLModule.training_step
    patch.setattr(SRMLModule, "training_step", lambda *given: steps.append(1) or original(*given))
    patch.setattr(Timer, "time_elapsed", lambda *_: len(steps))  # seconds
    main([*args, "--trainer.max_time=00:00:00:01"])


def stopped_early(args, patch):
    early = "lightning.pytorch.callbacks.EarlyStopping"
    options = {"monitor": "tool/exact_match", "mode": "max", "stopping_threshold": -1}  # stops the first time it looks
    options = [f"--trainer.callbacks.{k}={v}" for k, v in (options | {"check_on_train_epoch_end": False}).items()]
    main([*args, f"--trainer.callbacks+={early}", *options, "--trainer.val_check_interval=1"])


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [stopped_by_the_clock, stopped_early])
def test_a_run_stopped_within_an_epoch_goes_on_with_the_rest_of_it(run, base_args, tmp_path, monkeypatch, stopped):
    args = CONFIG + base_args(tmp_path, **RUN | {"last_checkpoint.every_n_train_steps": 50})
    with monkeypatch.context() as patch:
        stopped(args, patch)
    assert saved_state(tmp_path / "srml-fit-0", 1)["global_step"] == 1
    main([*args, "--ckpt_path", str(tmp_path / "srml-fit-0")])
    expected, got = saved_state(run, 6), saved_state(tmp_path / "srml-fit-1", 6)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(got[key], expected[key])


@pytest.mark.parametrize(
    ("name", "value", "was"),
    [
        ("learning_rate", 0.02, 0.01),
        ("weight_decay", 0.1, 0.0),
        ("betas", (0.9, 0.95), (0.9, 0.999)),
        ("epsilon", 1e-6, 1e-4),
        ("alpha_lr_mult", 1.0, 100.0),
    ],
)
def test_a_run_does_not_go_on_with_an_optimizer_of_other_settings(run, base_args, tmp_path, name, value, was):
    options = RUN | {f"model.init_args.{name}": list(value) if isinstance(value, tuple) else value}
    with pytest.raises(SystemExit) as exit_:
        main([*CONFIG, *base_args(tmp_path, **options), "--ckpt_path", str(run)])
    assert f"error: model.{name} is {value} in this run and was {was} in the one that wrote" in exit_.value.code


def test_a_run_does_not_go_on_with_as_many_other_rows(run, base_args, rows_file, tmp_path):
    file = tmp_path / "rows.jsonl"
    options = RUN | {"data.init_args.path": file, "trainer.max_epochs": 3}
    file.write_text(rows_file.read_text().replace("No tool fits.", "No tool helps.", 1))
    with pytest.raises(SystemExit) as exit_:
        main([*CONFIG, *base_args(tmp_path, **options), "--ckpt_path", str(run)])
    assert "error: the training rows are not those of the run that wrote the checkpoint" in exit_.value.code


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"data.init_args.path": "other.jsonl"}, "error: the training rows are not those of the run that wrote"),
        ({"data.init_args.batch_size": 3}, "error: data.batch_size is 3 in this run and was 8 in the one that wrote"),
    ],
)
def test_a_run_that_cannot_go_on_within_an_epoch_says_why_and_leaves_no_checkpoint(
    base_args, rows_file, tmp_path, monkeypatch, option, words
):
    monkeypatch.chdir(tmp_path)
    Path("other.jsonl").write_text(rows_file.read_text().replace("No tool fits.", "No tool helps.", 1))
    main([*CONFIG, *base_args(tmp_path, **RUN | {"trainer.max_steps": 1})])
    with pytest.raises(SystemExit) as exit_:
        main([*CONFIG, *base_args(tmp_path, **RUN | option), "--ckpt_path", str(tmp_path / "srml-fit-0")])
    assert words in exit_.value.code
    assert not [*(tmp_path / "srml-fit-1").rglob("*.ckpt")]


def test_another_place_of_the_rows_changes_nothing_and_another_seed_is_told(
    run, base_args, rows_file, tmp_path, capsys
):
    shutil.copy(rows_file, tmp_path / "moved.jsonl")
    options = RUN | {"data.init_args.path": tmp_path / "moved.jsonl", "trainer.max_epochs": 3, "seed_everything": 7}
    main([*CONFIG, *base_args(tmp_path, **options), "--ckpt_path", str(run)])
    assert "The rows stay in the order of seed 42, in which the resumed run had them." in capsys.readouterr().out
    assert {step for step, _ in metrics(tmp_path / "srml-fit-0", ("train/",))} == {7, 8, 9}


def test_a_checkpoint_of_an_earlier_version_is_refused_in_a_sentence(run, base_args, tmp_path):
    checkpoint = saved_state(run, 6)
    del checkpoint["derived"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(SystemExit) as exit_:
        main([*CONFIG, *base_args(tmp_path, **RUN), "--ckpt_path", str(tmp_path / "old.ckpt")])
    assert "error: The checkpoint does not say which weights its run started from" in exit_.value.code


def test_test_prints_a_table_and_validate_takes_a_checkpoint(run, base_args, tmp_path, capsys):
    for command, options in [("test", {}), ("validate", {"model.init_args.balance": "learnable"})]:
        extra = ["--ckpt_path", str(run)] if command == "validate" else []
        options |= {"model.init_args.lora.dropout": 0.2} if extra else {"model.init_args.init_from": run}
        main([command, *CONFIG[1:], *base_args(tmp_path, **options), *extra])
        lines = capsys.readouterr().out.splitlines()
        table = [line.split() for line in lines if line.startswith(("all ", "simple "))]
        assert [row[0] for row in table] == ["all", "simple"] and all(len(row) == 7 for row in table)


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_what_a_trained_model_cannot_be_scored_on_is_said_and_leaves_no_checkpoint(command, run, base_args, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"query": "weather in Oslo?"}\n')
    options = {"model.init_args.init_from": run, "data.init_args.path": tmp_path / "rows.jsonl"}
    with pytest.raises(SystemExit, match=r"rows\.jsonl, row 1, column 'tools': is missing"):
        main([command, *CONFIG[1:], *base_args(tmp_path, **options)])
    assert not list(tmp_path.glob("**/*.ckpt"))


def test_predict_writes_rows_that_read_as_data(run, base_args, tmp_path, capsys):
    from datamodules import read_examples

    main(["predict", "--config", "configs/sample.yaml", *base_args(tmp_path, **{"model.init_args.init_from": run})])
    file = tmp_path / "srml-predict-0" / "rollouts.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["id"] for row in rows] == [str(i) for i in range(24)]
    keys = {"query", "completion", "cot", "calls", "score", "parts", "prompt_tokens", "completion_tokens"}
    assert keys <= rows[0].keys() and rows[0]["completion_tokens"] <= 8
    assert len(read_examples(file)[0]) == 24
    cut = sum(row["finish_reason"] == "length" for row in rows)
    assert cut and f"{file}; {cut} of them were cut at model.generator.max_new_tokens 8\n" in capsys.readouterr().out
    assert not file.with_suffix(".jsonl.part").exists()


@pytest.mark.kills
def test_sigterm_ends_a_prediction_after_its_batch(base_args, tmp_path, monkeypatch):
    original = SRMLModule.predict_step

    def terminate(module, batch, number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(module, batch, number)

    monkeypatch.setattr(SRMLModule, "predict_step", terminate)
    args = base_args(tmp_path, **{"data.init_args.eval_batch_size": 3})
    with pytest.raises(SystemExit) as exit_:
        main(["predict", "--config", "configs/sample.yaml", *args])
    assert exit_.value.code == 143
    (file,) = (tmp_path / "srml-predict-0").glob("rollouts.jsonl*")
    assert file.name == "rollouts.jsonl.part" and len(file.read_text().splitlines()) == 6


def test_predict_scores_the_rows_that_have_an_answer(base_args, rows_file, tmp_path):
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()[:2]]
    del rows[0]["answers"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"data.init_args.path": tmp_path / "rows.jsonl"}
    main(["predict", "--config", "configs/sample.yaml", *base_args(tmp_path, **options)])
    lines = (tmp_path / "srml-predict-0" / "rollouts.jsonl").read_text().splitlines()
    unknown, known = map(json.loads, lines)
    assert unknown["answers"] == "" and unknown["score"] is None and unknown["parts"] is None and unknown["completion"]
    assert unknown["category"] == "" and known["score"] == 0.0 and known["category"] == "multiple"


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--model.init_args.learning_rat=1"], 2, ["model", "'learning_rat'"]),
        (["--model.init_args.balance=fixt"], 2, ["model", "balance", "fixt"]),
        (["--trainer.max_epochs=x"], 2, ["trainer.max_epochs", "x"]),
        (["--modl.x=1"], 2, ["--modl.x"]),
        (["--model.init_args.cot_weight=2"], "error:", ["model.cot_weight", "2.0"]),
        (["--data.init_args.batch_size=0"], "error:", ["data.batch_size", "0"]),
        (["--data.init_args.path=absent.jsonl"], "error:", ["absent.jsonl"]),
        (["--model.init_args.init_from=/absent"], "error:", ["init_from", "/absent"]),
        (["--ckpt_path=last"], "error:", ["ckpt_path", "last"]),
        (["--ckpt_path=/absent/run"], "error:", ["ckpt_path", "/absent/run"]),
        (["--trainer.max_steps=0"], "error:", ["trainer", "max_steps"]),
        (["--trainer.max_epochs=0"], "error:", ["trainer.max_epochs"]),
        (["--trainer.devices=1000"], "error:", ["trainer.devices", "1000", "give at most"]),
        (["--trainer.devices=none"], "error:", ["trainer", "devices"]),
        (["--trainer.accelerator=gpus"], "error:", ["trainer", "gpus"]),
        (["--trainer.check_val_every_n_epoch=0"], "error:", ["trainer.check_val_every_n_epoch", "0"]),
        (["--trainer.val_check_interval=0"], "error:", ["trainer.val_check_interval", "0"]),
        (["--trainer.default_root_dir=/proc/absent"], "error:", ["trainer.default_root_dir", "/proc/absent"]),
        (["--trainer.default_root_dir=/dev/null/a"], "error:", ["trainer.default_root_dir", "/dev/null/a"]),
        (["--data.init_args.cache_dir=/dev/null"], "error:", ["data.cache_dir", "/dev/null"]),
        (["--data.init_args.path="], "error:", ["data.path", "empty"]),
        (["--data.init_args.batch_size=null"], "error:", ["data.batch_size", "null"]),
        (["--model.init_args.learning_rate=null"], "error:", ["model.learning_rate", "null"]),
        (["--model.init_args.learning_rate=-1"], "error:", ["model.learning_rate", "-1"]),
        (["--model.init_args.learning_rate=.nan"], "error:", ["model.learning_rate", "nan"]),
        (["--model.init_args.weight_decay=-1"], "error:", ["model.weight_decay", "-1"]),
        (["--model.init_args.betas=[0.9,1]"], "error:", ["model.betas", "1"]),
        (["--model.init_args.epsilon=.inf"], "error:", ["model.epsilon", "inf"]),
        (["--model.init_args.warmup_ratio=2"], "error:", ["model.warmup_ratio", "2"]),
        (["--model.init_args.max_grad_norm=0"], "error:", ["model.max_grad_norm", "0"]),
        (["--model.init_args.alpha_lr_mult=-1"], "error:", ["model.alpha_lr_mult", "-1"]),
        (["--model.init_args.lora.r=0"], "error:", ["model.lora", "r must", "0"]),
        (["--model.init_args.lora.dropout=-1"], "error:", ["model.lora", "dropout", "-1"]),
        (["--model.init_args.init_from="], "error:", ["init_from"]),
        (["--model.init_args.init_from=a..b/c"], "error:", ["init_from", "a..b/c"]),
        (["--seed_everything=-1"], "error:", ["seed_everything", "-1"]),
        (["--trainer.val_check_interval=00:01:00:00"], "error:", ["val_check_interval is 00:01:00:00, a time: give a"]),
        (["--trainer.reload_dataloaders_every_n_epochs=1"], "error:", ["reload_dataloaders_", "leave it out"]),
        (["--trainer.val_check_interval=4"], "error:", ["trainer.val_check_interval is 4, and an epoch has 3 steps"]),
        (["--model=SRML"], 2, ["SRML names no class", "--model.help"]),
        (["--model.generator=HFGenerator"], 2, ["HFGenerator names no class", "import path", "--model.generator.help"]),
        (["--trainer.callbacks=[EarlyStopping]"], 2, ["trainer.callbacks", "are required: monitor"]),
        (["--trainer.callbacks=[{class_path: EarlyStoping}]"], 2, ["trainer.callbacks", "EarlyStoping names no class"]),
        (["--ckpt_path="], "error:", ["ckpt_path"]),
    ],
)
def test_bad_input_ends_with_one_sentence_that_names_it(base_args, tmp_path, capsys, args, code, words):
    with pytest.raises(SystemExit) as exit_:
        main(CONFIG + base_args(tmp_path) + args)
    last = exit_.value.code if isinstance(code, str) else capsys.readouterr().err.splitlines()[-1]
    assert exit_.value.code == code or last.startswith(code)
    assert "\n" not in last and all(word in last for word in words), last


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("{class_path: SRMLModule, learning_rate: 1}", '"model": beside class_path stands a setting of the class'),
        ("{class_path: SRMLModule, init_args: {init_from: a}, learning_rate: 1}", "put all of them below init_args"),
        (
            "{class_path: SRMLModule, init_args: {init_from: a, lora: true}}",
            '"lora": takes several settings, key: valu',
        ),
        ("[{class_path: SRMLModule}]", '"model": takes class_path and init_args, and got a list: leave out the dash'),
        (
            "{class_path: SRMLModule, init_args: {init_from: a, generator: [{class_path: HFGenerator}]}}",
            '"generator": takes class_path and init_args, and got a list',
        ),
    ],
)
def test_settings_beside_their_class_are_told_where_they_belong(base_args, tmp_path, capsys, settings, words):
    file = tmp_path / "mine.yaml"
    file.write_text(f"model: {settings}\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(file), "--data=XLAMSFTDataModule", "--data.path=rows.jsonl"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert words in last and "subclass" not in last, last


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "my_model.py"], "--model my_model.py: Python code is not read as settings; what is in it is name"),
        (["--trainer.callbacks+=my_model.py"], "its import path, as my_model.NAME, with its folder in PYTHONPATH"),
        (["--data", "rows.jsonl"], "--data takes a class or a YAML with its settings, and got rows.jsonl: rows are gi"),
        (["--model=Qwen/Qwen3-0.6B"], "and got Qwen/Qwen3-0.6B: a model is given by --model.init_from"),
        (["--data", "settings.yaml"], 'Parser key "data": '),  # a YAML is left to the parser
    ],
)
def test_a_file_of_another_kind_in_the_place_of_settings_is_told_what_is_wanted(
    tmp_path, monkeypatch, capsys, words, said
):
    monkeypatch.chdir(tmp_path)
    Path("my_model.py").write_text("class Model: pass\n")
    Path("rows.jsonl").write_text('{"query": "a"}\n{"query": "b"}\n')
    Path("settings.yaml").write_text("class_path: XLAMSFTDataModule\ninit_args: 3\n")
    with pytest.raises(SystemExit):
        main([*CONFIG, *words])
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_rows_are_not_read_as_settings(tmp_path, monkeypatch):
    """They may be of any size, and YAML is slow."""
    (tmp_path / "rows.json").write_text("[]")
    monkeypatch.setattr(given, "fault_of_yaml", lambda file: pytest.fail(f"{file} is read"))
    assert given.no_settings(given.read(["fit", "--data.path", str(tmp_path / "rows.json")])) == ""
    said = given.no_settings(given.read(["fit", "--data", str(tmp_path / "rows.json")]))
    assert said.startswith("--data takes a class or a YAML with its settings, and got ")


def test_settings_of_a_generator_that_nothing_names_are_told_how_to_name_it(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", "configs/srml.yaml", "--model.generator.max_new_tokens=8"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert '"generator": has settings and no class: name one before them, by --model.generator=CLASS or class' in last


@pytest.mark.parametrize(
    "words", [["fit"], ["fit", "--model.init_from=m"], ["test", "--model.init_from=m", "--data.path=r"]]
)
def test_a_command_line_without_an_experiment_asks_for_one(capsys, words):
    """But the parser of a class, which is kept from one command line to the next, asks for what the class lacks."""
    of_class = Parser(exit_on_error=False)
    with pytest.raises(ArgumentError, match=r"^the following arguments are required: init_from$"):
        of_class.error("the following arguments are required: init_from")
    with pytest.raises(SystemExit):
        main(words)
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("error: no experiment is given: name its YAML, as --config")
    )


@pytest.mark.parametrize(
    ("words", "lacking"),
    [(["--model=SRMLModule", "--model.init_from=m"], "data"), (["--data=XLAMSFTDataModule", "--data.path=r"], "model")],
)
def test_a_class_of_the_model_without_one_of_the_data_asks_for_that(capsys, words, lacking):
    with pytest.raises(SystemExit):
        main(["fit", *words])
    wanted = (
        f"error: no class of the {lacking} is named: give --{lacking} and a class, as --model SRMLModule with --data"
    )
    assert capsys.readouterr().err.splitlines()[-1].startswith(wanted)


@pytest.mark.parametrize("group", ["model", "data"])
def test_an_overlay_before_its_experiment_is_named_wherever_it_lies(tmp_path, monkeypatch, capsys, group):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    setting = {"model": "learning_rate: 0.1", "data": "batch_size: 4"}[group]
    (tmp_path / "sub" / "mine.yaml").write_text(f"{group}:\n  init_args:\n    {setting}\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config", "sub/mine.yaml", "--config", "configs/srml.yaml"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: sub/mine.yaml is an overlay, it names no {group}.class_path: give the experiment")


def test_the_parser_of_the_command_that_is_given_is_the_only_one(monkeypatch, capsys):
    made = []
    monkeypatch.setattr(FunReasonCLI, "add_arguments_to_parser", lambda cli, parser: made.append(parser))
    with pytest.raises(SystemExit, match="0"):
        main(["validate", "--help"])
    assert len(made) == 1 and "--ckpt_path" in capsys.readouterr().out


def test_a_yaml_that_names_no_class_is_no_experiment(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("trainer:\n  max_steps: 1\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config", "mine.yaml"])
    assert "no experiment is given: name its YAML" in capsys.readouterr().err.splitlines()[-1]


def test_settings_before_the_experiment_win_over_it(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--trainer.max_epochs=7", "--model.learning_rate=0.5", *CONFIG[1:], "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["trainer"]["max_epochs"] == 7 and settings["model"]["init_args"]["learning_rate"] == 0.5


NO_METRIC = [
    ("best_checkpoint", "tool/exact_mtch", "max", "no metric is called tool/exact_mtch: is tool/exact_match meant?"),
    ("best_checkpoint", "exact_match", "max", "no metric is called exact_match: is tool/exact_match meant?"),
    ("EarlyStopping", "val_loss", "min", "no metric is called val_loss: is val/loss_"),
    ("ModelCheckpoint", "val_loss", "min", "no metric is called val_loss: is val/loss_"),
    ("best_checkpoint", "val/loss_call", "max", "mode is max, and val/loss_call is best where it is minimal: set mode"),
    (
        "EarlyStopping",
        "tool/multiple/exact_match",
        "min",
        "mode is min, and tool/multiple/exact_match is best where it",
    ),
]


@pytest.mark.parametrize(("callback", "monitor", "mode", "words"), NO_METRIC)
def test_a_metric_that_nothing_logs_or_its_worst_is_refused_before_weights_are_read(
    base_args, tmp_path, monkeypatch, callback, monitor, mode, words
):
    monkeypatch.setattr(SRMLModule, "load_policy", lambda *_, **__: pytest.fail("weights are read"))
    stops = [f"--trainer.callbacks={callback}"] * (callback != "best_checkpoint")
    keys = "trainer.callbacks" if stops else callback
    with pytest.raises(SystemExit) as exit_:
        main([*CONFIG, *base_args(tmp_path), *stops, f"--{keys}.monitor={monitor}", f"--{keys}.mode={mode}"])
    assert exit_.value.code.startswith(f"error: {callback}.") and words in exit_.value.code


class LogsMore(SRMLModule):
    """A module of the user's, which may log any metric."""


@pytest.mark.parametrize(
    ("options", "module"),
    [
        ({"monitor": "val/loss_cot", "mode": "min"}, SRMLModule),
        ({"monitor": "step", "mode": "max"}, SRMLModule),
        ({"monitor": "train/loss", "mode": "min"}, SRMLModule),
        ({"monitor": "mine", "mode": "min"}, LogsMore),
    ],
)
def test_a_metric_that_may_be_logged_is_monitored(tiny_model_dir, options, module):
    trainer = SimpleNamespace(callbacks=[ModelCheckpoint(**options), LastCheckpoint()])
    check_monitors(trainer, module(init_from=str(tiny_model_dir)))


@pytest.mark.parametrize("command", ["fit", "show"])
def test_kernels_of_attention_for_gpus_are_refused_on_a_cpu_before_rows_are_read(base_args, tmp_path, command):
    options = {"model.attn_implementation": "flash_attention_2", "data.init_args.path": tmp_path / "absent.jsonl"}
    with pytest.raises(SystemExit, match=r"^error: model\.attn_implementation: flash_attention_2 runs on GPUs alone"):
        main([command, *CONFIG[1:], *base_args(tmp_path, **options)])


def test_one_callback_is_taken_for_a_list_of_it(base_args, tmp_path):
    options = {"trainer.max_steps": 1, "trainer.limit_val_batches": 0, "trainer.callbacks": "Timer"}
    main(CONFIG + base_args(tmp_path, **options))
    assert (tmp_path / "srml-fit-0" / "hf").is_dir() and (tmp_path / "srml-fit-0" / "metrics.csv").is_file()


def test_an_adapter_is_not_gone_on_with_under_another_scale(run, base_args, tmp_path):
    for command in ("fit", "validate"):
        with pytest.raises(
            SystemExit, match=r"^error: model\.lora\.alpha is 64 in this run and was 32 in the one that"
        ):
            args = base_args(tmp_path, **RUN | {"model.init_args.lora.alpha": 64, "trainer.max_steps": 7})
            main([command, *CONFIG[1:], *args, "--ckpt_path", str(run)])


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"RANK": "3", "WORLD_SIZE": "8", "MASTER_PORT": "29500"}, "(RANK=3 WORLD_SIZE=8)"),
        ({"LOCAL_RANK": "1"}, "(LOCAL_RANK=1)"),
        ({"SLURM_PROCID": "2"}, "(SLURM_PROCID=2)"),
    ],
)
def test_a_run_of_one_process_is_not_one_of_several(base_args, tmp_path, monkeypatch, variables, told):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as exit_:
        main(CONFIG + base_args(tmp_path))
    assert f"this process is one of several {told}" in exit_.value.code and "`unset " in exit_.value.code
    assert not list(tmp_path.iterdir())  # no run has begun


def test_one_that_a_launcher_has_started_alone_may_run(base_args, tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    main(CONFIG + base_args(tmp_path, **{"trainer.max_steps": 1, "trainer.limit_val_batches": 0}))
    assert list((tmp_path / "srml-fit-0").glob("events.out.tfevents.*"))


def test_a_run_that_ends_before_its_first_validation_says_so(base_args, tmp_path, capsys):
    options = {"trainer.max_steps": 1, "trainer.val_check_interval": 2, "trainer.check_val_every_n_epoch": "null"}
    main(CONFIG + base_args(tmp_path, **options))
    told = "  NO VALIDATION trainer.val_check_interval 2 is more than the 1 steps of the run\n"
    assert told in capsys.readouterr().out
    main(CONFIG + base_args(tmp_path, **options | {"trainer.val_check_interval": 1}))
    assert "NO VALIDATION" not in capsys.readouterr().out


@pytest.mark.parametrize(("config", "data"), [("srml", "XLAMPromptDataModule"), ("grpo", "XLAMSFTDataModule")])
@pytest.mark.parametrize("command", ["fit", "show"])
def test_rows_for_the_other_module_are_refused(tiny_model_dir, tmp_path, capsys, command, config, data):
    options = [f"--data={data}", "--data.path=toolbox:train:8", f"--data.cache_dir={tmp_path / 'cache'}"]
    options += [f"--model.init_from={tiny_model_dir}", f"--trainer.default_root_dir={tmp_path}"]
    with pytest.raises(SystemExit) as exit_:
        main([command, "--config", f"configs/{config}.yaml", *options, "--trainer.accelerator=cpu"])
    ours, other = ("SFT", "Prompt") if config == "srml" else ("Prompt", "SFT")
    assert (
        f"{config.upper()}Module learns from the rows of XLAM{ours}DataModule, and data is XLAM{other}DataModule: set "
        f"data.class_path to XLAM{ours}DataModule"
    ) in f"{exit_.value.code} {capsys.readouterr().err}"


@pytest.mark.parametrize("section", ["trainer", "best_checkpoint", "last_checkpoint", "progress"])
def test_a_section_without_settings_is_named(base_args, tmp_path, section):
    (tmp_path / "c.yaml").write_text(f"{section}: null\n")
    with pytest.raises(SystemExit, match=f"^error: {section} must hold settings, and is None"):
        main([*CONFIG, "--config", str(tmp_path / "c.yaml"), *(a for a in base_args(tmp_path) if section not in a)])


def test_a_module_is_loaded_from_a_checkpoint_and_what_its_model_was_made_of(run, tiny_model_dir):
    made_of = {"init_from": str(tiny_model_dir), "lora": LoRA(dropout=0.2), "balance": "learnable"}
    module = SRMLModule.load_from_checkpoint(run / "checkpoints" / "last-000006.ckpt", **made_of)
    saved, loaded = saved_state(run, 6)["state_dict"], module.state_dict()
    assert saved and all(torch.equal(loaded[name], weight) for name, weight in saved.items())


def press_ctrl_c(cli):
    raise KeyboardInterrupt


def test_ctrl_c_before_a_training_ends_without_a_traceback(base_args, tmp_path, monkeypatch):
    monkeypatch.setattr(FunReasonCLI, "instantiate_classes", press_ctrl_c)
    with pytest.raises(SystemExit) as exit_:
        main(CONFIG + base_args(tmp_path))
    assert exit_.value.code == 130  # as a shell says it of a process that SIGINT has ended


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("${trainer.max_epochs}\n  max_epochs: ${trainer.max_steps}", ["trainer.max_", "Recursive"]),
        ("${absent.key}", ["trainer.max_steps", "absent.key"]),
        ("${oc.env:ABSENT_VARIABLE}", ["trainer.max_steps", "ABSENT_VARIABLE"]),
        ("${absent", ["trainer.max_steps", "${absent"]),
    ],
)
def test_a_reference_in_a_yaml_that_leads_nowhere_names_its_key(base_args, tmp_path, capsys, value, words):
    (tmp_path / "c.yaml").write_text(f"trainer:\n  max_steps: {value}\n")
    with pytest.raises(SystemExit) as exit_:
        main([*CONFIG, "--config", str(tmp_path / "c.yaml"), *base_args(tmp_path)])
    last = capsys.readouterr().err.splitlines()[-1]
    assert exit_.value.code == 2 and last.startswith("error: ") and all(word in last for word in words), last


class Failing(Callback):
    """Fails as code does that is not the project's."""

    def __init__(self, at_once=False):
        if at_once:
            raise KeyError("x")

    def on_train_start(self, *_):
        raise KeyError("x")


def line_of(method):
    """Where the last line of a method stands."""
    lines, first = inspect.getsourcelines(method)
    return f"{__file__}, line {first + len(lines) - 1}"


def test_an_error_of_foreign_code_is_one_sentence_and_a_traceback_in_the_run_folder(base_args, tmp_path, capsys):
    failing = json.dumps({"class_path": f"{__name__}.Failing"})
    with pytest.raises(SystemExit) as exit_:
        main([*CONFIG, *base_args(tmp_path, **RUN), f"--trainer.callbacks+={failing}"])
    file = tmp_path / "srml-fit-0" / "traceback.txt"
    assert exit_.value.code == f"error: KeyError: 'x' (in {line_of(Failing.on_train_start)}) (traceback: {file})"
    assert "in on_train_start" in file.read_text() and "Traceback" not in capsys.readouterr().err


def test_an_error_of_a_class_of_the_users_is_told_with_its_line_and_a_traceback(base_args, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    failing = json.dumps({"class_path": f"{__name__}.Failing", "init_args": {"at_once": True}})
    with pytest.raises(SystemExit) as exit_:
        main([*CONFIG, *base_args(tmp_path / "runs", **RUN), f"--trainer.callbacks+={failing}"])
    (file,) = tmp_path.glob("funreason-*.traceback.txt")
    assert exit_.value.code == f"error: KeyError: 'x' (in {line_of(Failing.__init__)}) (traceback: {file})"
    assert "in __init__" in file.read_text()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda state: [1, 2], "no checkpoint"),
        (lambda state: {"state_dict": {}}, "loops"),
        (lambda state: state | {"state_dict": {"a": 1}}, "weights"),
        (lambda state: state | {"pytorch-lightning_version": "new"}, "pytorch-lightning_version"),
        (lambda state: {name: part for name, part in state.items() if name != "optimizer_states"}, "weights alone"),
        (lambda state: state | {"loops": {"fit_loop": 3}}, "odd.ckpt is no checkpoint of such a run"),
        (lambda state: state | {"optimizer_states": [3]}, "odd.ckpt is no checkpoint of such a run"),
        (lambda state: state | {"lr_schedulers": [{"a": 1}]}, "odd.ckpt is no checkpoint of such a run"),
        (lambda state: state | {"callbacks": [1]}, "odd.ckpt is no checkpoint of such a run"),
        (lambda state: state | {"form": {"x": 1}}, "odd.ckpt is no checkpoint of such a run"),
    ],
)
def test_what_is_no_checkpoint_of_a_run_is_refused_by_the_part_that_it_lacks(run, base_args, tmp_path, change, word):
    torch.save(change(saved_state(run, 6)), tmp_path / "odd.ckpt")
    with pytest.raises(SystemExit) as exit_:
        main([*CONFIG, *base_args(tmp_path, **RUN), "--ckpt_path", str(tmp_path / "odd.ckpt")])
    assert exit_.value.code.startswith("error: ") and word in exit_.value.code


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("tokenizer.json", "{", ["tokenizer", "cannot be read"]),
        (
            "tokenizer.json",
            "version https://git-lfs.github.com/spec/v1\n",
            ["(tokenizer.json is a pointer of Git LFS: "],
        ),
        ("tokenizer_config.json", "[]", ["tokenizer", "cannot be read"]),
        ("config.json", "[]", ["/config.json holds no settings"]),
        ("config.json", "{", ["/config.json is no JSON (Expecting"]),
        ("generation_config.json", "{", ["generation_config.json"]),
        ("generation_config.json", '{"eos_token_id": "x"}', ["generation config", "eos_token_id"]),
        ("chat_template.jinja", "{% for m in messages %}", ["chat template", "no Jinja"]),
        ("chat_template.jinja", "{{ messages[0].content }}{{ 1 / 0 }}", ["chat template", "ZeroDivisionError"]),
        ("chat_template.jinja", "{{ raise_exception('never') }}", ["chat template", "never"]),
        ("chat_template.jinja", "hello", ["chat template", "leaves out"]),
    ],
)
def test_a_damaged_model_folder_is_named(tiny_model_dir, base_args, tmp_path, file, text, words):
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    (tmp_path / "model" / file).write_text(text)
    with pytest.raises(SystemExit) as exit_:
        main([*CONFIG, *base_args(tmp_path, **{"model.init_args.init_from": tmp_path / "model"})])
    said = exit_.value.code
    assert "\n" not in said and all(word in said for word in ["error: init_from: ", str(tmp_path), *words]), said


@pytest.mark.parametrize("command", ["fit", "validate", "test", "show", "ask", "play", "serve"])
def test_every_command_refuses_a_model_that_lacks_a_shard_before_anything_is_read(base_args, tmp_path, run, command):
    place = tmp_path / "model"
    shutil.copytree(run / "hf", place)
    (place / "model.safetensors").rename(place / "a.safetensors")
    homes = {"model.norm.weight": "a.safetensors", "model.embed_tokens.weight": "b.safetensors"}
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    words = {"ask": [str(place), "how?"], "play": [str(place), "--data", "absent.jsonl"], "serve": [str(place)]}
    settings = {"model.init_args.init_from": place, "data.init_args.path": "absent.jsonl"}
    with pytest.raises(SystemExit) as exit_:
        main([command, *words.get(command, [*CONFIG[1:], *base_args(tmp_path, **settings)])])
    assert f"{place} lacks 1 of the 2 files that its model.safetensors.index.json names (b.saf" in exit_.value.code


@pytest.mark.parametrize("text", ["a: [", "[]", "model: {}"])
def test_an_export_beside_a_damaged_config_names_it(run, tmp_path, text):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last-000006.ckpt").symlink_to(run / "checkpoints" / "last-000006.ckpt")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(SystemExit) as exit_:
        main(["export", "--ckpt_path", str(tmp_path)])
    assert exit_.value.code.startswith(f"error: {tmp_path / 'config.yaml'} does not say")


def test_a_hub_that_does_not_answer_is_not_waited_for(base_args, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(SystemExit, match="init_from: there is no folder runs/absent here, and the hub"):
        main([*CONFIG, *base_args(tmp_path, **{"model.init_args.init_from": "runs/absent"})])

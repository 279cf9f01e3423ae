"""What a run says: its table first, steps and validations in lines or in a bar, and at its end how to go on."""

import io
import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm

from datamodules.example import Example
from lightning_modules.callbacks import progress
from lightning_modules.callbacks.ending import box, ended, interrupted, next_commands
from lightning_modules.callbacks.progress import Progress, clock, rows_of
from lightning_modules.cli import main
from lightning_modules.metrics import TargetLoss
from lightning_modules.srml import SRMLModule

SMALL = {
    "data.init_args.batch_size": 4,
    "trainer.max_steps": 4,
    "trainer.val_check_interval": 2,
    "trainer.check_val_every_n_epoch": "null",
    "progress.every_n_steps": 2,
    "data.init_args.val_fraction": 0.3,
}
CONFIG = ["fit", "--config", "configs/srml.yaml"]


@pytest.fixture(scope="module")
def said(base_args, tmp_path_factory):
    """What a run without a terminal prints, and its folder."""
    root, out, err = tmp_path_factory.mktemp("said"), io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        main([*CONFIG, *base_args(root, **SMALL)])
    (run,) = root.iterdir()
    return out.getvalue(), err.getvalue(), run


def test_the_table_comes_before_what_is_waited_for_and_steps_and_validations_have_a_line_each(said):
    printed, errors, _ = said
    lines = printed.splitlines()
    table = next(i for i, line in enumerate(lines) if line.startswith("  steps "))
    waited = lines.index("validating 2 rows before the first step, to see that it works")
    steps = [
        i for i, line in enumerate(lines) if re.match(r"step [24] of 4: loss \d\.\d{4}.*; \d+\.\d\d s a step", line)
    ]
    validations = [i for i, line in enumerate(lines) if line.startswith("validation at step ")]
    assert table < waited < steps[0] < validations[0] < steps[1] < validations[1]
    assert re.search(r"exact match \d\.\d{3}, format \d\.\d{3}, loss CoT \d+\.\d{3}, loss call \d+\.\d{3}", printed)
    for noise in ("Tip", "litlogger", "GPU available", "TPU", "v_num", "Loading weights", "it/s", "Seed set"):
        assert noise not in printed + errors, noise


def test_nothing_is_said_of_validating_where_no_row_is_held_out(base_args, tmp_path, capsys):
    options = SMALL | {"trainer.max_steps": 1, "data.init_args.val_fraction": 0, "trainer.val_check_interval": 1}
    main([*CONFIG, *base_args(tmp_path, **options)])
    printed = capsys.readouterr().out
    assert "step 1 of 1" in printed and "to see that it works" not in printed


@pytest.mark.parametrize(
    ("command", "line"), [("validate", r"\(2 rows, "), ("test", r"2 of 2 rows answered"), ("predict", r"2 of 2 rows")]
)
def test_rows_are_those_of_the_batches_that_limits_leave(command, line, base_args, tmp_path, capsys):
    limit = {"validate": "val"}.get(command, command)
    small = {"data.init_args.eval_batch_size": 2, f"trainer.limit_{limit}_batches": 1}
    main([command, "--config", "configs/srml.yaml", *base_args(tmp_path, **small)])
    assert re.search(line, capsys.readouterr().out)


def test_the_time_left_is_that_of_the_steps_to_come_without_validations(monkeypatch, capsys):
    shown, now = Progress(every_n_steps=3), [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    trainer = SimpleNamespace(is_global_zero=True, sanity_checking=False, state=SimpleNamespace(fn=TrainerFn.FITTING))
    trainer.val_dataloaders, trainer.num_val_batches = None, []
    module = SimpleNamespace(logged={})

    def at(seconds, then, step=None, **logged):
        now[0], trainer.global_step, module.logged = seconds, step or trainer.global_step, logged
        then(trainer, module)

    def steps(first, last):
        trainer.estimated_stepping_batches, trainer.global_step = last, first
        return shown.on_train_start, shown.on_train_batch_end

    begin, end = steps(4, 10)  # a run that goes on
    at(100, begin)
    at(103, end, 5, **{"train/loss": 2.0})
    at(110, shown.on_validation_start)
    at(130, shown.on_validation_end, **{"tool/exact_match": 0.25})
    at(136, end, 6, **{"train/loss": 0.5})
    trainer.is_global_zero = False  # as of any other rank
    at(137, end, 6, **{"train/loss": 0.5})
    trainer.is_global_zero = True
    at(150, end, 9, **{"policy/loss": 0.1, "reward/mean": 0.75})
    at(156, end, 10)
    begin, end = steps(10, 12)
    at(200, begin)
    at(206, end, 12)
    assert capsys.readouterr().out.splitlines() == [
        "validation at step 5: exact match 0.250 (0 rows, 20 s)",
        "step 6 of 10: loss 0.5000, score 0.250; 8.00 s a step, 32 s left",  # (136 - 100 - 20) / 2, times 4
        "step 9 of 10: loss 0.1000, reward 0.750, score 0.250; 6.00 s a step, 6 s left",  # (150 - 120) / 5
        "step 10 of 10: score 0.250; 6.00 s a step",
        "step 12 of 12: score 0.250; 3.00 s a step",
    ]


def test_a_loader_of_the_users_has_no_rows_that_are_known():
    assert rows_of(SimpleNamespace(batch_size=None), [float("inf")]) == 0  # as where a sampler makes its batches
    prompts = SimpleNamespace(batch_size=2, examples=range(5))
    assert [rows_of(prompts, [batches]) for batches in (2, 3, float("inf"))] == [4, 5, 5]


def test_a_bar_counts_the_rows_that_are_answered_and_ends_with_an_error():
    shown, rows = Progress(), SimpleNamespace(batch_size=2, examples=range(5))
    shown.bar = tqdm(total=5, file=io.StringIO())
    trainer, counts = SimpleNamespace(testing=True, test_dataloaders=rows, num_test_batches=[3]), []
    for batch in range(3):
        shown.on_test_batch_end(trainer, None, None, None, batch)
        counts.append(shown.bar.n)
    assert counts == [2, 4, 5]
    shown.on_exception(trainer, None, KeyboardInterrupt())
    assert shown.bar is None


def test_the_end_names_checkpoint_model_and_commands_that_can_be_pasted(said):
    printed, _, run = said
    end = printed[printed.index("done") :]
    assert re.search(r"best +tool/exact_match \d\.\d{4} at step \d+: ", end) and "last-000004.ckpt" in end
    commands = [line.strip() for line in end[end.index("next:") :].splitlines()[1:]]
    assert len(commands) == 3 and commands[0].startswith(f"funreason ask {run} ")
    assert commands[0].endswith(f"--tools {run}/tools.json") and (run / "tools.json").is_file()


def test_a_terminal_has_a_bar_of_optimizer_steps(base_args, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown, bars = Terminal(), []
    close = tqdm.close
    monkeypatch.setattr(tqdm, "close", lambda bar: (bars.append(getattr(bar, "__dict__", {}).copy()), close(bar)))
    monkeypatch.setattr(sys, "stdout", shown)
    main([*CONFIG, *base_args(tmp_path, **SMALL | {"trainer.enable_progress_bar": "true"})])
    assert ("training: ", 4, 4) in [(bar.get("desc"), bar["n"], bar["total"]) for bar in bars if "n" in bar]
    assert "step 2 of 4" not in shown.getvalue() and "validation at step 2" in shown.getvalue()


def test_control_c_ends_with_the_command_to_resume(base_args, tmp_path, monkeypatch, capsys):
    original = SRMLModule.training_step

    def stop(module, *args):
        if module.global_step == 1:
            raise KeyboardInterrupt
        return original(module, *args)

    monkeypatch.setattr(SRMLModule, "training_step", stop)
    with pytest.raises(SystemExit) as exit_:
        main([*CONFIG, *base_args(tmp_path, **SMALL)])
    (run,) = tmp_path.iterdir()
    printed = capsys.readouterr().out.splitlines()
    assert exit_.value.code == 130
    assert printed[-4:] == [
        "interrupted; resume:",
        f"  funreason fit --config {run}/config.yaml --ckpt_path {run}",
        "or use it as it is:",
        f"  funreason export --ckpt_path {run} --output_dir {run}/hf",
    ]


def test_a_run_that_is_resumed_at_its_end_says_so_and_offers_the_checkpoint(said, base_args, tmp_path, capsys):
    main([*CONFIG, *base_args(tmp_path, **SMALL), "--ckpt_path", str(said[2])])
    printed, last = capsys.readouterr().out, said[2] / "checkpoints" / "last-000004.ckpt"
    limits = "trainer.max_steps, max_epochs and max_time (over all its runs)"
    assert f"none: {last} has taken all that {limits} ask for" in printed
    assert printed.splitlines()[-2:] == ["next:", f"  funreason export --ckpt_path {last}"]


def test_a_run_that_ends_before_its_first_step_says_so_and_offers_nothing(tmp_path):
    trainer = SimpleNamespace(checkpoint_callbacks=[], global_step=0, ckpt_path=None, datamodule=None)
    printed = ended(trainer, str(tmp_path), 3600.0)
    assert "steps       none: trainer.max_time, or a callback, has ended the run before the first" in printed
    assert "next:" not in printed and "export" not in printed


def test_what_is_offered_asks_a_short_request_of_the_held_out_rows_and_exports_a_best_that_is_not_the_last(tmp_path):
    def rows(*examples):
        return SimpleNamespace(examples=lambda places: [examples[place] for place in places])

    (tmp_path / "hf").mkdir()
    best = tmp_path / "best-000002.ckpt"
    best.touch()
    held_out = rows(
        Example("1", "q" * 161, "[]", "[]"),
        Example("2", "And then?", "[]", "[]", history='[{"role": "user", "content": "First?"}]'),
        Example("3", "Rain in Oslo?", '[{"name": "f"}]', "[]"),
    )
    data = SimpleNamespace(rows=rows(Example("4", "Learnt?", "[]", "[]")), train_indices=[0], hparams={})
    data.val_rows, data.val_indices = held_out, [0, 1, 2]
    trainer = SimpleNamespace(datamodule=data, global_step=4)
    play = f"funreason play {tmp_path}"
    assert next_commands(trainer, tmp_path, str(best)) == [
        f"funreason ask {tmp_path} 'Rain in Oslo?' --tools {tmp_path}/tools.json",
        f"funreason export --ckpt_path {best}",
        play,
    ]
    assert json.loads((tmp_path / "tools.json").read_text()) == [{"name": "f"}]
    trainer.global_step, data.val_indices, data.hparams = 2, [], {"val_path": "held.jsonl"}
    assert next_commands(trainer, tmp_path, str(best)) == [
        f"funreason ask {tmp_path} 'Learnt?' --tools {tmp_path}/tools.json",
        f"funreason test --config {tmp_path}/config.yaml --model.init_from {tmp_path} --data.path held.jsonl",
        play,
    ]


def test_nothing_is_offered_where_nothing_was_saved(tmp_path):
    assert interrupted(None) == interrupted(tmp_path) == ""


def test_the_loss_of_references_is_the_mean_of_documents_or_of_tokens():
    nll = torch.tensor([1.0, 2.0, 3.0, 8.0, 5.0])
    segments, samples = torch.tensor([1, 1, 2, 1, 2]), torch.tensor([0, 0, 0, 1, 1])
    one, other = TargetLoss(), TargetLoss(by_token=True)
    for metric in (one, other):
        metric.update(nll, segments, samples)
    # documents: CoT (1.5 + 8) / 2, call (3 + 5) / 2; tokens: CoT (1 + 2 + 8) / 3
    assert one.compute() == {"val/loss_cot": 4.75, "val/loss_call": 4.0}
    assert other.compute() == {"val/loss_cot": pytest.approx(11 / 3), "val/loss_call": 4.0}
    split = TargetLoss()
    split.update(nll[:3], segments[:3], samples[:3])
    split.update(nll[3:], segments[3:], samples[3:] - 1)
    assert split.compute() == one.compute()
    calls_only = TargetLoss()
    calls_only.update(nll[2:3], segments[2:3], samples[2:3])
    assert calls_only.compute() == {"val/loss_call": 3.0}


def test_the_box_is_as_wide_as_its_longest_line():
    lines = box("done", {"a": "y", "b": "x" * 30}).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 4 and "x" * 30 in lines[2]


def test_clock_and_step():
    assert [clock(seconds) for seconds in (5.4, 119, 120, 7140, 7200)] == ["5 s", "119 s", "2 min", "119 min", "2.0 h"]

"""The table at the start of a run: its sizes are those of the run."""

import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_modules.callbacks.summary import RunSummary, accuracy_table, rate_of, time_left, tokens_of_step
from lightning_modules.cli import main
from lightning_modules.grpo import GRPOModule
from lightning_modules.srml import SRMLModule


def rows_of(printed):
    """The table by its first words."""
    return {line.split()[0]: line for line in printed.splitlines() if line.startswith("  ") and line.split()}


@pytest.mark.parametrize("experiment", ["srml", "grpo"])
def test_a_run_begins_with_its_parameters_tokens_and_memory(experiment, tmp_path, base_args, tiny_model_dir, capsys):
    options = {"trainer.max_steps": 1, "trainer.limit_val_batches": 0, "model.init_args.micro_batch_tokens": 2048}
    if experiment == "srml":
        options = {k: v for k, v in options.items() if "micro" not in k} | {"data.init_args.batch_size": 8}
        dated = tmp_path / "dated"
        shutil.copytree(tiny_model_dir, dated)
        template = dated / "chat_template.jinja"
        template.write_text('{{ strftime_now("%Y") }}' + template.read_text())
        options |= {"model.init_args.lora.r": 4, "model.init_args.init_from": dated}
    else:
        options |= {"model.init_args.schedule": "constant", "trainer.max_steps": 2}
    main(["fit", "--config", f"configs/{experiment}.yaml", *base_args(tmp_path, **options)])
    rows = rows_of(capsys.readouterr().out)
    # 2 layers of width 32 (k and v 16, MLP 64), rank 4: 4 x 2 x (2 x 64 + 2 x 48 + 3 x 96) adapter weights.
    trained = 4_096 if experiment == "srml" else None
    assert trained is None or f"{trained:,} trained" in rows["model"]
    # Of one step 0.05 are a step of warm-up, begun and done; grpo.yaml has none.
    rate = (
        "0.002 after 1 steps of warm-up, then it falls" if trained else "0.0001 after 0 steps of warm-up, then it stays"
    )
    assert rate in rows["learning"]
    assert rows.get("prompts", "").startswith("  prompts       are of 2024-07-26") == (experiment == "srml")
    assert "a step: " in rows["tokens"] and ("rollouts" in rows["tokens"]) == (experiment == "grpo")
    assert rows["generator"] == "  generator     HFGenerator, at most 8 tokens"
    assert {"memory", "weights", "AdamW", "gradients"} <= rows.keys()
    assert ("reference" in rows) == (experiment == "grpo")
    assert "TOO" not in rows


def test_fewer_rows_than_a_step_takes_are_counted_as_they_are(monkeypatch, capsys):
    data = SimpleNamespace(lengths=np.array([10, 20, 30]), train_indices=np.array([0, 2]), val_indices=np.array([1]))
    data.hparams = SimpleNamespace(batch_size=32)
    trainer = SimpleNamespace(datamodule=data, is_global_zero=True)
    assert tokens_of_step(trainer, None) == {"tokens": "about 40 a step: 2 rows x 20 on average"}
    summary = RunSummary()
    monkeypatch.setattr(summary, "begin", lambda *_: None)
    summary.on_sanity_check_start(trainer, None)
    assert capsys.readouterr().out == "validating 1 rows before the first step, to see that it works\n"


def test_the_time_to_come_is_told_once_by_the_first_whole_batch_of_rollouts(capsys):
    summary, module = RunSummary(), GRPOModule(init_from="none")
    trainer = SimpleNamespace(is_global_zero=True, estimated_stepping_batches=9)
    # A run that goes on in the middle of a batch; then batches of two steps each.
    for step, sampled, done, seconds in [(1, [], True, 99), (2, [1], False, 6), (3, [], True, 2), (4, [1], True, 50)]:
        trainer.global_step, module.rollouts, module.buffer = step, sampled, None if done else object()
        module.logged = {"time/step": float(seconds)}
        summary.on_train_batch_end(trainer, module)
    told = "The first batch of rollouts took 8.0 s, 4.0 s an optimizer step; at that speed the 6 steps to come"
    assert capsys.readouterr().out == f"{told} take 0:00:24, and validation comes on top.\n"


def test_the_rate_of_an_optimizer_of_ones_own_is_not_guessed(tiny_model_dir):
    class Own(SRMLModule):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameter_groups(), lr=0.5)

    trainer, own = SimpleNamespace(estimated_stepping_batches=100), Own(init_from=tiny_model_dir)
    assert rate_of(trainer, own) == "as Own.configure_optimizers has it"
    own._trainer = SimpleNamespace(estimated_stepping_batches=math.inf, max_epochs=-1)  # of trainer.max_time alone
    with pytest.raises(ValueError, match="give inf optimizer steps; a run needs some, and an end"):
        RunSummary().on_fit_start(own._trainer, own)
    told = "0.001 after 5 steps of warm-up, then it falls as a cosine to 0"
    assert rate_of(trainer, SRMLModule(init_from=tiny_model_dir, learning_rate=1e-3)) == told


def test_the_table_of_a_test_says_how_many_completions_have_no_end():
    said = "25.0% of the completions were cut at model.generator.max_new_tokens, before they ended"
    assert accuracy_table({"completion/truncated_frac": 0.25}).splitlines()[1:] == [said]
    assert len(accuracy_table({"completion/truncated_frac": 0.0}).splitlines()) == 1


def test_time_left_is_said_of_steps_that_are_to_come():
    took = "The first batch of rollouts took 6.0 s, 3.0 s an optimizer step"
    assert time_left(6, 2, 0) == f"{took}."
    assert time_left(6, 2, 30) == (
        f"{took}; at that speed the 30 steps to come take 0:01:30, and validation comes on top."
    )

"""Help on every group of settings and on what is nested in it."""

from typing import Protocol

import pytest

from lightning_modules.cli import ROOTS, main
from lightning_modules.commands.options import subclasses


class Judges(Protocol):
    """A protocol of the user's."""


def test_what_follows_a_protocol_is_looked_for_in_its_module_where_that_is_in_no_package(monkeypatch):
    monkeypatch.setattr(Judges, "__module__", "json")
    assert subclasses(Judges) == []


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--model.lora.help"], ["--model.lora.r", "--model.lora.alpha", "Rank."]),
        (["--model.init_args.lora.help"], ["--model.lora.dropout"]),
        (["--model.loss.help"], ["--model.loss.clip_high", "--model.loss.kl_coef", "GSPO"]),
        (["--model.dynamic_sampling.max_draws.help"], ["--model.dynamic_sampling.max_draws", "default: 0"]),
        (["--model.lora.r.help"], ["--model.lora.r", "default: 16"]),
        (["--model.help=GRPOModule"], ["--model.sampling.group_size", "--model.learning_rate"]),
        (["--model", "GRPOModule", "--model.rewards.help"], ["--model.rewards.function", "--model.rewards.weight"]),
        (["--model.generator.help"], ["HFGenerator", "VLLMGenerator"]),
        (["--model.generator.help", "HFGenerator"], ["--model.generator.max_new_tokens"]),
        (["--data.help"], ["XLAMSFTDataModule", "XLAMPromptDataModule"]),
        (["--trainer.callbacks.help"], ["EarlyStopping"]),
        (["--trainer.callbacks.help=EarlyStopping"], ["--trainer.callbacks.patience"]),
        *(([f"--{group}.help"], [group]) for group in ROOTS),
    ],
)
def test_help_on_settings(words, shown, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", "configs/srml.yaml", *words])
    printed = capsys.readouterr().out
    assert exit_.value.code == 0 and all(word in printed for word in shown), printed


def test_help_on_a_class_that_there_is_not_says_how_to_name_one():
    with pytest.raises(
        SystemExit, match=r"^error: there is no class x\.Y \(.*\): give one by its name or import path$"
    ):
        main(["fit", "--config", "configs/srml.yaml", "--model.help=x.Y"])

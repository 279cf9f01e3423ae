"""Settings that there are not are asked after by the names that they may be meant to have."""

import pytest

from lightning_modules.cli import ROOTS, main
from lightning_modules.commands.meant import ELSEWHERE, keys_of, meant


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("--trainer.per_device_train_batch_size=4", "data.batch_size"),
        ("--model_name_or_path=x", "model.init_from"),
        ("--learning_rate=1", "model.learning_rate"),
        ("--model.learning_rte=1", "model.learning_rate"),
        ("--model.lora_r=4", "model.lora.r"),
        ("--model.max_new_tokens=4", "model.generator.max_new_tokens"),
        ("--model.sampling.groupsize=4", "model.sampling.group_size"),
        ("--trainer.num_train_epochs=3", "trainer.max_epochs"),
        ("--data_seed=3", "seed_everything"),
        ("--last_checkpoint.every_n_steps=2", "last_checkpoint.every_n_train_steps"),  # though progress has that word
        ("--checkpoint.every_n_train_steps=2", "last_checkpoint.every_n_train_steps"),
        ("--model.inner_epochs=2", None),  # which GRPO has and SRML has not
        ("--data.zzz=1", None),
    ],
)
def test_a_key_that_is_not_there_is_told_the_one_that_may_be_meant(base_args, tmp_path, capsys, given, key):
    config = "grpo" if "sampling" in given else "srml"
    with pytest.raises(SystemExit):
        main(["fit", "--config", f"configs/{config}.yaml", *base_args(tmp_path), given])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"(is --{key} meant?)") if key else "meant" not in last, last


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("base_model: x", "model.init_from"),
        ("trainer: {gradient_accumulation_steps: 4}", "data.batch_size"),
        ("data: {init_args: {cutoff_len: 100}}", "data.max_length"),
    ],
)
def test_so_it_is_of_a_yaml(base_args, tmp_path, capsys, text, key):
    (tmp_path / "mine.yaml").write_text(f"{text}\n")
    mine = ["--config", str(tmp_path / "mine.yaml")]
    with pytest.raises(SystemExit):
        main(["fit", "--config", "configs/srml.yaml", *base_args(tmp_path), *mine])
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"(is --{key} meant?)")


def test_every_key_that_is_offered_is_there():
    ours = {*keys_of(ROOTS), "seed_everything", "ckpt_path"}
    assert not ELSEWHERE.keys() - ours


def test_a_class_that_hands_nothing_on_has_no_settings_of_its_parents():
    ours = {key.partition(".")[2] for key in keys_of(ROOTS) if key.startswith("last_checkpoint.")}
    assert ours == {"every_n_train_steps", "fsync", "asynchronous"}


def test_other_errors_are_left_alone():
    assert meant('Parser key "model": Expected a number. Got value: x', ROOTS) == ""

"""Names of before are read as those of now; a user's own module keeps what it calls so."""

import pkgutil

import pytest
import yaml

from lightning_modules import GRPOModule
from lightning_modules.commands.old_keys import MOVED, OF_GRPO, read_old_keys

TUNED = """\
model:
  class_path: GRPOModule
  init_args:
    kl_coef: 1e-2  # not a number to every reader of YAML
    loss: {dual_clip: 3.0, clip_low: 0.1}
    clip_low: 0.5
    overlong_buffer: '8'
    overlong: mask
    max_resample: 1
    dynamic_sampling: 3
    mini_batches: 2
"""


class OwnModule(GRPOModule):
    """Has an argument that is called as one of `GRPOModule` was."""

    def __init__(self, *, clip_high: float = 9.0, overlong: str = "mask", **kwargs) -> None:
        super().__init__(**kwargs)


def read(tmp_path, text, *words):
    """What becomes of the only YAML of a command line, and of its words."""
    (tmp_path / "c.yaml").write_text(text)
    config, *rest = read_old_keys([f"--config={tmp_path / 'c.yaml'}", *words])
    return config.removeprefix("--config="), rest


def test_arguments_are_put_into_groups_and_all_else_stays_as_it_is_written(tmp_path, capsys):
    text, _ = read(tmp_path, TUNED)
    assert yaml.safe_load(text)["model"] == {
        "class_path": "GRPOModule",
        "init_args": {
            "loss": {"dual_clip": 3.0, "clip_low": 0.1, "kl_coef": "1e-2"},  # what stands in the group wins
            "overlong": {"buffer": "8", "treatment": "mask"},
            "dynamic_sampling": {"max_resample": 1, "max_draws": 3},
            "mini_batches": 2,
        },
    }
    assert "kl_coef: 1e-2" in text and "buffer: '8'" in text
    assert capsys.readouterr().err.splitlines() == [
        "Names of an earlier version are read as those of this one: model.kl_coef as model.loss.kl_coef, "
        "model.clip_low as model.loss.clip_low, model.overlong_buffer as model.overlong.buffer, "
        "model.overlong as model.overlong.treatment, model.max_resample as model.dynamic_sampling.max_resample, "
        "model.dynamic_sampling as model.dynamic_sampling.max_draws."
    ]


def test_every_argument_is_read_on_the_command_line(capsys):
    for old, new in OF_GRPO.items():
        value = "none" if old == "overlong" else "1"
        words = ["fit", "--model=GRPOModule", f"--model.{old}={value}", f"--model.init_args.{old}", value]
        assert read_old_keys(words)[2:] == [f"--model.{new}={value}", f"--model.init_args.{new}={value}"]
    assert capsys.readouterr().err.count("model.clip_high as model.loss.clip_high") == 1


@pytest.mark.parametrize("kind", ["SRMLModule", "absent.Module", "os.path.join", f"{__name__}.OwnModule"])
def test_what_is_no_argument_of_before_is_left_alone(tmp_path, capsys, kind):
    text = f"model:\n  class_path: {kind}\n  init_args:\n    clip_high: 3.0\n    overlong: mask\n"
    words = ["--model.clip_high=4.0", "--model.overlong", "none", "--data.path=", "--print_config"]
    config, rest = read(tmp_path, text, *words)
    assert config == str(tmp_path / "c.yaml") and rest == words and capsys.readouterr().err == ""


def test_groups_of_now_are_left_alone(tmp_path):
    text = (
        "model:\n  class_path: GRPOModule\n  init_args:\n    overlong: {treatment: mask}\n    dynamic_sampling: null\n"
    )
    assert read(tmp_path, text)[0] == str(tmp_path / "c.yaml")


@pytest.mark.parametrize("old", MOVED)
def test_a_class_is_found_where_it_was(tmp_path, old, capsys):
    assert pkgutil.resolve_name(MOVED[old]).__name__ == old.rpartition(".")[2]
    text, rest = read(tmp_path, f"a: {{b: [{{class_path: {old}}}]}}\n", f"--model.x={old}", "--model.y", old)
    assert yaml.safe_load(text) == {"a": {"b": [{"class_path": MOVED[old]}]}}
    assert rest == [f"--model.x={MOVED[old]}", f"--model.y={MOVED[old]}"]
    assert f"{old} as {MOVED[old]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["a: [", "[]", "a: 1\na: 2\n", "&a [*a]", "model: &m\n  init_args: *m\n", "model: 3\n"]
)
def test_what_is_no_settings_is_left_to_the_parser(tmp_path, text):
    assert read(tmp_path, text)[0] == str(tmp_path / "c.yaml")
    assert read_old_keys(["--config", "absent.yaml", "--config"]) == ["--config", "absent.yaml", "--config"]

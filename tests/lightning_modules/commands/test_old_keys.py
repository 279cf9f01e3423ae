"""Names of before are read as those of now; a user's own module keeps what it calls so."""

import pkgutil

import pytest
import yaml

from lightning_modules import GRPOModule
from lightning_modules.cli import FunReasonCLI
from lightning_modules.commands.given import nested_nulls
from lightning_modules.commands.given import read as read_words
from lightning_modules.commands.old_keys import MOVED, OF_GRPO
from lightning_modules.commands.old_keys import read_old_keys as read_options

TUNED = """\
model:
  class_path: GRPOModule
  init_args:
    kl_coef: 1e-2  # not a number to every reader of YAML
    loss: {dual_clip: 3.0, aggregation: seq_mean}
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


def read_old_keys(words, reader=read_options):
    """The words that a command line is read as."""
    return [option.word for option in reader(read_words(words))]


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
            "loss": {"dual_clip": 3.0, "aggregation": "seq_mean", "kl_coef": "1e-2", "clip_low": 0.5},
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


def init_args(tmp_path, lines, start="model:\n  class_path: GRPOModule\n  init_args:"):
    """The model's arguments that a YAML with these lines is read as."""
    return yaml.safe_load(read(tmp_path, start + "\n    ".join(["", *lines]) + "\n")[0])["model"]["init_args"]


@pytest.mark.parametrize("group", ["{clip_low: 0.1}", "{class_path: x.Loss, init_args: {clip_low: 0.1}}"])
def test_one_setting_under_both_names_is_refused(tmp_path, group):
    with pytest.raises(ValueError, match=r"c\.yaml: model\.clip_low is model\.loss\.clip_low now, which is given, too"):
        init_args(tmp_path, [f"loss: {group}", "clip_low: 0.5"])
    with pytest.raises(ValueError, match=r"^--model: model\.clip_low is model\.loss\.clip_low now"):
        text = f"{{class_path: GRPOModule, init_args: {{clip_low: 0.5, loss: {group}}}}}"
        read_old_keys(["--model", text])


@pytest.mark.parametrize(
    "group",
    ["x.Loss", "{class_path: x.Loss}", "{class_path: x.Loss, init_args: null}", "{class_path: x.Loss, init_args: {}}"],
)
def test_a_loss_of_ones_own_gets_the_argument_of_before(tmp_path, group):
    read_as = init_args(tmp_path, [f"loss: {group}", "clip_low: 0.5"])
    assert read_as == {"loss": {"class_path": "x.Loss", "init_args": {"clip_low": 0.5}}}


def test_a_null_group_is_left_to_be_refused(tmp_path):
    assert init_args(tmp_path, ["loss: null", "clip_low: 0.5"]) == {"loss": None}


def test_merged_mappings_are_read_and_own_keys_win(tmp_path):
    read_as = init_args(tmp_path, ["<<: {clip_low: 0.1, clip_high: 0.2, mini_batches: 2}", "clip_low: 0.5"])
    assert read_as == {"mini_batches": 2, "loss": {"clip_low": 0.5, "clip_high": 0.2}}
    text = "model:\n  class_path: GRPOModule\n  init_args:\n    <<: 3\n    clip_low: 0.5\n"
    assert read(tmp_path, text)[0] == str(tmp_path / "c.yaml")  # the parser says what is wrong


def test_references_follow_what_they_name_and_the_environment_may_hold_a_value(tmp_path):
    lines = ["clip_low: 0.1", "clip_high: '${model.init_args.clip_low}'", "dynamic_sampling: '${oc.env:DRAWS}'"]
    assert init_args(tmp_path, [*lines, "seed: '${model.init_args.mini_batches}'"]) == {
        "loss": {"clip_low": 0.1, "clip_high": "${model.init_args.loss.clip_low}"},
        "dynamic_sampling": {"max_draws": "${oc.env:DRAWS}"},
        "seed": "${model.init_args.mini_batches}",
    }


def test_arguments_are_read_without_init_args_and_in_braces(tmp_path):
    words = ["--model=GRPOModule", "--config", str(tmp_path / "c.yaml"), "--model.init_args", "{clip_low: 0.5}"]
    (tmp_path / "c.yaml").write_text("model:\n  overlong: mask\n")
    _, config, braces = read_old_keys(words)
    assert yaml.safe_load(config.partition("=")[2]) == {"model": {"overlong": {"treatment": "mask"}}}
    assert yaml.safe_load(braces.partition("=")[2]) == {"loss": {"clip_low": 0.5}}
    (whole,) = read_old_keys(["--model={class_path: GRPOModule, init_args: {clip_low: 0.5, loss: {clip_high: 0.3}}}"])
    assert yaml.safe_load(whole.partition("=")[2]) == {
        "class_path": "GRPOModule",
        "init_args": {"loss": {"clip_high": 0.3, "clip_low": 0.5}},
    }


def test_a_value_that_there_is_not_is_given_to_its_group(capsys):
    words = ["fit", "--model.importance_sampling.cap", "null", "--model.init_args.loss.clip_low=~", "--model.lora=null"]
    assert read_old_keys(words, nested_nulls) == [
        "fit",
        "--model.importance_sampling={cap: null}",
        "--model.init_args.loss={clip_low: null}",
        "--model.lora=null",
    ]
    assert read_old_keys(["--model.loss.clip_low", "0.1"], nested_nulls) == ["--model.loss.clip_low=0.1"]


def test_every_argument_is_read_on_the_command_line(capsys):
    for old, new in OF_GRPO.items():
        value = "none" if old == "overlong" else "1"
        words = ["fit", "--model=GRPOModule", f"--model.{old}={value}", f"--model.init_args.{old}", value]
        assert read_old_keys(words)[2:] == [f"--model.{new}={value}", f"--model.init_args.{new}={value}"]
    assert capsys.readouterr().err.count("model.clip_high as model.loss.clip_high") == 1


@pytest.mark.parametrize("kind", ["SRMLModule", "absent.Module", "os.path.join", f"{__name__}.OwnModule"])
def test_what_is_no_argument_of_before_is_left_alone(tmp_path, capsys, kind):
    text = f"model:\n  class_path: {kind}\n  init_args:\n    clip_high: 3.0\n    overlong: mask\n"
    config, rest = read(
        tmp_path, text, "--model.clip_high=4.0", "--model.overlong", "none", "--data.path=", "--print_config"
    )
    wanted = ["--model.clip_high=4.0", "--model.overlong=none", "--data.path=", "--print_config"]
    assert config == str(tmp_path / "c.yaml") and rest == wanted and capsys.readouterr().err == ""


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
    assert read_old_keys(["--config", "absent.yaml", "--config"]) == ["--config=absent.yaml", "--config"]


def test_the_parser_takes_what_is_read_and_says_what_is_refused(tmp_path, capsys):
    start = ["--config=configs/grpo.yaml", f"--trainer.default_root_dir={tmp_path}"]
    model = FunReasonCLI([*start, "--model.importance_cap=null", "--model.loss.clip_low=0.1"], run=False).model
    assert (model.importance_sampling.cap, model.loss.clip_low) == (None, 0.1)
    (tmp_path / "old.yaml").write_text("model:\n  init_args:\n    clip_low: 0.3\n")
    for words in (["-c", str(tmp_path / "old.yaml")], [f"-c={tmp_path / 'old.yaml'}"], [f"-c{tmp_path / 'old.yaml'}"]):
        assert FunReasonCLI([*start, *words], run=False).model.loss.clip_low == 0.3
    (tmp_path / "c.yaml").write_text("model:\n  init_args:\n    clip_high: 0.3\n    loss: {clip_high: 0.4}\n")
    with pytest.raises(SystemExit, match="2"):
        FunReasonCLI([*start, f"--config={tmp_path / 'c.yaml'}"], run=False)
    assert capsys.readouterr().err.endswith(
        f"error: {tmp_path / 'c.yaml'}: model.clip_high is model.loss.clip_high now, which is given, too: "
        "leave one out\n"
    )

"""Every `config.yaml` that an earlier version has saved (the folder is its commit) runs, and means what it meant."""

import pkgutil
from pathlib import Path

import pytest
import yaml

from lightning_modules.cli import main

SAVED = Path(__file__).parent / "saved_configs"
FLAT = ("group_size", "temperature", "top_p", "entropy_scale", "clip_divisor", "entropy_level", "clip_low", "clip_high")
FLAT += ("dual_clip", "aggregation", "ratio_level", "kl_coef", "dynamic_sampling", "max_resample", "overlong")
FLAT += ("overlong_buffer", "importance_cap", "importance_above")
"""Arguments that `GRPOModule` had."""
GROUPS = {
    "2e32ac1/grpo": {
        "sampling": {"group_size": 2, "temperature": 1.0, "top_p": 1.0, "ahead": False},
        "entropy_bonus": {"scale": 0.4, "divisor": 2.0, "level": "rollout_cot"},
        "loss": {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None, "aggregation": "token_mean"}
        | {"ratio_level": "token", "kl_coef": 0.001},
        "dynamic_sampling": {"max_draws": 0, "max_resample": 0},
        "overlong": {"treatment": "none", "buffer": 64},
        "importance_sampling": {"cap": 2.0, "above": "truncate"},
    },
    "2e32ac1/grpo_tuned": {
        "sampling": {"group_size": 2, "temperature": 0.9, "top_p": 0.95, "ahead": False},
        "entropy_bonus": {"scale": 0.3, "divisor": 3.0, "level": "token"},
        "loss": {"clip_low": 0.1, "clip_high": 0.28, "dual_clip": 3.0, "aggregation": "seq_mean"}
        | {"ratio_level": "token", "kl_coef": 0.01},
        "dynamic_sampling": {"max_draws": 0, "max_resample": 1},
        "overlong": {"treatment": "mask", "buffer": 4},
        "importance_sampling": {"cap": None, "above": "mask"},
    },
    "2f9a2e0/grpo_dynamic": {
        "sampling": {"group_size": 2, "temperature": 1.0, "top_p": 1.0, "ahead": False},
        "entropy_bonus": {"scale": 0.4, "divisor": 2.0, "level": "rollout_cot"},
        "loss": {"clip_low": None, "clip_high": None, "dual_clip": None, "aggregation": None}
        | {"ratio_level": "sequence", "kl_coef": 0.001},
        "dynamic_sampling": {"max_draws": 2, "max_resample": 0},
        "overlong": {"treatment": "penalty", "buffer": 4},
        "importance_sampling": {"cap": 2.0, "above": "truncate"},
    },
}
"""What those of a file are in force as, by hand."""
COMMANDS = {"bfcl": "test", "sample": "predict"}
NAMES = sorted(str(path.relative_to(SAVED).with_suffix("")) for path in SAVED.rglob("*.yaml"))


def leaves(settings, path=""):
    """Values by their dotted keys; classes as themselves, wherever they are imported from."""
    if isinstance(settings, dict) and settings:
        for key, value in settings.items():
            yield from leaves(value, f"{path}.{key}")
    else:
        named = path.endswith(".class_path")
        yield path[1:], pkgutil.resolve_name(settings) if named else settings


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_config_runs_and_means_what_it_meant(name, tiny_model_dir, tmp_path, capsys):
    file = SAVED / f"{name}.yaml"
    command = COMMANDS.get(file.stem, "fit")
    own = {"model.init_args.init_from": tiny_model_dir, "trainer.default_root_dir": tmp_path / "run"}
    own |= {"data.init_args.cache_dir": tmp_path / "cache"} if file.stem not in ("bfcl", "pretrain") else {}
    main([command, f"--config={file}", *(f"--{key}={value}" for key, value in own.items())])
    (run,) = (tmp_path / "run").iterdir()
    now = yaml.safe_load((run / "config.yaml").read_text())
    before = yaml.safe_load(file.read_text())
    groups = GROUPS.get(name, {})
    for group, values in groups.items():
        in_force = now["model"]["init_args"][group]
        assert in_force.get("init_args", in_force) == values
    left = [before["model"]["init_args"].pop(key, None) for key in FLAT] if groups else []
    assert dict(leaves(now)).items() >= {k: v for k, v in leaves(before) if k not in own}.items()
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Names of an earlier version")]
    assert len(told) == bool(left) and all("model.clip_high as model.loss.clip_high" in line for line in told)


def test_files_that_lean_on_others_and_the_command_line_are_read_too(tiny_model_dir, tmp_path, capsys):
    (tmp_path / "overlay.yaml").write_text("model:\n  init_args:\n    overlong: penalty\n    dynamic_sampling: 3\n")
    files = [f"--config={SAVED / '2e32ac1/grpo_tuned.yaml'}", "--config", str(tmp_path / "overlay.yaml")]
    words = ["--model.clip_high=0.5", "--model.init_args.kl_coef", "0", "--model.dynamic_sampling", "1"]
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *files, *words, f"--model.init_from={tiny_model_dir}", "--print_config"])
    assert exit_.value.code == 0
    told = capsys.readouterr()
    now = yaml.safe_load(told.out)["model"]["init_args"]
    assert now["loss"]["init_args"] == GROUPS["2e32ac1/grpo_tuned"]["loss"] | {"clip_high": 0.5, "kl_coef": 0.0}
    assert now["overlong"] == {"treatment": "penalty", "buffer": 4}
    assert now["dynamic_sampling"] == {"max_draws": 1, "max_resample": 1}
    assert told.err.count("Names of an earlier version") == 1

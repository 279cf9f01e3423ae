"""Overlays of hardware after a config that only evaluates."""

from pathlib import Path

import pytest
import yaml

from lightning_modules import BFCLModule
from lightning_modules.commands import overlays
from lightning_modules.commands.given import read
from lightning_modules.commands.options import parameters

ROOT = Path(__file__).resolve().parents[3]
OVERLAYS = sorted(str(path) for path in (ROOT / "configs" / "trainer").glob("*.yaml"))
BFCL, SRML = (str(ROOT / "configs" / name) for name in ("bfcl.yaml", "srml.yaml"))


def without_training(words):
    """The words that are left."""
    return [option.word for option in overlays.without_training(read(words))]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: Path(path).stem)
def test_an_overlay_after_bfcl_keeps_all_but_what_is_of_training(overlay):
    _, first, second = without_training(["test", "--config", BFCL, "--config", overlay])
    assert first == f"--config={BFCL}"
    text, there = second.removeprefix("--config="), yaml.safe_load(Path(overlay).read_text())
    kept = yaml.safe_load(Path(text).read_text() if text == overlay else text)
    assert kept["trainer"] == there["trainer"]
    assert (kept.get("model") or {}).get("init_args", {}).keys() <= parameters(BFCLModule).keys()


def test_a_yaml_may_follow_a_flag_by_its_short_option():
    overlay = str(ROOT / "configs" / "trainer" / "fsdp2.yaml")
    *_, first, changed, flag = without_training(["test", "--fit_anyway", "-c", BFCL, "-c", overlay])
    assert (flag, first) == ("--fit_anyway", f"-c={BFCL}")
    assert "gradient_checkpointing" in Path(overlay).read_text()
    assert not yaml.safe_load(changed.removeprefix("-c="))["model"]["init_args"]


@pytest.mark.parametrize("named", [["--config", SRML], ["--model=SRMLModule"], []])
def test_nothing_is_left_out_for_a_model_that_trains(named):
    words = ["fit", *named, *(word for overlay in OVERLAYS for word in ("--config", overlay))]
    assert without_training(words) == [option.word for option in read(words)]


def test_what_no_module_takes_is_left_for_the_parser_to_refuse(tmp_path):
    overlay = tmp_path / "own.yaml"
    overlay.write_text("model: {gradient_checkpointing: true, init_args: {lora: {r: 4}, topp: 1, samples: 2}}\n")
    *_, changed = without_training(["test", "--config", BFCL, f"--config={overlay}"])
    assert yaml.safe_load(changed.removeprefix("--config=")) == {"model": {"init_args": {"topp": 1, "samples": 2}}}

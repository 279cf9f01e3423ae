"""The demo with all its stages, made small: a few rows, two optimizer steps each."""

import csv
import json
from pathlib import Path

import pytest

from lightning_modules import demo

SMALL = {
    "srml": ["--trainer.max_steps=2", "--data.limit_val=2", "--model.generator.max_new_tokens=4"],
    "grpo": [
        "--trainer.max_steps=2",
        "--data.limit_val=2",
        "--data.prompts_per_step=2",
        "--model.group_size=2",
        "--model.generator.max_new_tokens=4",
    ],
}
GENERATOR = "--model.generator=lightning_modules.rollout.HFGenerator"


@pytest.mark.slow
def test_the_demo_runs_every_stage_and_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    run = demo.run
    cache = f"--data.cache_dir={tmp_path / 'cache'}"

    def small(command, config, *options):
        few = [option.replace("4000", "16") for option in options]
        return run(command, config, *few, GENERATOR, *SMALL[config], cache)

    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    monkeypatch.setattr(demo, "run", small)
    monkeypatch.setattr(demo, "ROOT", tmp_path / "demo")
    monkeypatch.setattr(demo, "HELD_OUT", {"heldout": "toolbox:heldout:40:1", "unseen": "toolbox:unseen:40:1"})
    demo.main()
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    for stage in ("before", "srml", "egpo", "unseen"):
        assert {"exact_match", "format_rate", "simple", "irrelevance"} <= set(summary[stage])
        assert f"{summary[stage]['exact_match']:.3f}" in printed
    assert summary["seconds"] > summary["srml"]["seconds"] + summary["egpo"]["seconds"]
    assert f"{summary['egpo']['reward_first']:.3f} in the first fifth" in printed
    for folder in sorted((tmp_path / "demo").glob("version_*/hf")):
        assert (folder / "model.safetensors").is_file() and str(folder) in printed


def test_reward_rise_compares_the_first_and_the_last_fifth(tmp_path):
    with (tmp_path / "metrics.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "name", "value"])
        for step, reward in enumerate([0.25, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.75, 1.0]):
            writer.writerows([[step, "reward/std", 9.0], [step, "reward/mean", reward]])
    # (0.25 + 0.5) / 2 and (0.75 + 1) / 2
    assert demo.reward_rise(tmp_path) == {"reward_first": 0.375, "reward_last": 0.875}

"""The demo with all its stages, made small: a few rows, two optimizer steps each."""

import csv
import json
from pathlib import Path

import pytest

from datamodules.toolbox.rows import make_corpus
from lightning_modules import demo
from lightning_modules.commands.preview import Preview

SMALL = {
    "srml": ["--trainer.max_steps=2", "--data.limit_val=2", "--model.generator.max_new_tokens=4"],
    "grpo": [
        "--trainer.max_steps=2",
        "--data.limit_val=2",
        "--data.prompts_per_step=2",
        "--model.sampling.group_size=2",
        "--model.generator.max_new_tokens=4",
    ],
}
GENERATOR = "--model.generator=lightning_modules.generators.HFGenerator"


@pytest.mark.slow
def test_the_demo_runs_every_stage_and_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    run = demo.run
    cache = f"--data.cache_dir={tmp_path / 'cache'}"

    def small(command, config, *options):
        return run(command, config, *options, GENERATOR, *SMALL[config], cache)

    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    monkeypatch.setattr(demo, "run", small)
    monkeypatch.setattr(demo, "ROOT", tmp_path / "demo")
    monkeypatch.setattr(demo, "HELD_OUT", {"heldout": "toolbox:heldout:40:1", "unseen": "toolbox:unseen:40:1"})
    monkeypatch.setattr(demo, "SPOILED", {"split": "habits", "rows": 150, "share": 0.3})
    demo.main()
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert min(min(kind["precision"], kind["recall"]) for kind in summary["refinement"].values()) >= 0.95
    refined = tmp_path / "demo" / "refined" / "refined.jsonl"
    assert str(refined) in (tmp_path / "demo" / "srml-fit-0" / "config.yaml").read_text()
    for stage in ("before", "srml", "egpo", "unseen"):
        assert {"exact_match", "format_rate", "simple", "irrelevance"} <= set(summary[stage])
        assert f"{summary[stage]['exact_match']:.3f}" in printed
    assert summary["seconds"] > summary["srml"]["seconds"] + summary["egpo"]["seconds"]
    assert f"{summary['egpo']['reward_first']:.3f} in the first fifth" in printed
    for folder in sorted((tmp_path / "demo").glob("*/hf")):
        assert (folder / "model.safetensors").is_file() and str(folder) in printed


@pytest.mark.parametrize(("command", "config"), [("test", "srml"), ("fit", "srml"), ("fit", "grpo")])
def test_every_stage_is_one_process_on_the_cpu_whatever_there_is(command, config, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    monkeypatch.setattr(demo, "FunReasonCLI", Preview)  # which reads the settings and runs nothing
    trainer = demo.run(command, config, "--model.generator=lightning_modules.generators.HFGenerator").config[command]
    assert (trainer.trainer.accelerator, trainer.trainer.devices) == ("cpu", 1)


def test_reward_rise_compares_the_first_and_the_last_fifth(tmp_path):
    with (tmp_path / "metrics.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "name", "value"])
        for step, reward in enumerate([0.25, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.75, 1.0]):
            writer.writerows([[step, "reward/std", 9.0], [step, "reward/mean", reward]])
    # (0.25 + 0.5) / 2 and (0.75 + 1) / 2
    assert demo.reward_rise(tmp_path) == {"reward_first": 0.375, "reward_last": 0.875}


def test_the_refined_rows_are_what_is_true_of_the_spoiled_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "SPOILED", {"split": "habits", "rows": 300, "share": 0.3})
    report = demo.refine()
    refined = tmp_path / "refined" / "refined.jsonl"
    written = refined.stat().st_mtime_ns
    true = {row["id"]: row for row in make_corpus("habits", 300, 0)}
    kept = [json.loads(line) for line in refined.read_text().splitlines()]
    assert len(kept) == report["kept"] and all(row["answers"] == true[row["id"]]["answers"] for row in kept)
    assert demo.refine() == report and refined.stat().st_mtime_ns == written  # the second demo takes what is there


def test_the_table_of_defects():
    found = {"planted": 1200, "precision": 0.9876, "recall": 1.0}
    table = demo.defects({"planted": {"wrong_tool": found}, "rows": 4400, "kept": 4016, "rejected": 384}).splitlines()
    assert table[1].split() == ["wrong", "tool", "1,200", "0.988", "1.000"]
    assert table[2] == "4,400 rows: 4,016 kept, 384 rejected"

"""The embedded default from end to end (`make demo`): test the base model, SRML, test, EGPO, test again.

SRML starts from the tiny base model. Its rows show two habits of answering: most write the calls, some only promise
them, so that the model it makes is often right and not always in earnest. EGPO starts from that model, on rows
that offer several tools, ask for several calls, or fit no tool.
"""

import csv
import json
import os
import time
from pathlib import Path

from lightning_modules.cli import FunReasonCLI
from lightning_modules.metrics import CATEGORIES, RATES

ROOT = Path("runs/demo")
HELD_OUT = {"heldout": "toolbox:heldout:240:1", "unseen": "toolbox:unseen:120:1"}
"""Rows to test on: functions of the training rows with other values and wordings, and functions never trained on."""
HABITS = "toolbox:habits:4000"


def run(command: str, config: str, *options: str) -> FunReasonCLI:
    """Run `funreason COMMAND --config configs/CONFIG` under `runs/demo`; gives its model, data and trainer."""
    folder = ("--trainer.default_root_dir", str(ROOT))
    return FunReasonCLI([command, "--config", f"configs/{config}.yaml", *folder, *options])


def evaluate(model: str | Path, rows: str) -> dict[str, float]:
    """Test a model on rows of the corpus.

    Args:
        model: A run folder or a Hugging Face folder.
        rows: One of `HELD_OUT`'s sources.

    Returns:
        Rates of right completions, and the exact match of each category.
    """
    figures = run("test", "srml", "--model.init_from", str(model), "--data.path", rows).trainer.callback_metrics
    rates = {rate: float(figures[f"tool/{rate}"]) for rate in RATES.values()}
    return rates | {name: float(figures[f"tool/{name}/exact_match"]) for name in CATEGORIES}


def fit(config: str, *options: str) -> tuple[Path, dict[str, float]]:
    """Train, and test what came out on the held-out rows: the run folder and the figures, with `seconds`."""
    start = time.perf_counter()
    folder = Path(run("fit", config, "--trainer.limit_val_batches", "0", *options).trainer.log_dir)
    figures = evaluate(folder, HELD_OUT["heldout"])
    return folder, figures | {"seconds": round(time.perf_counter() - start, 1)}


def mean_rewards(folder: Path) -> list[float]:
    """The mean reward of the rollouts of each step of a run."""
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "reward/mean"]


def reward_rise(folder: Path) -> dict[str, float]:
    """Mean reward over the first and over the last fifth of a run's steps."""
    rewards = mean_rewards(folder)
    fifth = max(1, len(rewards) // 5)
    return {"reward_first": sum(rewards[:fifth]) / fifth, "reward_last": sum(rewards[-fifth:]) / fifth}


def comparison(summary: dict[str, dict[str, float]]) -> str:
    """The table that the demo ends with: one line per rate and per category, one column per model."""
    columns = {"before": "before", "srml": "SRML", "egpo": "EGPO", "unseen": "SRML, unseen functions"}
    lines = [f"{'held-out queries':<32}" + "".join(f"{title:>{len(title) + 4}}" for title in columns.values())]
    for name in (*RATES.values(), *CATEGORIES):
        label = f"exact match, {name}" if name in CATEGORIES else name
        cells = (f"{summary[key][name]:>{len(title) + 4}.3f}" for key, title in columns.items())
        lines.append(f"{label.replace('_', ' '):<32}{''.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    """Run the demo, print the table and write `runs/demo/summary.json`."""
    start = time.perf_counter()
    before = evaluate("assets/tiny-base", HELD_OUT["heldout"])
    srml_run, srml = fit("srml", "--data.path", HABITS)
    unseen = evaluate(srml_run, HELD_OUT["unseen"])
    supervised = time.perf_counter() - start
    egpo_run, egpo = fit("grpo", "--model.init_from", str(srml_run))
    egpo |= reward_rise(egpo_run)
    total = round(time.perf_counter() - start, 1)
    models = {"before": before, "srml": srml, "egpo": egpo, "unseen": unseen}
    path = ROOT / "summary.json"
    path.with_suffix(".tmp").write_text(json.dumps({"seconds": total} | models, indent=2) + "\n", encoding="utf-8")
    os.replace(path.with_suffix(".tmp"), path)
    print(f"\n{comparison(models)}\n")
    print(f"Mean reward of EGPO's rollouts: {egpo['reward_first']:.3f} in the first fifth of its steps, ", end="")
    print(f"{egpo['reward_last']:.3f} in the last")
    print(f"Training and evaluation: SRML {supervised:.0f} s, EGPO {egpo['seconds']:.0f} s. The figures: {path}")
    print(f"The models, as Hugging Face folders: {srml_run / 'hf'} and {egpo_run / 'hf'}")
    print(f"What they answered: {ROOT}/version_*/samples.jsonl")
    print(f"Curves and samples: .venv/bin/tensorboard --logdir {ROOT}, then open the address it prints")


if __name__ == "__main__":
    main()

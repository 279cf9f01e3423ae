"""The embedded default from end to end (`make demo`): refine rows, SRML on them, EGPO, and a test of every model.

The rows to refine are spoiled first: a known share of them is given defects of known kinds, so that what the refinement
finds can be held against what is true. SRML starts from the tiny base model, on the rows that are left. They show two
habits of answering: most write the calls, some only promise them, so that the model it makes is often right and not
always in earnest. EGPO starts from that model, on rows that offer several tools, ask for several calls, or fit no tool.
"""

import csv
import json
import time
from pathlib import Path
from typing import Any

from datamodules.refinement import cli as refinement
from datamodules.system.errors import one_sentence
from datamodules.system.files import write_text
from lightning_modules.cli import FunReasonCLI
from lightning_modules.metrics import CATEGORIES, RATES

ROOT = Path("runs/demo")
HELD_OUT = {"heldout": "toolbox:heldout:240:1", "unseen": "toolbox:unseen:120:1"}
"""Rows to test on: functions of the training rows with other values and wordings, and functions never trained on."""
SPOILED = {"split": "habits", "rows": 4400, "share": 0.15}
"""Rows with planted defects; about 4,000 are left of them."""
GENERATOR = "lightning_modules.generators.HFGenerator"
SEEDS = ("--data.seed", "0", "--model.generator", GENERATOR, "--model.generator.seed", "0")
"""Of the order of the rows and of the sampler, whatever the seed of the run, so that its metrics stay comparable."""


def run(command: str, config: str, *options: str) -> FunReasonCLI:
    """Run `funreason COMMAND --config configs/CONFIG` under `runs/demo`; gives its model, data and trainer.

    In one process on the CPU, whatever accelerators there are: on several GPUs Lightning would start the whole demo
    once for each, and its numbers are those of a CPU.
    """
    configs = ("--config", f"configs/{config}.yaml", "--config", "configs/trainer/cpu.yaml")
    return FunReasonCLI([command, *configs, "--trainer.default_root_dir", str(ROOT), *options])


def refine() -> dict[str, Any]:
    """Run `funreason-refine` on rows with planted defects; gives its report.

    A folder that an earlier demo has finished is left as it is: the same rows, refined by the same rules.
    """
    folder = ROOT / "refined"
    corpus = [f"--corpus.{name}={value}" for name, value in SPOILED.items()]
    refinement.main(["--config", "configs/refine_demo.yaml", *corpus, "--output_dir", str(folder)])
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


def defects(report: dict[str, Any]) -> str:
    """The table of a refinement: one line per kind of planted defect."""
    lines = [f"{'planted defect':<24}{'planted':>9}{'precision':>12}{'recall':>9}"]
    for kind, found in report["planted"].items():
        cells = f"{found['planted']:>9,}{found['precision']:>12.3f}{found['recall']:>9.3f}"
        lines.append(f"{kind.replace('_', ' '):<24}{cells}")
    return "\n".join([*lines, f"{report['rows']:,} rows: {report['kept']:,} kept, {report['rejected']:,} rejected"])


def evaluate(model: str | Path, rows: str) -> dict[str, float]:
    """Test a model on rows of the corpus.

    Args:
        model: A run folder or a Hugging Face folder.
        rows: One of `HELD_OUT`'s sources.

    Returns:
        Rates of right completions, and the exact match of each category.
    """
    metrics = run("test", "srml", "--model.init_from", str(model), "--data.path", rows).trainer.callback_metrics
    rates = {rate: float(metrics[f"tool/{rate}"]) for rate in RATES.values()}
    return rates | {name: float(metrics[f"tool/{name}/exact_match"]) for name in CATEGORIES}


def fit(config: str, *options: str) -> tuple[Path, dict[str, float]]:
    """Train, and test what came out on the held-out rows: the run folder and the metrics, with `seconds`."""
    start = time.perf_counter()
    folder = Path(run("fit", config, "--trainer.limit_val_batches", "0", *SEEDS, *options).trainer.log_dir)
    metrics = evaluate(folder, HELD_OUT["heldout"])
    return folder, metrics | {"seconds": round(time.perf_counter() - start, 1)}


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
    """Run the demo; an error ends it with one sentence, as it ends the commands."""
    with one_sentence():
        show()


def show() -> None:
    """Run the demo, print its tables and write `runs/demo/summary.json`."""
    start = time.perf_counter()
    report = refine()
    refined = time.perf_counter() - start
    before = evaluate("assets/tiny-base", HELD_OUT["heldout"])
    srml_run, srml = fit("srml", "--data.path", str(ROOT / "refined" / "refined.jsonl"))
    unseen = evaluate(srml_run, HELD_OUT["unseen"])
    supervised = time.perf_counter() - start - refined
    egpo_run, egpo = fit("grpo", "--model.init_from", str(srml_run))
    egpo |= reward_rise(egpo_run)
    total = round(time.perf_counter() - start, 1)
    models = {"before": before, "srml": srml, "egpo": egpo, "unseen": unseen}
    path = ROOT / "summary.json"
    summary = {"seconds": total, "refinement": report["planted"]} | models
    write_text(path, json.dumps(summary, indent=2) + "\n")
    print(f"\n{defects(report)}\n\n{comparison(models)}\n")
    print(f"Mean reward of EGPO's rollouts: {egpo['reward_first']:.3f} in the first fifth of its steps, ", end="")
    print(f"{egpo['reward_last']:.3f} in the last")
    print(f"Refinement {refined:.0f} s; training and evaluation: SRML {supervised:.0f} s, EGPO {egpo['seconds']:.0f} s")
    print(f"The metrics: {path}. The refined and the rejected rows: {ROOT / 'refined'}")
    print(f"The models, as Hugging Face folders: {srml_run / 'hf'} and {egpo_run / 'hf'}")
    print(f"What they answered: {ROOT}/*/samples.jsonl")
    print(f"Curves and samples: make tensorboard LOGDIR={ROOT}, then open the address it prints")


if __name__ == "__main__":
    main()

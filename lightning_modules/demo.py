"""The embedded default from end to end (`make demo`): test the base model, fine-tune it with SRML, test it again."""

import json
import os
import time
from pathlib import Path

from lightning_modules.cli import FunReasonCLI
from lightning_modules.metrics import CATEGORIES, RATES

CONFIG = "configs/srml.yaml"
ROOT = Path("runs/demo")
HELD_OUT = {"heldout": "toolbox:heldout:240:1", "unseen": "toolbox:unseen:120:1"}
"""Rows to test on: functions of the training rows with other values and wordings, and functions never trained on."""


def run(command: str, *options: str) -> FunReasonCLI:
    """Run `funreason COMMAND` on the demo's configuration, and give back its model, data and trainer."""
    return FunReasonCLI([command, "--config", CONFIG, "--trainer.default_root_dir", str(ROOT), *options])


def evaluate(model: str, rows: str) -> dict[str, float]:
    """Test a model on rows of the corpus.

    Args:
        model: A Hugging Face folder.
        rows: One of `HELD_OUT`'s sources.

    Returns:
        Rates of right completions, and the exact match of each category.
    """
    figures = run("test", "--model.init_from", model, "--data.path", rows).trainer.callback_metrics
    rates = {rate: float(figures[f"tool/{rate}"]) for rate in RATES.values()}
    return rates | {name: float(figures[f"tool/{name}/exact_match"]) for name in CATEGORIES}


def comparison(before: dict[str, float], after: dict[str, float], unseen: dict[str, float]) -> str:
    """The table that the demo ends with: one line per rate and per category."""
    lines = [f"{'held-out queries':<32}{'before':>9}{'SRML':>9}{'unseen functions':>19}"]
    for name, value in before.items():
        label = f"exact match, {name}" if name in CATEGORIES else name
        lines.append(f"{label.replace('_', ' '):<32}{value:>9.3f}{after[name]:>9.3f}{unseen[name]:>19.3f}")
    return "\n".join(lines)


def main() -> None:
    """Run the demo, print the table and write `runs/demo/summary.json`."""
    start = time.perf_counter()
    before = evaluate("assets/tiny-base", HELD_OUT["heldout"])
    folder = Path(run("fit").trainer.log_dir)
    after = evaluate(str(folder), HELD_OUT["heldout"])
    unseen = evaluate(str(folder), HELD_OUT["unseen"])
    seconds = round(time.perf_counter() - start, 1)
    summary = {"seconds": seconds, "before": before, "srml": after | {"unseen": unseen}}
    path = ROOT / "summary.json"
    path.with_suffix(".tmp").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    os.replace(path.with_suffix(".tmp"), path)
    print(f"\n{comparison(before, after, unseen)}\n")
    print(f"Training and evaluation took {seconds:.0f} s. The figures: {path}")
    print(f"The fine-tuned model, a Hugging Face folder: {folder / 'hf'}")
    print(f"What it answered: {folder / 'samples.jsonl'}")
    print(f"Curves and samples: .venv/bin/tensorboard --logdir {ROOT}, then open the address it prints")


if __name__ == "__main__":
    main()

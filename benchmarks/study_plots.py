"""Pictures of the study, into docs/images: alpha, the curves of GRPO and EGPO, BFCL beside FunctionGemma.

Command: python -m benchmarks.study_plots [--runs FILE] [--out FOLDER]

A picture whose runs are not there is left out.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.study_claims import HERE, Runs, bfcl_entries, of_hits, read_runs, student, table
from benchmarks.study_papers import BARE
from benchmarks.study_tables import FUNCTION_GEMMA

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {"grpo": "tab:blue", "egpo": "tab:orange", "rate_0": "tab:grey"}
NAMES = {"grpo": "GRPO", "egpo": "EGPO", "rate_0": "their start"}
SUFFIXES = {"real": f"_11{BARE}", "small": ""}  # of the arms whose curves are drawn
LEARNING = {"kl": "KL to the reference, nats a token", "reward": "mean reward"}
REASONING = {"cot_entropy": "entropy of chains of thought, nats", "completion_length": "tokens of a completion"}
BARS = {"sft": "plain SFT", "srml_0.7": "SRML, alpha 0.7", "grpo": "GRPO", "egpo": "EGPO"}  # beside FunctionGemma
DPI = 90


def alpha_points(runs: Runs, measure: str = "heldout_rows") -> list[tuple[float, float, float, float]]:
    """Alpha, mean, and both ends of the interval, of the arms of SRML with a fixed alpha on the small scale."""
    points = []
    for (scale, arm), lines in runs.items():
        name = arm.removeprefix("srml_")
        if scale == "small" and name.replace(".", "", 1).isdigit():
            mean, low, high = of_hits(table(lines, measure, sorted(lines)))
            points.append((float(name), mean, low, high))
    return sorted(points)


def plot_alpha(runs: Runs, file: Path) -> None:
    """Exact match over alpha with its interval, and that of plain SFT as a line across."""
    alphas, means, lows, highs = zip(*alpha_points(runs), strict=True)
    figure, axes = plt.subplots(figsize=(5, 3.4))
    axes.plot(alphas, means, "o-", color="tab:orange", label="SRML, fixed alpha")
    axes.fill_between(alphas, lows, highs, color="tab:orange", alpha=0.2, linewidth=0, label="its 95 % interval")
    others = {"sft": ("plain SFT", "tab:grey"), "srml_learnable": ("SRML, learnable alpha", "tab:green")}
    for arm, (label, colour) in others.items():
        if lines := runs.get(("small", arm)):
            mean = table(lines, "heldout_rows", sorted(lines)).mean()
            axes.axhline(mean, color=colour, linestyle="--", label=label)
    axes.set(xlabel="alpha, the weight of the chain of thought", ylabel="exact match on held-out rows")
    axes.legend(fontsize=8)
    save(figure, file)


def plot_curves(runs: Runs, scale: str, curves: Mapping[str, str], file: Path) -> None:
    """Curves of GRPO, EGPO and their start over the steps: mean over seeds, and Student's interval of it as a band."""
    figure, many = plt.subplots(1, len(curves), figsize=(4.2 * len(curves), 3.2))
    arms = {arm: lines for arm in COLOURS if (lines := runs.get((scale, arm + SUFFIXES[scale])))}
    for axes, (curve, label) in zip(many, curves.items(), strict=True):
        for arm, lines in arms.items():
            values, colour = of_seeds(lines, curve), COLOURS[arm]
            steps, mean = range(1, values.shape[1] + 1), values.mean(axis=0)
            axes.plot(steps, mean, color=colour, label=f"{NAMES[arm]}, {len(values)} seeds, 95 %")
            if len(values) > 1:
                low, high = zip(*(student(of_step, 1 / len(values)) for of_step in values.T), strict=True)
                axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set(xlabel="optimizer step", ylabel=label)
        axes.legend(fontsize=8)
    save(figure, file)


def of_seeds(lines: Mapping[int, Mapping[str, Any]], curve: str) -> np.ndarray:
    """A curve of each seed, as far as all have it, [seeds, steps]."""
    curves = [lines[seed]["metrics"]["curves"][curve] for seed in sorted(lines)]
    steps = min(map(len, curves))
    return np.array([values[:steps] for values in curves])


def plot_bfcl(runs: Runs, bfcl: Mapping[str, Mapping[str, Sequence[float]]], file: Path) -> None:
    """Percent right by category of BFCL with intervals, beside FunctionGemma's published row.

    The interval of one seed is over rows alone, and so looks narrower than it is: the legend tells how many there are.
    """
    arms = [arm for arm in BARS if arm in bfcl]
    figure, axes = plt.subplots(figsize=(9, 3.6))
    width, places = 0.8 / (len(arms) + 1), np.arange(len(FUNCTION_GEMMA))
    for at, arm in enumerate(arms):
        mean, low, high = 100 * np.array([bfcl[arm][category] for category in FUNCTION_GEMMA]).T
        ends, seeds = np.clip([mean - low, high - mean], 0, None), len(runs["real", arm])
        label = f"{BARS[arm]}, {seeds} seeds" if seeds > 1 else f"{BARS[arm]}, 1 seed (interval over rows alone)"
        axes.bar(places + at * width, mean, width, yerr=ends, label=label, error_kw={"linewidth": 0.8})
    axes.bar(places + len(arms) * width, list(FUNCTION_GEMMA.values()), width, color="lightgrey", label="FunctionGemma")
    names = [name.replace("_", "\n") for name in FUNCTION_GEMMA]
    axes.set_xticks(places + 0.4 - width / 2, names, fontsize=7)
    axes.set(ylabel="right, percent, with 95 % intervals", ylim=(0, 100))
    axes.legend(fontsize=8, loc="upper center")  # above the categories that are lowest
    save(figure, file)


def save(figure: Any, file: Path) -> None:
    """Write a figure and close it."""
    figure.tight_layout()
    figure.savefig(file, dpi=DPI)
    plt.close(figure)


def pictures(runs: Runs, folder: Path) -> Iterator[Path]:
    """Draw what there are runs for; gives the files."""
    if len(alpha_points(runs)) > 1:
        plot_alpha(runs, folder / "study_alpha.png")
        yield folder / "study_alpha.png"
    for scale in ("real", "small"):
        if all((scale, arm + SUFFIXES[scale]) in runs for arm in ("grpo", "egpo")):
            for name, curves in {"learning": LEARNING, "reasoning": REASONING}.items():
                plot_curves(runs, scale, curves, folder / f"study_{name}_{scale}.png")
                yield folder / f"study_{name}_{scale}.png"
    bfcl = bfcl_entries(runs)
    if any(arm in bfcl for arm in BARS):
        plot_bfcl(runs, bfcl, folder / "study_bfcl.png")
        yield folder / "study_bfcl.png"


def main(args: Sequence[str] | None = None) -> None:
    """Draw the pictures and print the files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study_plots", description=main.__doc__)
    parser.add_argument("--runs", type=Path, default=HERE / "study_runs.jsonl")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "images")
    options = parser.parse_args(args)
    options.out.mkdir(parents=True, exist_ok=True)
    for file in pictures(read_runs(options.runs), options.out):
        print(file)


if __name__ == "__main__":
    main()

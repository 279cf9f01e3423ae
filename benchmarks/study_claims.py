"""The papers' claims held against the study's runs: differences of arms, their intervals, and whether each claim holds.

Command: python -m benchmarks.study_claims [--runs FILE] [--out FILE] [--page FILE] [--budget N]

Reads the lines that `benchmarks.study` has written, writes `study.json` and `docs/study.md`, and prints which runs are
still missing. A claim is a sum of arms with weights that is above 0 if the claim is right, and it has a verdict only
when each of its arms has the declared number of seeds.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study_papers import CLAIMS, MEASURES, Claim
from benchmarks.study_tables import page
from datamodules.system.files import write_text

HERE = Path(__file__).parent
BUDGET = {"real": 3, "small": 8}  # seeds of each arm of a claim
DRAWS = 4000  # of a bootstrap
FEW = 5  # hits of which a bootstrap says too little
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""Student's t below which 97.5 % lie, from 1 degree of freedom up; the last one serves for more."""
Z975 = 1.96
UNTRAINED = "base"  # has one run, which stands for every seed
NO_CALLS = ("irrelevance", "live_irrelevance")  # categories of BFCL that want none
PART = 5  # a curve counts by the mean of its last fifth

Runs = dict[tuple[str, str], dict[int, dict[str, Any]]]
"""Lines by (scale, arm) and seed."""


def values_of(metrics: Mapping[str, Any], measure: str) -> list[float]:
    """What a run has for a measure: a value per row, or one.

    Args:
        metrics: Of the run.
        measure: Keys joined by dots. A list under `curves` counts by the mean of its last fifth, or with `:rise` behind
            its name by what that is above the mean of the first; any other list is a value per row; of several named
            values the mean counts. `bfcl_call_rows` are those of `bfcl_rows` that want calls.

    Raises:
        KeyError: The run has no such metric.
    """
    if measure == "bfcl_call_rows":
        by_category = zip(metrics["bfcl_sizes"], np.split(metrics["bfcl_rows"], _ends_of(metrics)), strict=True)
        return [float(hit) for category, hits in by_category if category not in NO_CALLS for hit in hits]
    path, _, part = measure.partition(":")
    value: Any = metrics
    for key in path.split("."):
        value = value[key]
    if isinstance(value, dict):
        return [statistics.mean(value.values())]
    if not isinstance(value, list):
        return [float(value)]
    if not path.startswith("curves."):
        return [float(one) for one in value]
    fifth = max(1, len(value) // PART)
    last = statistics.mean(value[-fifth:])
    return [last - statistics.mean(value[:fifth]) if part == "rise" else last]


def contrast(runs: Runs, claim: Claim, seeds: Sequence[int]) -> np.ndarray:
    """The weighted sum of a claim's arms, by seed and row, [seeds, rows]; arms are paired by both."""
    total: Any = 0.0
    for arm, weight in claim.weights.items():
        total = total + weight * table(runs[claim.scale, arm], claim.measure, seeds)
    return np.asarray(total)


def table(lines: Mapping[int, dict[str, Any]], measure: str, seeds: Sequence[int]) -> np.ndarray:
    """The values of an arm by seed and row, [seeds, rows]."""
    only = next(iter(lines.values()))
    chosen = [only if only["arm"] == UNTRAINED else lines[seed] for seed in seeds]
    return np.array([values_of(line["metrics"], measure) for line in chosen])


def interval(values: np.ndarray, draws: int = DRAWS) -> tuple[float, float] | None:
    """95 % interval of the mean, or None: bootstrap over seeds and rows, and no narrower than both give together.

    The bootstrap alone would be too narrow for few seeds, of which it draws the same ones again and again. So it is
    held against Student's interval over the means of seeds and the normal one over the means of rows, in quadrature.

    Args:
        values: [seeds, rows].
        draws: Of the bootstrap.
    """
    seeds, rows = values.shape
    if values.size == 1:
        return None  # one value says nothing of others
    rng = np.random.default_rng(0)
    means = [values[rng.integers(seeds, size=seeds)][:, rng.integers(rows, size=rows)].mean() for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    if seeds > 1:
        mean, greatest = values.mean(), student(values.mean(axis=1), 1 / seeds)[1]
        of_rows = Z975 * values.mean(axis=0).std(ddof=1) / rows**0.5 if rows > 1 else 0.0
        half = math.hypot(greatest - mean, of_rows)
        low, high = min(low, mean - half), max(high, mean + half)
    return float(low), float(high)


def prediction(values: np.ndarray) -> tuple[float, float] | None:
    """Where 95 % of new seeds land on the same rows, if seeds are normally distributed; None of one seed."""
    seeds = len(values)
    return student(values.mean(axis=1), 1 + 1 / seeds) if seeds > 1 else None


def student(means: np.ndarray, factor: float) -> tuple[float, float]:
    """The mean of means -/+ t times their deviation times the root of a factor."""
    half = T975[min(len(means) - 1, len(T975)) - 1] * float(means.std(ddof=1)) * factor**0.5
    return float(means.mean()) - half, float(means.mean()) + half


def verdict(low: float, high: float) -> bool | str:
    """Whether a contrast with this interval is above 0: True, False (it is below) or "undecided"."""
    return True if low > 0 else False if high < 0 else "undecided"


def common_seeds(runs: Runs, claim: Claim) -> list[int]:
    """The seeds that every arm of a claim has."""
    arms = [runs.get((claim.scale, arm), {}) for arm in claim.weights if arm != UNTRAINED]
    if UNTRAINED in claim.weights and not runs.get((claim.scale, UNTRAINED)):
        return []
    return sorted(set.intersection(*map(set, arms)))


def judged(runs: Runs, claim: Claim, seeds: Sequence[int]) -> dict[str, Any] | None:
    """A claim's entry in `study.json`; None where a single value is all that there is."""
    values = contrast(runs, claim, seeds)
    ends, new = interval(values), prediction(values)
    if ends is None:
        return None
    lines = [line for arm in claim.weights for line in runs[claim.scale, arm].values()]
    return {
        "claim": claim.claim,
        "paper": claim.paper,
        "scale": claim.scale,
        "measure": claim.measure,
        "weights": dict(claim.weights),
        "ours": _short(values.mean()),
        "interval": _ends(ends),
        "prediction": _ends(new),
        "seeds": len(seeds),
        "rows": values.shape[1],
        "held": verdict(*ends),
        "command": "; ".join(sorted({line["command"] for line in lines})),
        "commit": ",".join(sorted({line["commit"] for line in lines})),
    }


def arm_entries(runs: Runs, measures: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Each arm's own metrics with their intervals, where it has them."""
    entries = []
    for (scale, arm), lines in runs.items():
        for measure in measures[scale]:
            try:
                values = table(lines, measure, sorted(lines))
            except KeyError:
                continue  # the base model has no curves
            ends = of_hits(values)[1:] if measure.endswith("_rows") else _ends(interval(values))
            entries.append(
                {
                    "scale": scale,
                    "arm": arm,
                    "measure": measure,
                    "mean": _short(values.mean()),
                    "interval": ends,
                    "prediction": _ends(prediction(values)),
                    "seeds": len(lines),
                    "rows": values.shape[1],
                }
            )
    return entries


def bfcl_entries(runs: Runs) -> dict[str, dict[str, list[float]]]:
    """Accuracy by category of BFCL of each arm: the mean over seeds and rows, and both ends of its interval."""
    entries = {}
    for (_, arm), lines in runs.items():
        tested = [line["metrics"] for line in lines.values() if "bfcl_rows" in line["metrics"]]
        if tested:
            sizes = tested[0]["bfcl_sizes"]  # in the order of the rows
            rows = np.array([metrics["bfcl_rows"] for metrics in tested], dtype=float)
            columns = np.split(rows, _ends_of(tested[0]), axis=1)
            entries[arm] = {name: of_hits(of) for name, of in zip(sizes, columns, strict=True)}
    return entries


def of_hits(hits: np.ndarray) -> list[float]:
    """Mean of hits [seeds, rows] and both ends of its interval, as far as shares go.

    Of one seed it is Wilson's over the rows: of few hits a bootstrap ends too early. So it is where seeds together have
    fewer hits, or misses, than `FEW`, which may all be of one row.
    """
    mean, fewest = hits.mean(), min(hits.sum(), (1 - hits).sum())
    low, high = interval(hits) if len(hits) > 1 and fewest >= FEW else wilson(mean, hits.shape[1])
    return [_short(value) for value in (mean, max(0.0, low), min(1.0, high))]


def wilson(share: float, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of rows."""
    part = Z975**2 / rows
    middle, half = share + part / 2, math.sqrt(part * share * (1 - share) + part**2 / 4)
    return (middle - half) / (1 + part), (middle + half) / (1 + part)


def _ends_of(metrics: Mapping[str, Any]) -> np.ndarray:
    """Where the categories of BFCL end in the rows of a run, but for the last one."""
    return np.cumsum(list(metrics["bfcl_sizes"].values()))[:-1]


def _ends(ends: tuple[float, float] | None) -> list[float] | None:
    return ends and [_short(value) for value in ends]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def read_runs(file: Path) -> Runs:
    """The lines of finished runs by arm and seed."""
    runs: Runs = {}
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue  # a kill has cut it off, and the run is made again
        runs.setdefault((line["scale"], line["arm"]), {})[line["seed"]] = line
    return runs


def missing(runs: Runs, claims: Sequence[Claim], budget: Mapping[str, int]) -> list[str]:
    """A line for each arm whose runs are too few for a claim that needs it."""
    lines = {}
    for claim in claims:
        for arm in claim.weights:
            found, wanted = len(runs.get((claim.scale, arm), {})), 1 if arm == UNTRAINED else budget[claim.scale]
            if found < wanted:
                lines[claim.scale, arm] = f"{claim.scale} {arm}: {found} of {wanted} seeds"
    return list(lines.values())


def main(args: Sequence[str] | None = None) -> None:
    """Judge the claims, write `study.json` and the page, and say which runs are missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study_claims", description=main.__doc__)
    parser.add_argument("--runs", type=Path, default=HERE / "study_runs.jsonl")
    parser.add_argument("--out", type=Path, default=HERE / "study.json")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "study.md")
    parser.add_argument("--budget", type=int, help=f"seeds that a claim needs, in place of {BUDGET}")
    options = parser.parse_args(args)
    budget = {scale: options.budget or seeds for scale, seeds in BUDGET.items()}
    runs = read_runs(options.runs)
    seeds = [(claim, common_seeds(runs, claim)) for claim in CLAIMS]
    tried = [judged(runs, claim, found) for claim, found in seeds if len(found) >= budget[claim.scale]]
    claims = [entry for entry in tried if entry]
    study = {"claims": claims, "arms": arm_entries(runs, MEASURES), "bfcl": bfcl_entries(runs)}
    write_text(options.out, json.dumps(study, indent=1) + "\n")
    text = page(study)
    write_text(options.page, text)
    print(text)
    for line in missing(runs, CLAIMS, budget):
        print("missing:", line)


if __name__ == "__main__":
    main()

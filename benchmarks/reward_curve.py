"""The mean reward of EGPO's rollouts over the steps, for several seeds, with and without the entropy bonus.

Command: python -m benchmarks.reward_curve --init_from runs/demo/srml-fit-0
"""

import argparse
import statistics
from pathlib import Path

from benchmarks.record import record
from lightning_modules.cli import FunReasonCLI
from lightning_modules.demo import mean_rewards

NAMES = {
    "grpo": "EGPO",
    "variants/grpo_plain": "GRPO",
}  # of the advantage, by configuration: grpo.yaml, overlaid or not
PARTS = 5  # the run is cut into so many parts of equal length


def curve(config: str, init_from: str, seed: int) -> list[float]:
    """Train once; the mean reward over each fifth of the steps."""
    options = {
        "model.init_from": init_from,
        "seed_everything": seed,  # from which the order of the prompts and the sampler take theirs
        "trainer.default_root_dir": "runs/reward_curve",
        "trainer.limit_val_batches": 0,
        "trainer.enable_progress_bar": "false",
    }
    files = [f"--config=configs/{name}.yaml" for name in dict.fromkeys(("grpo", config))]
    cli = FunReasonCLI(["fit", *files, *(f"--{key}={value}" for key, value in options.items())])
    steps = mean_rewards(Path(cli.trainer.log_dir))
    part = len(steps) // PARTS
    return [statistics.mean(steps[i * part : (i + 1) * part]) for i in range(PARTS)]


def main() -> None:
    """Run every seed of both configurations and record the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init_from", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--configs", nargs="+", choices=NAMES, default=list(NAMES))
    options = parser.parse_args()
    rows = []
    for config in options.configs:
        name = NAMES[config]
        curves = [curve(config, options.init_from, seed) for seed in options.seeds]
        for seed, values in zip(options.seeds, curves, strict=True):
            rows.append([name, str(seed), *(f"{value:.3f}" for value in values), f"{values[-1] - values[0]:+.3f}"])
        middle = [statistics.median(column) for column in zip(*curves, strict=True)]
        rows.append([name, "median", *(f"{value:.3f}" for value in middle), f"{middle[-1] - middle[0]:+.3f}"])
    fifths = [f"fifth {i + 1}" for i in range(PARTS)]
    files = [f"`configs/{config}.yaml`" for config in options.configs]
    note = (
        f"Mean reward of the rollouts over each fifth of the steps of {' and '.join(files)}, from the demo's SRML "
        "model; the seed is that of the order of the prompts and of the sampler."
    )
    if left := [name for config, name in NAMES.items() if config not in options.configs]:
        note += f" {' and '.join(left)} was not run."
    record("Reward curve", ["advantage", "seed", *fifths, "rise"], rows, note)


if __name__ == "__main__":
    main()

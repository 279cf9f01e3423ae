"""Rounds of self-refinement on the tiny model: how much is accepted, and what training on it does to the score.

Command: python -m benchmarks.self_refine --init_from runs/demo/srml-fit-0
"""

import argparse
import json
from pathlib import Path

from benchmarks.record import record
from datamodules.refinement import rounds


def main() -> None:
    """Run the loop, or go on with it, and record its table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.self_refine", description=__doc__)
    parser.add_argument("--init_from", required=True, help="a model that writes calls: a run folder of SRML")
    parser.add_argument("--output_dir", default="runs/self_refine")
    options = parser.parse_args()
    arguments = ["--init_from", options.init_from, "--output_dir", options.output_dir]
    rounds.main(["--config", "configs/self_refine.yaml", *arguments])
    table = json.loads((Path(options.output_dir) / "rounds.json").read_text(encoding="utf-8"))
    record(
        "Self-refinement: two rounds on the tiny model",
        rounds.COLUMNS,
        [[str(row.get(column, "")) for column in rounds.COLUMNS] for row in table],
        "configs/self_refine.yaml: 400 queries of the corpus, one sample each at temperature 0.7, the judge made of "
        "rules; `score` is the exact match on 120 held-out queries, greedy; round 0 is the model that the loop starts "
        "from. A sample counts as well formed with a think block, and with a call if and only if its query needs one.",
    )


if __name__ == "__main__":
    main()

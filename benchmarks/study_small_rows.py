"""Rows of the small scale of the study: drawn by a seed from the shipped corpus' generator, each kind for some arms.

Half of them are about functions with made-up names, so that a model learns to read the list of tools and not only to
remember it; those of reinforcement are all about the corpus' own, of which it can get some right from the start.
"""

import json
import random
from collections.abc import Iterator
from typing import Any

from datamodules.refinement.corruption import Corpus, corrupted_rows
from datamodules.toolbox.catalogue import FUNCTIONS, Function
from datamodules.toolbox.pretraining import invented_function
from datamodules.toolbox.rows import TRAINING, make_row, promise

ROWS = 400  # that supervised arms train on, unless their steps take more
INVENTED, MADE_UP_SHARE = 400, 0.5  # functions with made-up names, and the share of rows that are about them
PROMISED = 0.35  # share of the rows that only promise their calls, where rows have habits
SPOILED = 0.4  # share of the rows that have a defect, where rows are corrupted


def made_rows(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows: "mixed", of "known" functions alone, with "habits", with "long" chains of thought, "corrupted", or "clean".

    The clean ones are the corrupted ones as they were before.
    """
    if kind in ("corrupted", "clean"):
        return [dirty if kind == "corrupted" else clean for dirty, clean, _ in corrupted_rows(spoiled(seed))]
    rng = random.Random(f"study-{seed}")
    pools = [[f for f in FUNCTIONS if not f.unseen], [f for f, _ in zip(made_up(rng), range(INVENTED), strict=False)]]
    kinds = rng.choices(list(TRAINING), weights=list(TRAINING.values()), k=count)
    share = 0.0 if kind == "known" else MADE_UP_SHARE
    rows = [
        make_row(f"study-{seed}-{i}", category, pools[rng.random() < share], rng, held_out=False)
        for i, category in enumerate(kinds)
    ]
    if kind == "habits":
        return [promise(row) if rng.random() < PROMISED else row for row in rows]
    return [lengthened(row) for row in rows] if kind == "long" else rows


def made_up(rng: random.Random) -> Iterator[Function]:
    """Functions with made-up names, of which a request can be told from another by its arguments."""
    while True:
        function = invented_function(rng)
        if any(p.default is None and p.kind != "flag" for p in function.parameters):
            yield function


def lengthened(row: dict[str, Any]) -> dict[str, Any]:
    """The row with a chain of thought that first goes through every tool and each of its parameters."""
    lines = []
    for tool in json.loads(row["tools"]):
        lines.append(f"{tool['name']}: {tool['description']}")
        lines += [f"{name} is {of['type']}: {of['description']}" for name, of in tool["parameters"].items()]
    return row | {"cot": "\n".join([*lines, row["cot"]])}


def spoiled(seed: int) -> Corpus:
    """Rows of the corpus with planted defects."""
    return Corpus(ROWS, seed, SPOILED)

"""Completions that one process parses, and scores with the strict reward, per second.

Command: python -m benchmarks.rewards; `--quick` takes fewer and records nothing without `--record`.
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

from benchmarks.record import record
from datamodules.toolbox.rows import make_corpus
from rewards import FunctionCallReward, parse_completion, render_calls

ROUNDS = 5
GROUP = 8  # completions of each row, as in training
COLUMNS = ("completions", "characters, mean", "parsed per second", "scored per second", "mean score")

Asked = tuple[str, str, str]
"""Completion, tools and answers."""


def completions(rows: int) -> dict[str, list[Asked]]:
    """By kind, a group for each row of the corpus: the row's own answer, another row's, and one cut in half."""
    corpus = make_corpus("train", rows, 0)
    own = [f"<think>{row['cot']}</think>\n\n{render_calls(json.loads(row['answers']))}" for row in corpus]
    kinds = {"right": own, "of another row": own[1:] + own[:1], "cut": [text[: len(text) // 2] for text in own]}
    return {
        kind: [(text, r["tools"], r["answers"]) for text, r in zip(texts, corpus, strict=True) for _ in range(GROUP)]
        for kind, texts in kinds.items()
    }


def per_second(work: Callable[[Asked], object], asked: list[Asked]) -> float:
    """The median of several rounds, in seconds of this process."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for each in asked:
            work(each)
        seconds.append(time.process_time() - start)
    return len(asked) / median(seconds)


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rewards", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="250 rows instead of 2,000")
    parser.add_argument("--record", action="store_true", help="record a quick run, too")
    given = parser.parse_args()
    reward, rows = FunctionCallReward(), 250 if given.quick else 2000
    table = []
    for kind, asked in completions(rows).items():
        parsed = per_second(lambda each: parse_completion(each[0]), asked)
        scored = per_second(lambda each: reward(*each), asked)
        score = sum(reward(*each).score for each in asked) / len(asked)
        length = sum(len(text) for text, *_ in asked) / len(asked)
        table.append([kind, f"{length:.0f}", f"{parsed:,.0f}", f"{scored:,.0f}", f"{score:.3f}"])
    record(
        "Rewards: completions per second",
        COLUMNS,
        table,
        f"Groups of {GROUP} for {rows:,} rows of the shipped corpus, one process on one core; medians of {ROUNDS} "
        "rounds. Another row's answer is right now and then: where no tool fits.",
        keep=not given.quick or given.record,
    )


if __name__ == "__main__":
    main()

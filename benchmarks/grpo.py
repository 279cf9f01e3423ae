"""A GRPO step beside TRL, by phase: generate, score with the reference, update; 4 prompts x 8 completions x 100 tokens.

Command: python -m benchmarks.grpo; `--quick` takes about a minute a side and records nothing without `--record`.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.our_side import prompt_options
from benchmarks.record import record
from benchmarks.sft import CORPUS, qwen2_shape
from benchmarks.sides import THREADS, TRL, Result, by_turns, check_same, ratio, run_ours
from datamodules import XLAMPromptDataModule
from datamodules.encoding import encoded_prompts

CASES = {  # by name: what is trained, bf16
    "grpo": ("Qwen2 shape of 2 layers, hidden 256, vocabulary 151,936, float32", False),
    "grpo_gemma": ("{model}, bf16-mixed, all weights", True),
}
FULL = {"prompts": 4, "prompt_tokens": 620, "group_size": 8, "tokens": 100}
QUICK = {"prompts": 2, "prompt_tokens": 200, "group_size": 4, "tokens": 32}
WARM_UP = {"warm_prompt": 32, "warm_tokens": 4}  # tokens of a first step, which is not counted
PHASES = ("generate", "old", "reference", "update", "step")
COLUMNS = ("", *(f"{phase}, s" for phase in PHASES), "peak, GB")
ENTROPY_TOLERANCE = 0.25  # of its mean over different samples of the same distribution


def make_job(model: str, rows: str, sizes: dict[str, int], bf16: bool) -> dict[str, Any]:
    """What both sides do: the rows whose prompts are nearest to `prompt_tokens`, as places and as token ids."""
    job = {"kind": "grpo", "model": model, "rows": rows, "bf16": bf16, "egpo": False, **sizes, **WARM_UP}
    data = XLAMPromptDataModule(**prompt_options(job))
    data.setup("fit")
    nearest = sorted(data.train_indices.tolist(), key=lambda i: (abs(int(data.lengths[i]) - sizes["prompt_tokens"]), i))
    chosen = nearest[: sizes["prompts"]]
    learning = {"learning_rate": 1e-6, "kl_coef": 0.001, "lora": 0}
    return job | learning | {"chosen": chosen, "prompts": encoded_prompts(data.rows, chosen)}


def check_work(ours: Result, theirs: Result) -> str:
    """A sentence with what both sides have done.

    Raises:
        RuntimeError: They had different tokens, or sampled from different distributions.
    """
    if ours["tokens"] != theirs["tokens"]:
        raise RuntimeError(f"Ours learnt from {ours['tokens']} tokens and TRL from {theirs['tokens']}.")
    return check_same("mean entropy of the completions", ours["entropy"], theirs["entropy"], ENTROPY_TOLERANCE)


def summary(ours: list[Result], theirs: list[Result], egpo: list[Result]) -> dict[str, float | list[float]]:
    """The ratios of a case."""
    pairs = {"update": (theirs, ours), "step": (theirs, ours), "generate": (theirs, ours), "memory_gb": (ours, theirs)}
    found: dict[str, float | list[float]] = {}
    for name, (above, below) in pairs.items():
        value, *spread = ratio([r[name] for r in above], [r[name] for r in below])
        name = name.removesuffix("_gb")
        found |= {f"{name}_vs_trl": value, f"{name}_spread": spread}
    return found | {"egpo_step_vs_trl": ratio([r["step"] for r in theirs], [r["step"] for r in egpo]).value}


def line(name: str, results: list[Result]) -> list[str]:
    """A row of the table: medians over the repeats."""
    seconds = (median(result[phase] for result in results) for phase in PHASES)
    return [name, *(f"{s:.2f}" if s else "-" for s in seconds), f"{median(r['memory_gb'] for r in results):.2f}"]


def note(case: str, given: argparse.Namespace, job: dict[str, Any], repeats: int, same: str) -> str:
    """How a case was measured."""
    trained = CASES[case][0].format(model=Path(given.model or "").name)
    lengths = sorted(map(len, job["prompts"]))
    return (
        f"{trained}. Medians of each side's runs by turns ({repeats} each), of one step after one of few tokens. "
        f"{len(lengths)} prompts of {Path(given.rows).name} ({lengths[0]} to {lengths[-1]} tokens), the same ids on "
        f"both sides, {job['group_size']} completions each of exactly {job['tokens']} tokens at temperature 1: none "
        f"may end early. KL with a frozen reference ({job['kl_coef']}), one update per batch: both take the policy's "
        "own log-probabilities as the old ones, and the rows of GRPO are compared. EGPO, our default, needs entropies "
        f"from a pass of its own. {same[0].upper()}{same[1:]}; samples differ. {TRL} generates with transformers, and "
        f"learns from {job['group_size']} rollouts at a time, ours from 8,192 tokens, the default of each. {THREADS} "
        "threads. The update includes the optimizer's step; what remains of a step is reward and bookkeeping. Memory "
        "is the largest resident set of the whole process."
    )


def options() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grpo", description=__doc__)
    parser.add_argument("--model", help="folder of a model, such as Gemma 3 270M, for the case that trains one")
    parser.add_argument("--rows", default=CORPUS, help="rows of any form that is read (the shipped corpus)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, help="of each side, by turns (3; 1 with --quick)")
    parser.add_argument(
        "--quick", action="store_true", help="one repeat of 2 prompts of 200 tokens x 4 completions x 32"
    )
    parser.add_argument("--record", action="store_true", help="record a quick run, too")
    return parser.parse_args()


def main() -> None:
    """Measure the cases, and record them."""
    given = options()
    repeats = given.repeats or (1 if given.quick else 3)
    for case in given.cases:
        if case != "grpo" and not given.model:
            print(f"{case}: skipped, for it trains a model: give its folder, --model FOLDER")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            model = qwen2_shape(Path(scratch)) if case == "grpo" else given.model
            job = make_job(model, given.rows, QUICK if given.quick else FULL, CASES[case][1])
            ours, theirs = by_turns(job, repeats)
            egpo = [run_ours(job | {"egpo": True}) for _ in range(repeats)]
        same = check_work(ours[0], theirs[0])
        record(
            f"GRPO beside TRL: {case}",
            COLUMNS,
            [line("ours, GRPO", ours), line("TRL, GRPO", theirs), line("ours, EGPO", egpo)],
            note(case, given, job, repeats, same),
            key=case,
            ratios=summary(ours, theirs, egpo),
            keep=not given.quick or given.record,
        )


if __name__ == "__main__":
    main()

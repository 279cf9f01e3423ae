"""Supervised fine-tuning beside TRL: tokens per second and peak memory, of a step on two packed rows of 2,048 tokens.

Command: python -m benchmarks.sft; `--quick` takes about a minute a side and records nothing without `--record`.
"""

import argparse
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.gpu_models import save
from benchmarks.our_side import data_options
from benchmarks.record import record
from benchmarks.sides import THREADS, TRL, Result, by_turns, check_same, ratio, run_ours
from datamodules import XLAMSFTDataModule
from datamodules.packing import IGNORED, PROMPT, Encoded, micro_batches

CORPUS = "toolbox:train:4000"
ROWS_A_STEP = 2
DRAWS = 200
CASES = {  # by name: what is trained, rank of adapters, bf16
    "sft": ("Qwen2 shape of 2 layers, hidden 256, vocabulary 151,936, float32", 0, False),
    "sft_gemma": ("{model}, bf16-mixed, all weights", 0, True),
    "sft_gemma_lora": ("{model}, bf16-mixed, LoRA of rank 16", 16, True),
}
TOLERANCE = {False: 1e-4, True: 5e-3}  # of the first loss, by bf16, whose numbers have 8 bits
COLUMNS = ("", "tokens per second", "seconds a step", "peak, GB", "loss, first step", "last step")


def qwen2_shape(folder: Path) -> str:
    """A folder with random weights of a small Qwen2 with a large vocabulary, and a tokenizer of few ids."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    torch.manual_seed(0)
    save(Qwen2ForCausalLM(Qwen2Config(vocab_size=151_936, **sizes, **heads)), folder)
    return str(folder)


def choose_steps(lengths: Sequence[int], steps: int, max_length: int) -> list[list[int]]:
    """Rows for each step that fill the packed rows of one micro-batch, as many rows in each step.

    Of `DRAWS` drawn at random those that leave the least room, so that a mix of lengths stays as it is.

    Raises:
        ValueError: No two rows fit.
    """
    capacity, draw = ROWS_A_STEP * max_length, random.Random(0)
    size = min(len(lengths), capacity * len(lengths) // sum(lengths))

    def filled(rows: list[int]) -> int:
        packed = [row for micro in micro_batches([lengths[i] for i in rows], max_length, capacity) for row in micro]
        return sum(lengths[i] for i in rows) if len(packed) == ROWS_A_STEP else 0

    while size >= ROWS_A_STEP:
        drawn = [[draw.sample(range(len(lengths)), size) for _ in range(DRAWS)] for _ in range(steps)]
        best = [max(rows, key=filled) for rows in drawn]
        if all(map(filled, best)):
            return best
        size -= 1
    raise ValueError(f"No rows fill {ROWS_A_STEP} packed rows of {max_length} tokens: give others.")


def make_job(model: str, rows: str, steps: int, max_length: int, **settings: Any) -> dict[str, Any]:
    """What both sides do: the model, the places of the rows of each step for ours, and their packed rows for TRL."""
    job = {"kind": "sft", "model": model, "rows": rows, "max_length": max_length} | settings
    data = XLAMSFTDataModule(**data_options(job))
    data.setup("fit")
    lengths = data.lengths[data.train_indices].tolist()
    chosen = [data.train_indices[step].tolist() for step in choose_steps(lengths, steps, max_length)]
    steps_of_documents = [data.rows.documents(rows) for rows in chosen]
    packed = [packed_rows(documents, max_length) for documents in steps_of_documents]
    tokens = [sum(len(d.input_ids) for d in documents) for documents in steps_of_documents]
    targets = sum(label != IGNORED for step in packed for row in step for label in row["labels"]) / steps
    return job | {"steps": chosen, "packed": packed, "tokens": tokens, "targets": targets}


def packed_rows(documents: Sequence[Encoded], max_length: int) -> list[dict[str, list[int]]]:
    """Documents in the rows that our packing gives them, in the columns that TRL's own packing makes."""
    micros = micro_batches([len(d.input_ids) for d in documents], max_length, ROWS_A_STEP * max_length)
    rows = [[documents[i] for i in row] for micro in micros for row in micro]
    return [
        {
            "input_ids": [i for document in row for i in document.input_ids],
            "labels": [
                IGNORED if segment == PROMPT else i
                for document in row
                for i, segment in zip(document.input_ids, document.segments, strict=True)
            ],
            "seq_lengths": [len(document.input_ids) for document in row],
        }
        for row in rows
    ]


def speeds(results: list[Result], job: dict[str, Any]) -> list[float]:
    """Tokens per second of each repeat, without the first step."""
    return [sum(job["tokens"][1:]) / sum(result["seconds"]) for result in results]


def summary(job: dict[str, Any], ours: list[Result], theirs: list[Result]) -> dict[str, float | list[float]]:
    """The ratios of a case."""
    speed = ratio(speeds(ours, job), speeds(theirs, job))
    memory = ratio([r["memory_gb"] for r in ours], [r["memory_gb"] for r in theirs])
    return {
        "speed_vs_trl": speed.value,
        "speed_spread": [speed.least, speed.greatest],
        "memory_vs_trl": memory.value,
        "memory_spread": [memory.least, memory.greatest],
    }


def weighted_over_plain(job: dict[str, Any], repeats: int) -> list[float]:
    """Time of a step with SRML's weights over that of plain fine-tuning, with the least and the greatest of repeats."""
    seconds: dict[str, list[float]] = {"fixed": [], "sft": []}
    longer = job | {"steps": 3 * job["steps"]}
    for _ in range(repeats):
        for balance, taken in seconds.items():
            taken.append(sum(run_ours(longer | {"balance": balance})["seconds"]))
    return list(ratio(seconds["fixed"], seconds["sft"]))


def table(job: dict[str, Any], sides: dict[str, list[Result]]) -> list[list[str]]:
    """A row for each side: medians over the repeats."""
    steps = len(job["steps"]) - 1
    return [
        [
            name,
            f"{median(speeds(results, job)):,.0f}",
            f"{median(sum(r['seconds']) for r in results) / steps:.2f}",
            f"{median(r['memory_gb'] for r in results):.2f}",
            *(f"{results[0]['losses'][step]:.5f}" for step in (0, -1)),
        ]
        for name, results in sides.items()
    ]


def measure(case: str, job: dict[str, Any], repeats: int) -> tuple[list[list[str]], dict[str, Any], str]:
    """The table of a case, its ratios, and what both sides computed."""
    ours, theirs = by_turns(job, repeats)
    check_same("number of trained weights", ours[0]["trained"], theirs[0]["trained"], 0.0)
    first = (results[0]["losses"][0] for results in (ours, theirs))
    same = check_same("loss of the first step", *first, TOLERANCE[job["bf16"]])
    ratios = summary(job, ours, theirs)
    if case == "sft":
        value, *spread = weighted_over_plain(job, repeats)
        ratios |= {"weighted_over_plain": value, "weighted_spread": spread}
    return table(job, {"ours": ours, "TRL": theirs}), ratios, same


def options() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sft", description=__doc__)
    parser.add_argument("--model", help="folder of a model, such as Gemma 3 270M, for the cases that train one")
    parser.add_argument("--rows", default=CORPUS, help="rows of any form that is read (the shipped corpus)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--rows_together", type=int, choices=(1, 2), default=2, help="packed rows of a forward pass, on both sides (2)"
    )
    parser.add_argument("--repeats", type=int, help="of each side, by turns (3; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="one repeat of two steps, on rows of 1,024 tokens")
    parser.add_argument("--record", action="store_true", help="record a quick run, too")
    return parser.parse_args()


def note(case: str, given: argparse.Namespace, job: dict[str, Any], repeats: int, same: str) -> str:
    """How a case was measured."""
    trained = CASES[case][0].format(model=Path(given.model or "").name)
    tokens = sum(job["tokens"]) / len(job["tokens"])
    return (
        f"{trained}. Medians of each side's runs by turns ({repeats} each), {len(job['steps']) - 1} steps each after "
        f"one not counted. A step is {len(job['steps'][0])} rows of {Path(given.rows).name} in {ROWS_A_STEP} packed "
        f"rows of {job['max_length']:,} tokens, {given.rows_together} in a forward pass; {tokens:,.0f} tokens are no "
        f"padding, {job['targets']:,.0f} of them targets, the same ones on both sides. {same[0].upper()}{same[1:]}. "
        f"{THREADS} threads, no gradient checkpointing, AdamW at a constant rate; {TRL} with its default loss, which "
        "is computed in chunks, and SDPA under transformers' mask of packed rows. Memory is the largest resident set "
        "of the whole process."
    )


def main() -> None:
    """Measure the cases, and record them."""
    given = options()
    max_length, steps, repeats = (1024, 2, 1) if given.quick else (2048, 3, 3)
    repeats = given.repeats or repeats
    for case in given.cases:
        _, rank, bf16 = CASES[case]
        if case != "sft" and not given.model:
            print(f"{case}: skipped, for it trains a model: give its folder, --model FOLDER")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            model = qwen2_shape(Path(scratch)) if case == "sft" else given.model
            learning = {"lora": rank, "bf16": bf16, "learning_rate": 1e-4, "balance": "sft"}
            job = make_job(model, given.rows, steps, max_length, rows_together=given.rows_together, **learning)
            rows, ratios, same = measure(case, job, repeats)
        record(
            f"SFT beside TRL: {case}",
            COLUMNS,
            rows,
            note(case, given, job, repeats, same),
            key=case,
            ratios=ratios,
            keep=not given.quick or given.record,
        )


if __name__ == "__main__":
    main()

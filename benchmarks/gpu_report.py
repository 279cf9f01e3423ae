"""Tables of what `gpu_session.sh` measured: `python -m benchmarks.gpu_report ROWS.jsonl [ROWS.jsonl ...]`."""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.record import record

Row = dict[str, Any]
TIMES = "Medians of repeats within one session; nothing else ran on the card."


def main() -> None:
    """Record each step's table."""
    files = [Path(word) for word in sys.argv[1:]]
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if make := TABLES.get(row["step"]):
            title, columns, cells, note = make({k: v for k, v in row["values"].items() if isinstance(v, dict)})
            machine = f"{row['device']}, torch {row['torch']}"
            origin = {
                "command": f"benchmarks/gpu_session.sh {row['step']}",
                "commit": row["commit"],
                "machine": machine,
            }
            record(title, columns, cells, note, origin=origin)


def attention(values: Row) -> tuple[str, list[str], list[list[str]], str]:
    """Times of the ways to attend inside documents."""
    cells = [
        [*name.split(": "), f"{found['forward, ms']:.2f}", f"{found['both, ms']:.2f}"]
        for name, found in values.items()
        if "both, ms" in found
    ]
    note = (
        "4,096 tokens, 28 heads of 128 that share 4 keys, bfloat16; one causal document of all is the floor. " + TIMES
    )
    return "GPU: attention of a packed row", ["row", "way", "forward, ms", "and backward, ms"], cells, note


def head(values: Row) -> tuple[str, list[str], list[list[str]], str]:
    """Times, memory and errors of the head by way and tile."""
    cells = []
    for name, found in values.items():
        shape, way = name.split("targets: ")
        errors = " and ".join(f"{error:.1e}" for error in found.get("errors of gradients", []))
        times = f"{found['both, ms']:.1f}", f"{found['frozen head, ms']:.1f}"
        cells.append([f"{shape}targets", way, *times, f"{found['peak, GB']:.2f}", errors])
    note = (
        "bfloat16; ids x hidden. Tiles are ours, of tokens x ids; frozen: no gradient for the head, as with LoRA. "
        "Errors of the gradients of hidden states and head, relative to float64. The first line holds warming up. "
        + TIMES
    )
    columns = ["head", "way", "both passes, ms", "frozen, ms", "peak, GB", "errors of gradients"]
    return "GPU: the head beside full logits, Liger and cut-cross-entropy", columns, cells, note


def correct(values: Row) -> tuple[str, list[str], list[list[str]], str]:
    """Errors of log-probabilities and gradients by path."""
    cells = [
        [name, path, f"{found['mean error, nats']:.1e}", f"{found['gradient, relative']:.1e}"]
        for name, paths in values.items()
        for path, found in paths.items()
        if isinstance(found, dict) and "gradient, relative" in found
    ]
    note = "Small random models; each path against documents alone in float64."
    return "GPU: scores and gradients by path", ["model", "path", "mean error, nats", "gradient"], cells, note


def nccl(values: Row) -> tuple[str, list[str], list[list[str]], str]:
    """Losses of the first steps under each strategy."""
    cells = [
        [name, str(found.get("devices", 1)), " ".join(f"{x:.4f}" for x in found["train/loss"])]
        for name, found in values.items()
        if "train/loss" in found
    ]
    note = "The tiny base model through `funreason fit` with overlays of `configs/trainer/`, NCCL, all at once."
    return "GPU: strategies", ["overlay", "cards", "losses of four steps"], cells, note


TABLES = {"attention": attention, "head": head, "correct": correct, "nccl": nccl}


if __name__ == "__main__":
    main()

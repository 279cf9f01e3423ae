"""Seconds that `last_checkpoint.fsync` costs: saving a checkpoint with and without waiting until it is on the disk.

Command: python -m benchmarks.fsync --folder RUNS
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.record import record
from lightning_modules.checkpointing.formats import save_file


def seconds(path: Path, checkpoint: dict[str, torch.Tensor], fsync: bool) -> float:
    """Seconds of one save, which replaces the one before."""
    start = time.perf_counter()
    save_file(checkpoint, path, fsync)
    return time.perf_counter() - start


def main() -> None:
    """Save with and without in turn, so that other load on the machine affects both, and record the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fsync", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where checkpoints lie: the disk to measure")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 30, 300], help="sizes of a checkpoint")
    parser.add_argument("--rounds", type=int, default=15, help="saves of each kind and size")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for size in options.megabytes:
            checkpoint, path = {"weight": torch.randn(size * 250_000)}, Path(folder) / f"{size}.ckpt"
            save_file(checkpoint, path)
            pairs = [[seconds(path, checkpoint, fsync) for fsync in (True, False)] for _ in range(options.rounds)]
            on, off = (statistics.median(column) for column in zip(*pairs, strict=True))
            rows.append([f"{size} MB", f"{1000 * on:.1f}", f"{1000 * off:.1f}", f"{on / off:.2f}"])
    note = f"Medians of {options.rounds} saves of each kind, in turn. They are of this disk; the ratio is what to read."
    record("Checkpoints: what fsync costs", ["checkpoint", "fsync, ms", "without, ms", "ratio"], rows, note)


if __name__ == "__main__":
    main()

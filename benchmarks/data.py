"""Rows from a JSONL file to packed batches, by the number of rows: reading, encoding, cache, an epoch of batches.

Command: python -m benchmarks.data; `--quick` leaves out the largest and records nothing without `--record`.
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.record import record
from benchmarks.sides import in_process
from datamodules import XLAMSFTDataModule
from datamodules.toolbox.rows import make_corpus

DISTINCT = 6000
SIZES = (6_000, 60_000, 600_000)
BASE = "assets/tiny-base"
COLUMNS = ("rows", "file, MB", "read and encoded, s", "from the cache, s", "an epoch of batches, s", "us a row")
COLUMNS += ("peak, GB", "of it not of files, GB")


def write_rows(path: Path, rows: int) -> None:
    """The rows of the shipped corpus over and over, each time with other ids."""
    corpus = make_corpus("train", DISTINCT, 0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            file.write(json.dumps(corpus[i % DISTINCT] | {"id": f"row_{i}"}) + "\n")


@contextmanager
def anonymous_peak() -> Iterator[list[float]]:
    """The most GB that this process held that are no pages of files, looked at ten times a second; in a list."""
    found, ended = [0.0], threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            found[0] = max(found[0], int(status["RssAnon"].split()[0]) * 1024 / 1e9)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def load(path: str, cache: str, batches: bool) -> tuple[float, float, float]:
    """Seconds of reading (or of finding in the cache), seconds of all batches of an epoch, and the anonymous peak."""
    with anonymous_peak() as peak:
        start = time.perf_counter()
        data = XLAMSFTDataModule(BASE, path, val_fraction=0.0, cache_dir=cache, seed=0)
        data.prepare_data()
        data.setup("fit")
        middle = time.perf_counter()
        if batches:
            for _ in data.train_dataloader():
                pass
        end = time.perf_counter()
    return middle - start, end - middle, peak[0]


def main() -> None:
    """Measure each size and record them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"no more than {SIZES[1]:,} rows")
    parser.add_argument("--record", action="store_true", help="record a quick run, too")
    given = parser.parse_args()
    table = []
    for rows in SIZES[:2] if given.quick else SIZES:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "rows.jsonl"
            write_rows(path, rows)
            size = path.stat().st_size / 1e6
            (read, _, held), peak = in_process(load, str(path), scratch, False)
            (again, epoch, held_again), peak_again = in_process(load, str(path), scratch, True)
        seconds = [f"{s:.1f}" for s in (read, again, epoch)]
        per_row = f"{1e6 * (read + epoch) / rows:.0f}"
        peaks = [f"{max(peak, peak_again):.2f}", f"{max(held, held_again):.2f}"]
        table.append([f"{rows:,}", f"{size:,.0f}", *seconds, per_row, *peaks])
        print(" | ".join(table[-1]), flush=True)
    record(
        "Data: from rows to batches",
        COLUMNS,
        table,
        f"{DISTINCT:,} rows of the shipped corpus over and over with other ids, in one JSONL file; the tokenizer of "
        "the tiny base model; `XLAMSFTDataModule` with its defaults, once in a process that reads and encodes and once "
        "in one that finds the rows in the cache and makes the batches of an epoch. Microseconds are those of reading "
        "and of the batches. The peak is the resident set, in which the pages of the mapped cache are counted that the "
        "kernel may drop.",
        keep=not given.quick or given.record,
    )


if __name__ == "__main__":
    main()

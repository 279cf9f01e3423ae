"""The papers' claims, run: what is missing of the study's runs, several at a time, one line in a file for each.

Command: python -m benchmarks.study --model FOLDER --rows FILE [--r1 FILE] [--jobs N]; `--help` lists the other options.

Arms, rows and metrics are those of `study_real` and `study_small`. A run that has its line is not run again, and a kill
loses only the runs in progress. `--prepare` writes the rows into `--data` and stops: a machine that has that folder and
the model needs nothing else.
"""

import argparse
import fcntl
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import commit

RUNS = Path(__file__).resolve().parent / "study_runs.jsonl"
IMPORTED = [
    "lightning_modules.cli",
    "lightning_modules.bfcl.module",
]  # once, by the server that processes are forked from


Key = tuple[str, str, int]
"""Scale, arm and seed of a run."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run of the study.

    Attributes:
        scale: "real" or "small".
        arm: What sets it apart; with scale and seed the key of its line.
        seed: Of everything random in it.
        settings: What its line says about it, as JSON can hold it.
        after: The arm whose run of the same seed it starts from.
    """

    scale: str
    arm: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    after: str | None = None

    @property
    def key(self) -> Key:
        """Scale, arm and seed."""
        return self.scale, self.arm, self.seed


@dataclass(frozen=True)
class Place:
    """Where runs find what they need, and leave what others start from.

    Attributes:
        model: The base model's folder.
        data: The folder of prepared rows.
        work: The folder of logs and weights.
        quick: Whether this is the smallest whole study.
    """

    model: str
    data: Path
    work: Path
    quick: bool = False

    def folder(self, arm: str, seed: int) -> Path:
        """The folder of a run."""
        return self.work / f"{arm}-{seed}"


def main(args: Sequence[str] | None = None) -> int:
    """Run what is missing; 1 if a run failed or could not be started for one that did."""
    options = parse(args)
    scale = import_module(f"benchmarks.study_{options.scale}")
    place = Place(options.model, options.data, options.work, options.quick)
    if options.scale == "real" and not options.data.is_dir():
        prepare = import_module("benchmarks.study_rows").prepare
        prepare(options.model, options.rows, options.r1, options.data, options.quick)
    if options.prepare:
        return 0
    if options.scale == "real" and not prepared(options.data):
        sys.exit(f"--data: {options.data} holds no rows that this version prepared; give another folder, and --rows")
    options.work.mkdir(parents=True, exist_ok=True)
    options.runs.parent.mkdir(parents=True, exist_ok=True)
    planned = scale.runs(options.quick, options.seeds)
    names = list(dict.fromkeys(run.arm for run in planned))
    if unknown := [arm for arm in options.arms or () if arm not in names]:
        sys.exit(f"--arms: there is no arm {', '.join(unknown)}; there are {', '.join(names)}")
    if options.arms:
        planned = [run for run in planned if run.arm in options.arms]
    if options.scale == "real":
        lost = {
            run.arm for run in planned if "file" in run.settings and not (place.data / run.settings["file"]).is_file()
        }
        planned = [run for run in planned if run.arm not in lost]
        print("".join(f"{arm} is left out: {place.data} has no rows for it\n" for arm in sorted(lost)), end="")
    words = shlex.join(sys.argv[1:] if args is None else args)
    words = re.sub(r"(?<![^\s='])/\S*/", "", words)  # no folders of a machine
    note = {"commit": commit(), "command": f"python -m benchmarks.study {words}"}
    return run_missing(planned, place, options.runs, note, options.jobs, options.minutes)


def prepared(folder: Path) -> bool:
    """Whether a folder has what `study_rows.prepare` writes."""
    facts = folder / "data.json"
    return facts.is_file() and "system_prompt" in json.loads(facts.read_text(encoding="utf-8"))


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=model_folder, default="assets/tiny-base", help="folder of the base model")
    parser.add_argument("--rows", type=Path, help="rows without a chain of thought, to prepare --data from")
    parser.add_argument(
        "--r1", type=Path, help="rows with one by a reasoning model, likewise; without them no such arm"
    )
    parser.add_argument("--scale", choices=("real", "small"), default="real")
    parser.add_argument("--quick", action="store_true", help="the smallest whole study: two steps of every arm")
    parser.add_argument("--arms", type=lambda text: text.split(","), help="only these, by names with commas between")
    parser.add_argument("--seeds", type=lambda text: [*map(int, text.split(","))], default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no run that would end after these")
    parser.add_argument("--runs", type=Path, help="file of finished runs, to which lines are added")
    parser.add_argument("--data", type=Path, help="folder of prepared rows")
    parser.add_argument("--work", type=Path, help="folder of logs and weights")
    parser.add_argument("--prepare", action="store_true", help="prepare the rows and stop")
    options = parser.parse_args(args)
    root = Path("runs") / f"study-{options.scale}{'-quick' * options.quick}"
    options.runs = options.runs or (root / RUNS.name if options.quick else RUNS)
    options.data, options.work = options.data or root / "data", options.work or root / "work"
    if options.scale == "real" and not options.data.is_dir() and options.rows is None:
        parser.error(f"{options.data} holds no prepared rows: give --rows, or the folder of prepared ones by --data")
    return options


def model_folder(text: str) -> str:
    """The value of an option that names a model's folder.

    Raises:
        argparse.ArgumentTypeError: There is none.
    """
    if not (Path(text) / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{text} is no folder of a model: it has no config.json")
    return text


def run_missing(planned: list[Run], place: Place, file: Path, note: dict[str, str], jobs: int, minutes: float) -> int:
    """Run what has no line yet, and again what others start from where its weights are gone.

    Args:
        planned: The runs, in the order in which they are to be started.
        place: See `Place`.
        file: Of finished runs.
        note: Of every line: commit and command.
        jobs: Runs at a time.
        minutes: Start no run that would end later, by what like ones have taken.

    Returns:
        1 if a run failed, or waits for one that did.
    """
    done = without_lost(finished(file), planned, place)
    waiting = [run for run in planned if run.key not in done]
    context = get_context("spawn" if torch.cuda.is_available() else "forkserver")  # no fork may come after CUDA's start
    context.set_forkserver_preload(IMPORTED)
    begin, total, failed = time.monotonic(), len(waiting), []
    running: dict[BaseProcess, tuple[Run, float]] = {}
    took: dict[Run, float] = {}
    while True:
        for run in [run for run in waiting if run.after is None or (run.scale, run.after, run.seed) in done]:
            now = time.monotonic()
            if len(running) < jobs and now - begin + estimate(run, took) <= 60 * minutes:
                waiting.remove(run)
                process = context.Process(target=work, args=(run, place, file, note, jobs))
                process.start()
                running[process] = run, now
        if not running:
            break
        connection.wait([process.sentinel for process in running])
        for process in [process for process in running if process.exitcode is not None]:
            run, started = running.pop(process)
            took[run] = time.monotonic() - started
            if process.exitcode == 0:
                done.add(run.key)
            else:
                failed.append(run)
            say(run, process.exitcode, took, [*waiting, *(other for other, _ in running.values())], total, jobs, place)
    left = f"; {len(waiting)} not started: " + ", ".join(f"{r.arm}-{r.seed}" for r in waiting) if waiting else ""
    print(f"{total - len(waiting) - len(failed)} runs done, {len(failed)} failed{left}. Lines: {file}", flush=True)
    return int(bool(failed) or (bool(waiting) and minutes == float("inf")))


def without_lost(done: set[Key], planned: Sequence[Run], place: Place) -> set[Key]:
    """What need not be run: not what a run is to start from whose folder is gone, nor what that has started from."""
    while True:
        starts = {(run.scale, run.after, run.seed) for run in planned if run.after and run.key not in done}
        lost = {key for key in starts & done if not place.folder(*key[1:]).is_dir()}
        if not lost:
            return done
        done = done - lost


def say(run: Run, code: int, took: dict[Run, float], left: Sequence[Run], total: int, jobs: int, place: Place) -> None:
    """Print a line on a run that has ended, with the end of its log if it failed, and the time that the others take."""
    seconds = sum(estimate(other, took) for other in left) / jobs
    ended = "ended" if code == 0 else f"FAILED with exit code {code}"
    print(
        f"{total - len(left)} of {total}: {run.arm}, seed {run.seed}, {ended} after {took[run]:.0f} s; about "
        f"{seconds / 60:.1f} min left",
        flush=True,
    )
    if code:
        print(log_of(run, place).read_text(encoding="utf-8", errors="replace")[-3000:], flush=True)


def estimate(run: Run, took: dict[Run, float]) -> float:
    """Seconds that a run will take: the most that one of its arm took, or else of its kind, or else of any."""
    for alike in (lambda other: other.arm == run.arm, lambda other: (other.after is None) == (run.after is None)):
        if seconds := [value for other, value in took.items() if alike(other)]:
            return max(seconds)
    return max(took.values(), default=0.0)


def work(run: Run, place: Place, file: Path, note: dict[str, str], jobs: int) -> None:
    """Do one run in this process, whose output goes to a log beside the run's folder, and add its line.

    One that has its line is made again because others start from it: it is only trained.
    """
    with log_of(run, place).open("w", encoding="utf-8") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    scale, start = import_module(f"benchmarks.study_{run.scale}"), time.monotonic()
    if run.key in finished(file):
        scale.train(run, place)
        return
    metrics, settings = scale.execute(run, place)
    line = {"scale": run.scale, "arm": run.arm, "seed": run.seed, "settings": run.settings | settings}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    line |= {"metrics": metrics, "rows": len(metrics.get("bfcl_rows", [])), "seconds": time.monotonic() - start}
    append(file, line | {"device": device} | note)


def append(file: Path, line: dict[str, Any]) -> None:
    """Add the line of a run, unless there is one of its key, and have it on the disk."""
    with file.open("a+", encoding="utf-8") as opened:
        fcntl.flock(opened.fileno(), fcntl.LOCK_EX)
        if (line["scale"], line["arm"], line["seed"]) in finished(file):  # two studies may add to one file
            return
        opened.seek(0)
        cut = opened.read()[-1:] not in ("", "\n")  # by a kill
        opened.write("\n" * cut + json.dumps(line) + "\n")
        opened.flush()
        os.fsync(opened.fileno())


def finished(file: Path) -> set[Key]:
    """Keys of the runs that have a line; one that a kill has cut off is none."""
    keys = set()
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        keys.add((line["scale"], line["arm"], line["seed"]))
    return keys


def log_of(run: Run, place: Place) -> Path:
    """The file of what a run prints."""
    return place.work / f"{run.arm}-{run.seed}.log"


if __name__ == "__main__":
    sys.exit(main())

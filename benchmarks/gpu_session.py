"""The steps of `benchmarks/gpu_session.sh`, each a process of its own with a time limit, each a row of JSON.

A step is a function of the module that `STEPS` names; it yields names and what to measure under them. A measurement
that fails is its error, and the next one is made; a step that crashes or runs out of time keeps what it had measured.
While a step runs, the process of the next one imports what it needs, and waits.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple

import psutil

STEPS = {  # where each is, and its seconds from when the one before has ended
    "versions": ("gpu_checks", 40),
    "correct": ("gpu_correct", 60),
    "attention": ("gpu_attention", 50),
    "head": ("gpu_head", 60),
    "sft": ("gpu_training", 75),
    "decode": ("gpu_decode", 40),
    "bf16_true": ("gpu_checks", 40),
    "nccl": ("gpu_checks", 75),
    "tests": ("gpu_checks", 130),
    "whole": ("gpu_training", 70),
    "vllm": ("gpu_vllm", 240),
    "compiled": ("gpu_training", 200),
}
LAST_LINES = 2000  # characters of them


class Child(NamedTuple):
    """A step's process, which waits for a line on its input, and what it says about what goes wrong."""

    step: str
    process: subprocess.Popen[str]
    errors: IO[str]


def start(step: str, small: bool) -> Child:
    """Start the process of a step."""
    return child(step, [sys.executable, "-m", "benchmarks.gpu_session", "--run", step, *(["--cpu"] if small else [])])


def child(step: str, command: list[str]) -> Child:
    """Start a process that waits for a line."""
    errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
    pipe = subprocess.PIPE
    return Child(step, subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True), errors)


def finish(running: Child, limit: float) -> tuple[dict[str, Any], str]:
    """Let a step run and wait for its end, or end it; its row, and what it wrote to its error stream."""
    begun, late = time.perf_counter(), False
    try:
        said, _ = running.process.communicate("go\n", timeout=limit)
    except subprocess.TimeoutExpired:
        late = True
        end(running.process)
        said, _ = running.process.communicate()
    row: dict[str, Any] = {"step": running.step, "seconds": round(time.perf_counter() - begun, 1)}
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{") and line.endswith("}")]
    row |= {"values": {name: value for line in lines for name, value in line.items()}}
    running.errors.seek(0)
    written = running.errors.read()
    if late:
        row["error"] = f"ended after {limit:g} s"
    elif running.process.returncode:
        row["error"] = f"exit code {running.process.returncode}: {written[-LAST_LINES:]}"
    return row, written


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process and what it has started, which would go on beside the next step and hold the GPU's memory."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for each in started:
        with suppress(psutil.NoSuchProcess):
            each.kill()


def measure(step: str, small: bool) -> None:
    """Run a step in this process: print what it measures, each on a line, as soon as it is known."""
    function = getattr(import_module(f"benchmarks.{STEPS[step][0]}"), step)
    sys.stdin.readline()
    for name, take in function(small):
        begun = time.perf_counter()
        try:
            value = take()
        except Exception as error:  # whatever it is, the measurements behind it are still wanted
            traceback.print_exc()
            value = {"error": f"{type(error).__name__}: {error}"[-LAST_LINES:]}
        if isinstance(value, dict):
            value.setdefault("took, s", round(time.perf_counter() - begun, 2))  # a test knows its own
        print(json.dumps({name: value}), flush=True)


def main() -> None:
    """Run the steps one after the other."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu_session.sh", description=__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)}; all of them unless named")
    parser.add_argument("--cpu", action="store_true", help="try the steps with tiny shapes on the CPU")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    steps = given.steps or list(STEPS)
    if unknown := [step for step in steps if step not in STEPS]:
        parser.error(f"there is no step {', '.join(unknown)}; there are {', '.join(STEPS)}")
    if given.run:
        measure(steps[0], given.cpu)
        return
    out = Path(os.environ.get("OUT", "runs/gpu_session"))
    out.mkdir(parents=True, exist_ok=True)
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    common = {"commit": os.environ.get("COMMIT") or git.stdout.strip() or None}
    waiting = start(steps[0], given.cpu)
    for i, step in enumerate(steps):
        running = waiting
        if i + 1 < len(steps):
            waiting = start(steps[i + 1], given.cpu)
        row, written = finish(running, STEPS[step][1] * (4 if given.cpu else 1))
        row = {**row, **common, **row["values"].pop("machine", {})}
        with (out / "rows.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        with (out / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"===== {step}\n{written}\n")
        failed = [name for name, value in row["values"].items() if isinstance(value, dict) and "error" in value]
        outcome = row.get("error") or (f"failed: {', '.join(failed)}" if failed else "done")
        print(f"{step}: {row['seconds']} s, {outcome}", flush=True)


if __name__ == "__main__":
    main()

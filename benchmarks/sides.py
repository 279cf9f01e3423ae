"""The two sides of a benchmark, each a process of its own, by turns: ours, and TRL in an environment that is made here.

Peak memory is the largest resident set of a side's process, as `wait4` reports it, which is what `/usr/bin/time` shows.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TRL_VENV = ROOT / ".venv-trl"
TRL = "trl==1.16.0"
THREADS = len(os.sched_getaffinity(0))

Result = dict[str, Any]
"""What a side wrote, with the `memory_gb` that it took."""


class Ratio(NamedTuple):
    """Ratio of the medians of two lists, and the least and the greatest of the ratios of their pairs."""

    value: float
    least: float
    greatest: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.least:.2f} to {self.greatest:.2f})"


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Compare repeats that were taken by turns."""
    pairs = [a / b for a, b in zip(above, below, strict=True)]
    return Ratio(median(above) / median(below), min(pairs), max(pairs))


def trl_python() -> str:
    """The interpreter of TRL's environment, which is made first where it is missing or has other pins.

    Raises:
        RuntimeError: It cannot be made.
    """
    pins, mark = f"{TRL}\n{(ROOT / 'constraints.txt').read_text(encoding='utf-8')}", TRL_VENV / "installed"
    python = str(TRL_VENV / "bin" / "python")
    if not mark.is_file() or mark.read_text(encoding="utf-8") != pins:
        print(f"making {TRL_VENV} with {TRL} ...", flush=True)
        shutil.rmtree(TRL_VENV, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(TRL_VENV)], check=True)
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        done = subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), TRL, "peft"], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{TRL} could not be installed in {TRL_VENV}:\n{done.stderr[-2000:]}")
        mark.write_text(pins, encoding="utf-8")
    return python


def run_ours(job: dict[str, Any]) -> Result:
    """Do a job with this project; see `our_side`."""
    return _run([sys.executable, "-m", "benchmarks.our_side"], job)


def run_trl(job: dict[str, Any]) -> Result:
    """Do a job with TRL; see `trl_side`."""
    return _run([trl_python(), "-P", str(ROOT / "benchmarks" / "trl_side.py")], job)


def by_turns(job: dict[str, Any], repeats: int) -> tuple[list[Result], list[Result]]:
    """Do a job on both sides, `repeats` times by turns; results of ours and of TRL.

    Raises:
        RuntimeError: The sides have different versions of what both are made of.
    """
    ours, theirs = [], []
    for repeat in range(repeats):
        for name, run, results in (("ours", run_ours, ours), ("TRL", run_trl, theirs)):
            results.append(run(job))
            print(f"{name}, {repeat + 1} of {repeats}: {_brief(results[-1])}", flush=True)
    if ours[0]["versions"] != theirs[0]["versions"]:
        raise RuntimeError(f"The sides run on {ours[0]['versions']} and {theirs[0]['versions']}: remove {TRL_VENV}.")
    return ours, theirs


def check_same(what: str, ours: float, theirs: float, tolerance: float) -> str:
    """A sentence with what both sides computed; `tolerance` is relative.

    Raises:
        RuntimeError: They computed different things.
    """
    if not abs(ours - theirs) <= tolerance * abs(theirs):
        raise RuntimeError(
            f"{what} is {ours:.6g} with ours and {theirs:.6g} with TRL: the sides compute different things."
        )
    return f"{what}: {ours:.6g} with ours, {theirs:.6g} with TRL (at most {tolerance:g} of it apart)"


def in_process(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """Call a function of this project in a fresh process; what it returns, and the peak of that process in GB."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_with_peak, function, *args).result()


def _with_peak(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    result = function(*args)
    return result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _run(command: list[str], job: dict[str, Any]) -> Result:
    own = {"OMP_NUM_THREADS": str(THREADS), "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as scratch:
        given, made, log = (Path(scratch) / name for name in ("job.json", "result.json", "log"))
        given.write_text(json.dumps(job), encoding="utf-8")
        with log.open("w") as output:
            process = subprocess.Popen(
                [*command, str(given), str(made)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | own,
                cwd=ROOT,
            )
            _, status, usage = os.wait4(process.pid, 0)  # the only call that tells of this child alone
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-4000:]}")
        return json.loads(made.read_text(encoding="utf-8")) | {"memory_gb": usage.ru_maxrss * 1024 / 1e9}


def _brief(result: Result) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in result.items() if isinstance(value, int | float))

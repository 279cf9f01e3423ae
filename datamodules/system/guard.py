"""Child processes that end with the process that started them, even if that is killed.

The kernel can kill a process for the end of the thread that started it. Processes that others start, from threads that
end, cannot ask for that: they have a guard, a process that does nothing but wait.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from os import PathLike
from subprocess import DEVNULL, PIPE, CompletedProcess, Popen
from typing import Any

PR_SET_PDEATHSIG = 1
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # looked up here: a forked child should not


NOT_INHERITED = re.compile(r"MASTER_(ADDR|PORT)|((LOCAL|NODE|GROUP|ROLE)_)?(RANK|WORLD_SIZE)|TORCHELASTIC_\w+")
"""Variables of a distributed run, to which the processes of an engine do not belong: by one of torchrun's they would
wait for a store that listens already."""


@contextmanager
def environment_of_children(own: Mapping[str, str]) -> Iterator[None]:
    """Have processes that start within this context inherit further variables, and none of a distributed run.

    Args:
        own: The further variables.
    """
    saved = dict(os.environ)
    for name in filter(NOT_INHERITED.fullmatch, saved):
        del os.environ[name]
    os.environ.update(own)
    try:
        yield
    finally:
        for name in os.environ.keys() - saved.keys():
            del os.environ[name]
        os.environ.update(saved)


def die_with_parent(parent: int) -> None:
    """Have this process killed when the one that started it ends; call it first of all, before an `exec` at the latest.

    The kernel goes by the thread: one that starts a process that calls this must not end before its own process. Where
    there is no such signal (macOS), nothing happens.

    Args:
        parent: Process id of the one that started this one, which may have ended already.
    """
    if _PRCTL is not None:
        _PRCTL(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def run(command: Sequence[str | PathLike[str]], **options: Any) -> "CompletedProcess[bytes]":
    """`subprocess.run`, to be called from the main thread, of a program that ends with this process.

    Ctrl-C reaches both, and this one waits for the program, which may have something to save, unless pressed again.
    """
    pressed = False

    def wait(number: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    own = signal.signal(signal.SIGINT, wait)  # which programs do not inherit
    try:
        return subprocess.run(command, preexec_fn=partial(die_with_parent, os.getpid()), **options)
    finally:
        signal.signal(signal.SIGINT, own)
        if pressed:
            raise KeyboardInterrupt


def kill_at_exit(pids: Sequence[int]) -> "Popen[bytes]":
    """Start a process that kills others as soon as its pipe closes, as it does when this process is itself killed."""
    command = f"cat; kill -9 {' '.join(map(str, pids))}"
    return Popen(["sh", "-c", command], stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True)

"""Ends the processes of an engine when the one that started them is killed."""

from collections.abc import Sequence
from subprocess import DEVNULL, PIPE, Popen


def kill_at_exit(pids: Sequence[int]) -> "Popen[bytes]":
    """Start a process that kills others as soon as its pipe closes, as it does when this process is itself killed."""
    command = f"cat; kill -9 {' '.join(map(str, pids))}"
    return Popen(["sh", "-c", command], stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True)

"""Reward functions in processes of their own, several at once: one that hangs or dies is stopped and replaced.

Nothing else can be stopped wherever it hangs. A judge behind a server mostly waits, so that many are asked at a time.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from lightning_modules.rollout.fork_server import ForkServer

Function = Callable[..., float]
SHOWN = 300  # characters of a text that an error shows


class Answer(NamedTuple):
    """The result of one call: a value or an error.

    Attributes:
        value: What was returned; None if it failed or was not called.
        error: Why it failed, in one line; "" if it did not.
    """

    value: float | None
    error: str = ""


class SubprocessReward:
    """A reward function that runs in a process of its own, which can be stopped wherever it hangs.

    Args:
        server: Starts the process.
        place: Of the function among the server's.
        timeout: Seconds a call may take.
    """

    def __init__(self, server: ForkServer, place: int, timeout: float) -> None:
        self.server, self.place, self.timeout = server, place, timeout
        self.pid = 0  # none
        self.pipe: Connection | None = None
        self.deadline = math.inf

    def send(self, inputs: tuple[Any, ...]) -> None:
        """Begin a call, in a new process if there is none.

        Args:
            inputs: Arguments of the function.

        Raises:
            RuntimeError: See `ForkServer.start`.
        """
        if self.pipe is not None and self.pipe.poll():  # nobody has asked it anything: this is its end
            self.stop()
        if self.pipe is None:
            self.pid, self.pipe = self.server.start(self.place)
        with suppress(BrokenPipeError, ConnectionResetError):  # it has died; reading says so
            self.pipe.send(inputs)
        self.deadline = time.monotonic() + self.timeout

    def receive(self) -> Answer:
        """The answer, which has come."""
        try:
            return Answer(*self.pipe.recv())
        except (EOFError, ConnectionResetError):
            self.stop()
            return Answer(None, "its process died")

    def give_up(self) -> Answer:
        """Stop a call that takes too long."""
        self.stop()
        return Answer(None, f"TimeoutError: no score after {self.timeout:g} s")

    def stop(self) -> None:
        """End the process."""
        self.server.stop(self.pid)
        self.pipe.close()
        self.pid, self.pipe = 0, None


def make_pools(functions: dict[str, Function], count: int, timeout: float) -> dict[str, list[SubprocessReward]]:
    """A pool of workers for each function; the fork server that starts them all is forked now.

    Args:
        functions: By name.
        count: Workers of each.
        timeout: Seconds a call may take.
    """
    if not functions:
        return {}
    server = ForkServer([partial(_answer, function) for function in functions.values()])
    return {name: [SubprocessReward(server, i, timeout) for _ in range(count)] for i, name in enumerate(functions)}


def call(function: Function, inputs: tuple[Any, ...]) -> Answer:
    """Call a function in this process."""
    try:
        return Answer(function(*inputs))
    except Exception as error:  # whatever the user's function raises
        return Answer(None, " ".join(f"{type(error).__name__}: {error}"[:SHOWN].split()))


def call_all(
    pools: dict[str, list[SubprocessReward]], inputs: Sequence[tuple[Any, ...]], most_errors: float = math.inf
) -> dict[str, list[Answer]]:
    """Call every pool's function with every input; all workers of all pools work at the same time.

    Args:
        pools: Workers of each function.
        inputs: Arguments of each call.
        most_errors: When a function has failed more often, no other call is begun or waited for.

    Returns:
        For each pool an answer per input, in the order of the inputs.
    """
    answers = {name: [Answer(None)] * len(inputs) for name in pools}
    errors = dict.fromkeys(pools, 0)
    waiting = {name: iter(range(len(inputs))) for name in pools}
    busy: dict[SubprocessReward, tuple[str, int]] = {}
    try:
        while max(errors.values(), default=0) <= most_errors:
            for name, pool in pools.items():
                for worker, place in zip((w for w in pool if w not in busy), waiting[name], strict=False):
                    worker.send(inputs[place])
                    busy[worker] = name, place
            if not busy:
                break
            first = min(worker.deadline for worker in busy)
            ready = wait([worker.pipe for worker in busy], max(0.0, first - time.monotonic()))
            now = time.monotonic()
            for worker, (name, place) in list(busy.items()):
                if worker.pipe in ready or worker.deadline <= now:
                    answer = worker.receive() if worker.pipe in ready else worker.give_up()
                    answers[name][place] = answer
                    errors[name] += bool(answer.error)
                    del busy[worker]
    finally:
        for worker in busy:  # an answer that comes later would be taken for the next call's
            worker.stop()
    return answers


def _answer(function: Function, pipe: Connection) -> None:
    while True:
        answer = call(function, pipe.recv())
        sys.stdout.flush()  # what it has printed is seen, however this process ends
        pipe.send(tuple(answer))

"""Functions in processes of their own, several at once: one that hangs or dies is stopped and replaced.

Nothing else can be stopped wherever it hangs. A judge behind a server mostly waits, so that many are asked at a time.
"""

import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

Function = Callable[..., float]
SHOWN = 300  # characters of a text that an error shows


class Answer(NamedTuple):
    """What came of one call.

    Attributes:
        value: What was returned; None if it failed or was not called.
        error: Why it failed, in one line; "" if it did not.
    """

    value: float | None
    error: str = ""


class Worker:
    """A process that calls a function.

    Args:
        function: What to call; returns a number, whatever it raises is an error.
        timeout: Seconds a call may take.
    """

    def __init__(self, function: Function, timeout: float) -> None:
        self.function = function
        self.timeout = timeout
        self.process: Any = None
        self.pipe: Connection | None = None
        self.deadline = math.inf

    def send(self, inputs: tuple[Any, ...], others: Iterable["Worker"]) -> None:
        """Begin a call, in a new process if there is none.

        Args:
            inputs: Arguments of the function.
            others: Workers whose pipes a new process must not keep open.
        """
        if self.process is not None and not self.process.is_alive():
            self.stop()
        if self.process is None:
            self._start([other.pipe for other in others if other.pipe])
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
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.process = self.pipe = None

    def _start(self, others: list[Connection]) -> None:
        fork = multiprocessing.get_context("fork")  # as loaders' workers: any function will do, and it starts at once
        self.pipe, theirs = fork.Pipe()
        self.process = fork.Process(target=_serve, args=(self.function, theirs, [*others, self.pipe]), daemon=True)
        self.process.start()
        theirs.close()


def call(function: Function, inputs: tuple[Any, ...]) -> Answer:
    """Call a function in this process."""
    try:
        return Answer(function(*inputs))
    except Exception as error:  # whatever the user's function raises
        return Answer(None, " ".join(f"{type(error).__name__}: {error}"[:SHOWN].split()))


def call_all(
    pools: dict[str, list[Worker]], inputs: Sequence[tuple[Any, ...]], most_errors: float = math.inf
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
    busy: dict[Worker, tuple[str, int]] = {}
    everyone = [worker for pool in pools.values() for worker in pool]
    try:
        while max(errors.values(), default=0) <= most_errors:
            for name, pool in pools.items():
                for worker, place in zip((w for w in pool if w not in busy), waiting[name], strict=False):
                    worker.send(inputs[place], everyone)
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


def _serve(function: Function, pipe: Connection, parents: list[Connection]) -> None:
    for other in parents:  # so that the end of the parent ends this process, and this one keeps no other alive
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the trainer's handler
    while True:
        try:
            inputs = pipe.recv()
        except EOFError:
            return
        pipe.send(tuple(call(function, inputs)))

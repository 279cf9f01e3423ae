"""Reward functions of the user's choice, several of them with weights; one bad completion costs only its own reward.

A function that is not ours runs in a process of its own: nothing else can be stopped wherever it hangs.
"""

import math
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from rewards import FunctionCallReward, RewardResult

RewardInput = tuple[str, str, str]
"""Completion, tools and answers; the latter two are the row's JSON strings."""
SHOWN = 300  # characters of an input that an error shows


@dataclass(frozen=True)
class RewardTerm:
    """One of several reward functions.

    Attributes:
        function: Called with completion, tools and answers (JSON strings); returns a number or a `RewardResult`. In
            YAML the dotted name of a function, or `class_path` and `init_args` of a class whose objects are callable.
        weight: What its score is multiplied by in the sum.
    """

    function: Callable[[str, str, str], Any]
    weight: float = 1.0


class Rewards:
    """Scores completions with every function.

    Args:
        terms: Functions by the names under which they are logged.
        timeout: Seconds that a function may take over one completion; None runs it in this process, without a limit, as
            a function that uses the accelerator must be. The project's own reward is always run so: it cannot hang.
        max_error_share: Share of a batch's completions above which the failures of one function stop the run.

    Raises:
        ValueError: If there is no function, a limit is impossible, or a name is one of our own figures.
    """

    RESERVED = ("mean", "std", "errors", "frac_zero_std", "overlong_penalty")

    def __init__(
        self, terms: dict[str, RewardTerm], timeout: float | None = 10.0, max_error_share: float = 0.25
    ) -> None:
        if not terms or set(terms) & set(self.RESERVED) or any("/" in name for name in terms):
            raise ValueError(
                f"model.rewards names the functions {sorted(terms)}: give at least one, without a slash in its name "
                f"and not called {' or '.join(self.RESERVED)}."
            )
        if (timeout is not None and timeout <= 0) or not 0 <= max_error_share <= 1:
            raise ValueError(
                "model.reward_timeout must be greater than 0 and model.max_reward_errors lie in [0, 1], "
                f"got {timeout} and {max_error_share}."
            )
        self.weights = {name: term.weight for name, term in terms.items()}
        self.max_error_share = max_error_share
        self.functions: dict[str, Callable[[str, str, str], Any]] = {}
        for name, term in terms.items():
            trusted = timeout is None or isinstance(term.function, FunctionCallReward)
            self.functions[name] = term.function if trusted else Isolated(term.function, timeout)

    def __call__(self, inputs: Sequence[RewardInput]) -> dict[str, list[float | None]]:
        """Score every completion with every function.

        Returns:
            For each function a score per completion; None where it raised, hung, died or returned no finite number.

        Raises:
            RuntimeError: If a function fails for more than `max_error_share` of the completions.
        """
        return {name: self._scores(name, function, inputs) for name, function in self.functions.items()}

    def total(self, scores: dict[str, float | None]) -> float:
        """The weighted sum of one completion's scores; 0 where a function failed on it that has a weight."""
        weighted = [(weight, scores[name]) for name, weight in self.weights.items() if weight]
        return sum(weight * score for weight, score in weighted) if all(s is not None for _, s in weighted) else 0.0

    def _scores(
        self, name: str, function: Callable[[str, str, str], Any], inputs: Sequence[RewardInput]
    ) -> list[float | None]:
        scores: list[float | None] = []
        failures = 0
        for one in inputs:
            try:
                scores.append(as_score(function(*one)))
            except Exception as error:  # whatever the user's function raises
                scores.append(None)
                failures += 1
                if failures > self.max_error_share * len(inputs):  # at once, for each may have cost a time-out
                    completion, tools, answers = (repr(text[:SHOWN]) for text in one)
                    raise RuntimeError(
                        f"Reward function {name} failed for {failures} of the first {len(scores)} of {len(inputs)} "
                        f"completions, more than model.max_reward_errors {self.max_error_share:g} allows; at last "
                        f"with {type(error).__name__}: {error}; its input was completion {completion}, tools {tools}, "
                        f"answers {answers}."
                    ) from error
        return scores


class Isolated:
    """A function in a process of its own, which is replaced when it hangs or dies.

    Args:
        function: What to call.
        timeout: Seconds a call may take.
    """

    def __init__(self, function: Callable[[str, str, str], Any], timeout: float) -> None:
        self.function = function
        self.timeout = timeout
        self.process: Any = None
        self.pipe: Connection | None = None

    def __call__(self, completion: str, tools: str, answers: str) -> float:
        """Call the function.

        Raises:
            TimeoutError: If it takes too long.
            RuntimeError: If it raises, returns no finite number, or its process dies.
        """
        if self.process is None:
            self._start()
        try:
            self.pipe.send((completion, tools, answers))
            answered = self.pipe.poll(self.timeout)
            score, complaint = self.pipe.recv() if answered else (None, None)
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self.stop()
            raise RuntimeError("its process died") from error
        if not answered:
            self.stop()
            raise TimeoutError(f"no score after {self.timeout:g} s")
        if complaint:
            raise RuntimeError(complaint)
        return score

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        self.process = self.pipe = None

    def _start(self) -> None:
        fork = multiprocessing.get_context("fork")  # as loaders' workers: any function will do, and it starts at once
        self.pipe, theirs = fork.Pipe()
        self.process = fork.Process(target=_serve, args=(self.function, theirs, self.pipe), daemon=True)
        self.process.start()
        theirs.close()


def _serve(function: Callable[[str, str, str], Any], pipe: Connection, parents: Connection) -> None:
    parents.close()  # so that the end of the parent ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the trainer's handler
    while True:
        try:
            inputs = pipe.recv()
        except EOFError:
            return
        try:
            answer = (as_score(function(*inputs)), None)
        except Exception as error:  # whatever the user's function raises
            answer = (None, f"{type(error).__name__}: {error}")
        pipe.send(answer)


def as_score(value: Any) -> float:
    """A reward function's result as a finite number.

    Raises:
        TypeError: If it is nothing or a text.
        ValueError: If it is not finite, or a `RewardResult` that says it could not judge.
    """
    if isinstance(value, RewardResult):
        if value.parts.get("error"):
            raise ValueError("the reference or the completion is unusable")
        value = value.score
    if value is None or isinstance(value, str):
        raise TypeError(f"it returned {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"it returned {value}")
    return float(value)

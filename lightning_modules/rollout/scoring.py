"""Reward functions of the user's choice, several of them with weights; one bad completion costs only its own reward.

A function that is not ours runs in processes of its own: nothing else can be stopped wherever it hangs.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from datamodules.system.arguments import declared
from lightning_modules.rollout.metrics import OF_ALL_REWARDS
from lightning_modules.rollout.subprocess_reward import Answer, call, call_all, make_pools
from rewards import FunctionCallReward, RewardResult

RewardFunction = Callable[[str, str, str], Any]
RewardInput = tuple[str, str, str]
"""Completion, tools and answers; the latter two are the row's JSON strings."""
LARGEST = 1e30  # magnitude of scores and weights: sums of squares of their products are finite


@declared
@dataclass(frozen=True)
class RewardTerm:
    """One of several reward functions.

    Attributes:
        function: Called with completion, tools and answers (JSON strings); returns a number or a `RewardResult`. In
            YAML the dotted name of a function, or `class_path` and `init_args` of a class whose objects are callable.
        weight: What its score is multiplied by in the sum.
    """

    function: RewardFunction
    weight: float = 1.0


class Rewards:
    """Scores completions with every function.

    Args:
        terms: Functions, each with or without a weight (1), by the names under which they are logged; `own` alone, as
            `function_call`, when None.
        timeout: Seconds that a function may take over one completion; None runs it in this process, one completion
            after the other and without a limit, as a function that uses the accelerator must be. The project's own
            reward is always run so: it cannot hang.
        max_error_share: Share of a batch's completions above which the failures of one function stop the run.
        workers: Processes of each function, as many completions as are scored at a time; they start when needed.
        own: The reward whose results are known already when completions are scored.

    Raises:
        ValueError: If there is no function, one cannot be called as it will be, a limit or weight is impossible, or a
            name is one of our own metrics.
    """

    def __init__(
        self,
        terms: Mapping[str, RewardTerm | RewardFunction] | None,
        timeout: float | None = 10.0,
        max_error_share: float = 0.25,
        workers: int = 8,
        own: FunctionCallReward | None = None,
    ) -> None:
        given = {"function_call": own} if terms is None else terms
        terms = {name: term if isinstance(term, RewardTerm) else RewardTerm(term) for name, term in given.items()}
        if not terms or set(terms) & set(OF_ALL_REWARDS) or any(set("/.") & set(name) for name in terms):
            raise ValueError(
                f"model.rewards names the functions {sorted(terms)}: give at least one, without a slash or a dot in "
                f"its name and not called {' or '.join(OF_ALL_REWARDS)}; on the command line --model.rewards.NAME "
                "my.function or --model.rewards.NAME '{function: my.function, weight: 2}'."
            )
        if (timeout is not None and not 0 < timeout < math.inf) or not 0 <= max_error_share <= 1 or workers < 1:
            raise ValueError(
                "model.reward_timeout must be a number greater than 0 (null is no limit), model.max_reward_errors lie "
                f"in [0, 1] and model.reward_workers be at least 1, got {timeout}, {max_error_share} and {workers}."
            )
        self.weights = {name: term.weight for name, term in terms.items()}
        if not all(abs(weight) <= LARGEST for weight in self.weights.values()):
            raise ValueError(f"Weights of model.rewards must be finite, got {self.weights}.")
        for name, term in terms.items():
            check_reward(name, term.function)
        self.max_error_share = max_error_share
        self.functions = {name: term.function for name, term in terms.items()}
        self.own = [name for name, function in self.functions.items() if same_reward(function, own)]
        apart = {
            name: partial(score, function)
            for name, function in self.functions.items()
            if timeout is not None and not isinstance(function, FunctionCallReward)
        }
        self.pools = make_pools(apart, workers, timeout)  # before there are threads and devices

    def __call__(
        self,
        inputs: Sequence[RewardInput],
        results: Sequence[RewardResult] | None = None,
        most_completions: int | None = None,
    ) -> dict[str, list[Answer]]:
        """Score every completion with every function.

        Once a function has failed for more than `max_error_share` of the batch the run is going to stop, so that no
        other completion is scored: each may cost a time-out.

        Args:
            inputs: The completions.
            results: What `own` makes of them, which is not computed again.
            most_completions: The most that the batch may have over all ranks and attempts; those here when None.

        Returns:
            For each function an answer per completion; without a value where it raised, hung, died, returned no finite
            number, or was not asked any more. Their order, unlike that of the calls, is that of the completions.
        """
        most_errors = self.max_error_share * (most_completions or len(inputs))
        answers = {}
        for name, function in self.functions.items():
            if name in self.own and results is not None:
                answers[name] = [call(as_score, (result,)) for result in results]
            elif name not in self.pools:
                answers[name] = call_in_turn(partial(score, function), inputs, most_errors)
        answers |= call_all(self.pools, inputs, most_errors)
        return {name: answers[name] for name in self.functions}

    def total(self, scores: dict[str, float | None]) -> float | None:
        """The weighted sum of one completion's scores; None where a function failed on it that has a weight."""
        weighted = [(weight, scores[name]) for name, weight in self.weights.items() if weight]
        return sum(weight * score for weight, score in weighted) if all(s is not None for _, s in weighted) else None

    def described(self) -> str:
        """The reward functions, where they run, and what becomes of their failures."""
        terms = " + ".join(f"{weight:g} x {name}" for name, weight in self.weights.items())
        pools = [
            f"{name} in {len(pool)} processes a rank, {pool[0].timeout:g} s each" for name, pool in self.pools.items()
        ]
        return (
            f"{'; '.join([terms, *pools])}; a completion on which one fails is not learnt from, and more than "
            f"{self.max_error_share:.0%} of a batch stop the run"
        )


def check_reward(name: str, function: RewardFunction) -> None:
    """Refuse a reward function that cannot be called as it will be.

    Raises:
        ValueError: Naming it and what it is called with.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some written in C
        return
    try:
        signature.bind("completion", "tools", "answers")
    except TypeError as error:
        raise ValueError(
            f"model.rewards.{name} is called with a completion, its row's tools and its row's answers, and takes "
            f"{signature}: {error}."
        ) from error


def call_in_turn(function: Callable[..., float], inputs: Sequence[RewardInput], most_errors: float) -> list[Answer]:
    """Call a function in this process, until it has failed more than `most_errors` times."""
    answers, errors = [], 0
    for one in inputs:
        answers.append(call(function, one) if errors <= most_errors else Answer(None))
        errors += bool(answers[-1].error)
    return answers


def same_reward(function: RewardFunction, own: FunctionCallReward | None) -> bool:
    """Whether a function is the reward that has scored already, or one of the same kind and settings."""
    return type(function) is type(own) and vars(function) == vars(own)


def score(function: RewardFunction, *inputs: str) -> float:
    """A reward function's score of a completion, as a finite number; raises what it and `as_score` raise."""
    return as_score(function(*inputs))


def as_score(value: Any) -> float:
    """A reward function's result as a finite number.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not finite or beyond all bounds, or a `RewardResult` that says it could not judge.
    """
    if isinstance(value, RewardResult):
        if value.parts.get("error"):
            raise ValueError("the reference or the completion is unusable")
        value = value.score
    try:
        bounded = bool(abs(value) <= LARGEST)
        score = float(value) if bounded else math.nan
    except (TypeError, ValueError, RuntimeError) as error:  # the latter two of arrays and tensors
        raise TypeError(f"it returned {value!r}, which is no number") from error
    if not bounded:
        raise ValueError(f"it returned {value}")
    return score

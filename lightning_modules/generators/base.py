"""The generator protocol: what a generator takes and returns, whichever engine it runs on."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from lightning_modules.policy.generation_config import ids_of
from lightning_modules.policy.model import ScoredCausalLM


@dataclass(frozen=True)
class Completion:
    """One sampled completion, as token ids: text is never encoded again.

    Attributes:
        token_ids: Generated ids; the stop id that ended it is the last one.
        finish_reason: "stop" if a stop id ended it, "length" if it was cut at the limit.
        logprobs: The engine's own log-probability of each id, or None from an engine that does not report them.
    """

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    logprobs: list[float] | None = None

    def text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Its text without the token that ended it; stray special tokens stay visible."""
        return tokenizer.decode(self.token_ids[:-1] if self.finish_reason == "stop" else self.token_ids)


class Generator(Protocol):
    """Samples completions of prompts; what comes out depends on seed and names, not on how rows are batched.

    Attributes:
        max_new_tokens: Tokens after which a completion is cut.
        reports_logprobs: Whether completions come with the engine's own log-probabilities.
        seed: Of the sampling noise.
    """

    max_new_tokens: int
    reports_logprobs: bool
    seed: int

    def __call__(
        self,
        policy: ScoredCausalLM,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str | int] | None = None,
        n: int = 1,
        stop_ids: Collection[int] | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> list[list[Completion]]:
        """Sample `n` completions of each prompt.

        Args:
            policy: The model to sample from.
            prompts: Token ids of each prompt.
            names: Of the prompts: what the random numbers of each derive from. A prompt that must be sampled anew in a
                later step needs a new one, such as "step/row". The place in the list when None.
            n: Completions per prompt.
            stop_ids: Ids that end a completion; those of the model's generation config when None.
            temperature: Divides the logits; the generator's own setting when None.
            top_p: Probability of the set of tokens sampled from; the generator's own setting when None.

        Returns:
            For each prompt, in the order given, its `n` completions.
        """
        ...

    def sync(self, policy: ScoredCausalLM) -> None:
        """Take over the policy's weights, where the generator keeps its own; every rank calls it.

        Sampling syncs by itself where the policy has changed. To call this before is to choose the moment, and time it.

        Args:
            policy: The model to sample from next.
        """
        ...


@runtime_checkable
class HoldsWeights(Protocol):
    """The further methods of a generator whose engine holds weights of its own.

    It takes a policy in the shards of FSDP2 as it is: no unsharded copy is made for it.
    """

    def prepare(self, precision: str, longest_prompt: int | None) -> None:
        """Take from the run what the settings leave open.

        Args:
            precision: As `trainer.precision`.
            longest_prompt: Tokens of the longest prompt to come; None if unknown.
        """
        ...

    def rest(self, stale: bool = False) -> None:
        """Free memory until the next call, because the policy will learn or the run is over; every rank calls it.

        Args:
            stale: Whether the policy is about to change, so that the weights need not be kept.
        """
        ...


def check_sampling(temperature: float, top_p: float) -> None:
    """Raise ValueError where a setting of the sampler is out of its range."""
    if not 0 <= temperature < math.inf or not 0 < top_p <= 1:
        raise ValueError(f"temperature must be at least 0 and top_p in (0, 1], got {temperature} and {top_p}.")


def check_limits(timeout: float, probe_tolerance: float | None, **counts: int) -> None:
    """Raise ValueError where a limit of a generator with an engine, or one of its counts by name, is out of range."""
    if min(counts.values()) < 1 or timeout <= 0 or (probe_tolerance is not None and probe_tolerance <= 0):
        raise ValueError(
            f"{' and '.join(counts)} must be at least 1, timeout and probe_tolerance greater than 0, got "
            f"{', '.join(map(str, counts.values()))}, {timeout} and {probe_tolerance}."
        )


def names_of(prompts: Sequence[Sequence[int]], names: Sequence[str | int] | None) -> Sequence[str | int]:
    """The names of the prompts, their places when None; ValueError if a prompt is empty or names and prompts differ."""
    names = range(len(prompts)) if names is None else names
    if len(names) != len(prompts) or not all(prompts):
        raise ValueError(
            f"Prompts must not be empty and need one name each: {len(prompts)} prompts, {len(names)} names."
        )
    return names


def config_stop_ids(policy: ScoredCausalLM) -> list[int]:
    """The ids that end a completion by the model's generation config; ValueError if it has none."""
    if not (ids := ids_of(policy.causal_lm.generation_config.eos_token_id)):
        raise ValueError("The model's generation config has no eos_token_id: give stop_ids.")
    return ids

"""What vLLM is told of each completion: settings of its sampling, and a seed of its own."""

from collections.abc import Collection, Iterable
from typing import Any

from lightning_modules.generators.sampling import row_key


def sampling_params(
    names: Iterable[str | int],
    n: int,
    seed: int,
    max_tokens: int,
    stop_ids: Collection[int],
    temperature: float,
    top_p: float,
) -> list[dict[str, Any]]:
    """Arguments of `vllm.SamplingParams`, and what a server takes for them, of `n` completions of each prompt.

    Args:
        names: Of the prompts; what their seeds derive from.
        n: Completions per prompt, which follow each other.
        seed: Of the generator.
        max_tokens: Tokens after which a completion is cut.
        stop_ids: Ids that end a completion.
        temperature: Divides the logits; 0 takes the most likely token.
        top_p: Probability of the set of tokens sampled from.
    """
    shared = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "stop_token_ids": list(stop_ids),
        "ignore_eos": True,  # what ends a completion are the ids above
        "detokenize": False,
        "logprobs": 0,  # of the sampled id alone
    }
    return [shared | {"seed": row_key(seed, name, i) % 2**63} for name in names for i in range(n)]

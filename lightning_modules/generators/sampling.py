"""Sampling with random numbers per completion: a function of seed, prompt and position, so batching changes nothing.

A token is drawn by the Gumbel-max trick: the argmax of logits / temperature + Gumbel noise is a sample of their softmax
(arXiv 1411.0030, section 2). The noise of vocabulary entry v at position t of a row comes from a counter-based
generator, SplitMix64, applied twice: to the key of the row and t, then to that and v. Letters: B rows, V vocabulary,
L tokens so far.
"""

from hashlib import blake2b

import torch
from torch import Tensor
from transformers import LogitsProcessor

# The constants of SplitMix64 as signed 64-bit integers: tensor arithmetic on them wraps around as the algorithm needs.
_GAMMA, _MIX_1, _MIX_2 = (constant - 2**64 for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def row_key(seed: int, prompt_id: str | int, sample: int) -> int:
    """Signed 64-bit key of one completion, the same on every machine."""
    digest = blake2b(f"{seed}/{prompt_id}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def gumbel_noise(keys: Tensor, position: int, size: int) -> Tensor:
    """Standard Gumbel noise for one position of every row.

    Args:
        keys: Key of each row, [B], long.
        position: Number of tokens generated before this one.
        size: V.

    Returns:
        Noise, [B, V], float32: finite, or -inf where the uniform number rounds to 1 (once in 2^25).
    """
    step = torch.tensor(position + 1, device=keys.device) * _GAMMA  # a tensor, for Python's integers do not wrap around
    rows = _split_mix(keys + step)  # [B]
    counters = torch.arange(1, size + 1, device=keys.device) * _GAMMA  # [V]
    bits = _split_mix(rows[:, None] + counters)  # [B, V]
    # 53 uniform bits, rounded to float32 as a fraction: its small values, whence the large noise comes, keep 24 bits.
    uniform = _shift_right(bits, 11).to(torch.float32).mul_(2.0**-53).clamp_(min=2.0**-54)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Set to -inf what lies outside the smallest set of most likely ids whose probability reaches `top_p`, [B, V]."""
    ordered, order = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1).roll(1, dims=-1)
    before[:, 0] = 0.0  # the most likely id always stays
    return logits.masked_fill((before >= top_p).scatter(1, order, before >= top_p), -torch.inf)


class GumbelMax(LogitsProcessor):
    """Turns greedy decoding into sampling from softmax(logits / temperature) cut to `top_p`.

    Args:
        keys: Key of each row (`row_key`), [B], long.
        prompt_length: Columns of the padded prompts.
        temperature: Greater than 0.
        top_p: In (0, 1].
    """

    def __init__(self, keys: Tensor, prompt_length: int, temperature: float, top_p: float) -> None:
        self.keys = keys
        self.prompt_length = prompt_length
        self.temperature = temperature
        self.top_p = top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Perturb the logits [B, V] of the token that follows `input_ids` [B, L]."""
        logits = scores.float() / self.temperature
        if self.top_p < 1.0:
            logits = keep_top_p(logits, self.top_p)
        return logits.add_(gumbel_noise(self.keys, input_ids.shape[1] - self.prompt_length, logits.shape[1]))


def _split_mix(state: Tensor) -> Tensor:
    """Output function of SplitMix64 on each element of a long tensor."""
    state = (state ^ _shift_right(state, 30)) * _MIX_1
    state = (state ^ _shift_right(state, 27)) * _MIX_2
    return state ^ _shift_right(state, 31)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical shift; `>>` alone would carry the sign along."""
    return (bits >> count) & ((1 << (64 - count)) - 1)

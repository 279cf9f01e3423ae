"""Sampling with random numbers per completion: a function of seed, prompt and position, so batching changes nothing.

A token is drawn by the Gumbel-max trick: the argmax of logits / temperature + Gumbel noise is a sample of their softmax
(arXiv 1411.0030, section 2). The noise of vocabulary entry v at position t of a row comes from a counter-based
generator, SplitMix64, applied twice: to the key of the row and t, then to that and v. Letters: B rows, V vocabulary,
L tokens so far.
"""

import math
from hashlib import blake2b

import torch
from torch import Tensor
from transformers import LogitsProcessor

# The constants of SplitMix64 as signed 64-bit integers: tensor arithmetic on them wraps around as the algorithm needs.
_GAMMA, _MIX_1, _MIX_2 = (constant - 2**64 for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

MARGIN = 3.0  # nats
SHARE = 512  # of so many entries one may get noise for its random bits alone, at most
BLOCK = 2**17  # entries that a thread works on at a time


def row_key(seed: int, name: str | int, sample: int) -> int:
    """Signed 64-bit key of one completion, the same on every machine."""
    digest = blake2b(f"{seed}/{name}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def gumbel_noise(keys: Tensor, position: int | Tensor, size: int) -> Tensor:
    """Standard Gumbel noise for one position of every row.

    Args:
        keys: Key of each row, [B], long.
        position: Number of tokens generated before this one; of all rows or of each, [B], long.
        size: V.

    Returns:
        Noise, [B, V], float32: finite, or -inf where the uniform number rounds to 1 (once in 2^25).
    """
    step = torch.as_tensor(position + 1, device=keys.device) * _GAMMA  # tensors wrap around
    rows = _split_mix(keys + step)  # [B]
    counters = torch.arange(1, size + 1, device=keys.device) * _GAMMA  # [V]
    return _gumbel(_split_mix(rows[:, None] + counters))


def _gumbel(bits: Tensor) -> Tensor:
    """Gumbel noise from uniform 64-bit integers."""
    # 53 uniform bits, rounded to float32 as a fraction: its small values, whence the large noise comes, keep 24 bits.
    uniform = _shift_right(bits, 11).to(torch.float32).mul_(2.0**-53).clamp_(min=2.0**-54)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Set to -inf what lies outside the smallest set of most likely ids whose probability reaches `top_p`, [B, V]."""
    ordered, order = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1).roll(1, dims=-1)
    before[:, 0] = 0.0  # the most likely id always stays
    return logits.masked_fill((before >= top_p).scatter(1, order, before >= top_p), -torch.inf)


def sampled_scores(logits: Tensor, keys: Tensor, position: int | Tensor, temperature: float, top_p: float) -> Tensor:
    """Logits [B, V] whose argmax is a sample of softmax(logits / temperature) cut to `top_p`; see `GumbelMax`."""
    logits = logits.float() / temperature
    if top_p < 1.0:
        logits = keep_top_p(logits, top_p)
    return logits.add_(gumbel_noise(keys, position, logits.shape[1]))


def sample(logits: Tensor, keys: Tensor, position: Tensor, temperature: float, top_p: float) -> Tensor:
    """The argmax of `sampled_scores`, [B], with noise for those few entries alone that can have it.

    The largest score is lower than the logarithm of the sum of exponentials - MARGIN once in exp(exp(MARGIN)) = 5e8
    times; then all noise is computed. An entry reaches that floor with a uniform number u where -log(1 - u) < exp(logit
    - floor), and u is no more than that logarithm: it takes a logit above a limit or u < exp(limit - floor).

    Args:
        logits: [B, V].
        keys: Key of each row, [B], long.
        position: Number of tokens generated before this one in each row, [B], long.
        temperature: Greater than 0.
        top_p: In (0, 1].
    """
    scores = logits.float() if temperature == 1 else logits.float() / temperature
    if top_p < 1.0:
        scores = keep_top_p(scores, top_p)
    cpu = scores.device.type == "cpu"
    width = max(1, (BLOCK * torch.get_num_threads() if cpu else 2**24) // len(scores))  # what stays in a core's cache
    floor = torch.stack([part.logsumexp(-1) for part in scores.split(width, 1)]).logsumexp(0) - MARGIN
    states = _split_mix(keys + (position + 1) * _GAMMA)
    row, column = _possible(scores, floor, states, width)
    perturbed = scores[row, column] + _gumbel(_split_mix(states[row] + (column + 1) * _GAMMA))
    highest = floor.scatter_reduce(0, row, perturbed, "amax")
    if (highest > floor).all():
        best = perturbed == highest[row]
        return torch.full_like(row, scores.shape[1])[: len(floor)].scatter_reduce(0, row[best], column[best], "amin")
    return (scores + gumbel_noise(keys, position, scores.shape[1])).max(-1).indices


def _possible(scores: Tensor, floor: Tensor, states: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of the entries whose perturbed score may be above the floor, and of some others.

    The limit of a row is its highest score or, if that is nearer to the floor, what SHARE makes it.
    """
    limit = torch.minimum(scores.amax(-1), floor - math.log(SHARE))
    zeros = ((floor - limit) / math.log(2)).floor() - 1  # leading bits of u; one fewer, so that no rounding matters
    leading = -(1 << (64 - zeros.long()))[:, None]
    counters = torch.arange(1, scores.shape[1] + 1, device=scores.device) * _GAMMA
    near = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    for part, count, found in zip(scores.split(width, 1), counters.split(width), near.split(width, 1), strict=True):
        bits = states[:, None] + count
        shifted = torch.empty_like(bits)
        for shift, mix in ((30, _MIX_1), (27, _MIX_2)):  # the last step of SplitMix64 leaves the upper bits alone
            torch.bitwise_right_shift(bits, shift, out=shifted).bitwise_and_((1 << (64 - shift)) - 1)
            bits.bitwise_xor_(shifted).mul_(mix)
        torch.eq(bits.bitwise_and_(leading), 0, out=found).logical_or_(part > limit[:, None])
    return near.nonzero(as_tuple=True)


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
        position = input_ids.shape[1] - self.prompt_length
        return sampled_scores(scores, self.keys, position, self.temperature, self.top_p)


def _split_mix(state: Tensor) -> Tensor:
    """Output function of SplitMix64 on each element of a long tensor."""
    state = (state ^ _shift_right(state, 30)) * _MIX_1
    state = (state ^ _shift_right(state, 27)) * _MIX_2
    return state ^ _shift_right(state, 31)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical shift; `>>` alone would carry the sign along."""
    return (bits >> count) & ((1 << (64 - count)) - 1)

"""Advantages of GRPO, and the chain-of-thought entropy that EGPO adds to them (arXiv 2508.05118, equations 1, 4 and 5).

A reward is what a completion scored; an advantage is what the update makes of it. The entropy is that of the rollout
policy (temperature included), and no gradient flows through it: the paper leaves both open.
Letters: P prompts, G completions of each, R rollouts, N completion tokens of them.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

STD_EPSILON = 1e-6
EntropyLevel = Literal["rollout_cot", "token", "token_cot"]
ENTROPY_LEVELS = get_args(EntropyLevel)


class BonusParts(NamedTuple):
    """The shaped advantages, the entropy bonus in them and the terms of its minimum; all of the advantages' shape.

    Attributes:
        shaped: A + bonus, what the policy learns from.
        bonus: The smaller of the two terms below.
        raw: lambda E, before the cap.
        cap: |A| / alpha.
        capped: Whether the cap is the smaller one, bool; never where A is 0, whose cap says nothing.
    """

    shaped: Tensor
    bonus: Tensor
    raw: Tensor
    cap: Tensor
    capped: Tensor


@dataclass(frozen=True)
class EntropyBonus:
    """EGPO's entropy bonus: its settings, and when called the advantages that it shapes.

    Attributes:
        scale: lambda; 0 is plain GRPO.
        divisor: alpha; the bonus is at most |A| / alpha.
        level: Whose entropy, see `shaping_entropy`: the rollout's mean over its chain of thought ("rollout_cot", EGPO),
            or the token's own ("token", or "token_cot" for those of the chain of thought alone).

    Raises:
        ValueError: A setting is out of its range.
    """

    scale: float = 0.4
    divisor: float = 2.0
    level: EntropyLevel = "rollout_cot"

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf or not self.divisor > 1 or self.level not in ENTROPY_LEVELS:
            raise ValueError(
                "model.entropy_bonus.scale must be a number from 0 up, model.entropy_bonus.divisor greater than 1 and "
                f"model.entropy_bonus.level one of {', '.join(ENTROPY_LEVELS)}, got {self.scale}, {self.divisor} and "
                f"{self.level!r}."
            )

    def __call__(self, advantages: Tensor, entropy: Tensor) -> BonusParts:
        """Advantages [M] shaped by entropies [M], in nats: see `entropy_bonus`."""
        return entropy_bonus(advantages, entropy, self.scale, self.divisor)

    def described(self) -> str:
        """Its settings in words."""
        return f"entropy scale {self.scale:g} ({self.level})"


def group_advantages(rewards: Tensor, scale: Literal["std", "none"] = "std", valid: Tensor | None = None) -> Tensor:
    """Rewards relative to their group, (r - mean) / (std + 1e-6) (arXiv 2508.05118, eq. 1; arXiv 2402.03300).

    A group whose rewards are all equal gets exactly 0. A comparison finds it: a rounded mean and a division by a tiny
    deviation could give it an advantage.

    Args:
        rewards: Scores of the G completions of each prompt, [P, G], of any dtype.
        scale: "std" divides by the deviation of the group (n - 1 below the root); "none" only subtracts the mean
            (Dr. GRPO, arXiv 2503.20783).
        valid: Which completions have a reward, [P, G], bool; all when None. Mean and deviation are those of the valid
            ones; the others have no part in them, whatever stands in their place, and advantage 0.

    Returns:
        Advantages, [P, G], float32 at least; 0 in a group with fewer than two valid completions.

    Raises:
        ValueError: If shapes are wrong, a valid reward is not finite, or the scale is unknown.
    """
    if rewards.ndim != 2:
        raise ValueError(f"rewards must be [P, G], got {list(rewards.shape)}.")
    valid = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid
    if valid.shape != rewards.shape:
        raise ValueError(f"valid must be of the shape of the rewards, {list(rewards.shape)}, got {list(valid.shape)}.")
    if scale not in ("std", "none"):
        raise ValueError(f"scale must be 'std' or 'none', got {scale!r}.")
    if not torch.isfinite(rewards[valid]).all():
        raise ValueError("rewards must be finite: one NaN would spread over its whole group.")
    scores = rewards.to(torch.promote_types(rewards.dtype, torch.float32)).where(valid, 0.0)
    n = valid.sum(dim=1, keepdim=True)  # [P, 1]
    advantages = (scores - scores.sum(dim=1, keepdim=True) / n.clamp(min=1)).where(valid, 0.0)
    if scale == "std":
        variance = advantages.square().sum(dim=1, keepdim=True) / (n - 1).clamp(min=1)
        advantages = advantages / (variance.sqrt() + STD_EPSILON)
    return torch.where(zero_std_groups(rewards, valid)[:, None], 0.0, advantages)


def zero_std_groups(rewards: Tensor, valid: Tensor) -> Tensor:
    """Mask of the groups whose valid rewards are all equal, so that no completion has an advantage.

    Args:
        rewards: [P, G].
        valid: [P, G], bool.

    Returns:
        [P], bool.
    """
    first = rewards.gather(1, valid.long().argmax(dim=1, keepdim=True))  # [P, 1], of the first valid one
    return ((rewards == first) | ~valid).all(dim=1)


def entropy_bonus(
    advantages: Tensor, cot_entropy: Tensor, entropy_scale: float = 0.4, clip_divisor: float = 2.0
) -> BonusParts:
    """A + min(entropy_scale * E, |A| / clip_divisor), equation 5 of arXiv 2508.05118, and the parts of it.

    Args:
        advantages: A, of any shape.
        cot_entropy: E in nats, of a shape that broadcasts to that of A; treated as a constant, and as 0 where rounding
            has made it negative.
        entropy_scale: lambda, at least 0; with 0 there is no bonus, whatever the entropy.
        clip_divisor: alpha, greater than 1.

    Returns:
        The shaped advantages and their parts.

    Raises:
        ValueError: If an argument is out of its range.
    """
    if not 0 <= entropy_scale < math.inf or not clip_divisor > 1:
        raise ValueError(
            f"entropy_scale must be a number from 0 up and clip_divisor greater than 1, got {entropy_scale} and "
            f"{clip_divisor}."
        )
    raw = entropy_scale * cot_entropy.detach().clamp(min=0).expand_as(advantages)
    if entropy_scale == 0:
        raw = torch.zeros_like(advantages)
    cap = advantages.abs() / clip_divisor
    bonus = torch.minimum(raw, cap)
    shaped = advantages if entropy_scale == 0 else advantages + bonus  # adding 0 would turn -0.0 into 0.0
    return BonusParts(shaped, bonus, raw, cap, (advantages != 0) & (raw > cap))


def entropy_shaped_advantages(
    advantages: Tensor, cot_entropy: Tensor, entropy_scale: float = 0.4, clip_divisor: float = 2.0
) -> Tensor:
    """A + min(entropy_scale * E, |A| / clip_divisor): uncertain reasoning is rewarded more and punished less.

    Equation 5 of arXiv 2508.05118 (lambda is `entropy_scale`, alpha is `clip_divisor`). The bonus is never negative and
    smaller than |A|, so that no sign flips, and an advantage of 0 stays 0. With a scale of 0 the advantages come back
    as they are. Elementwise: one value per rollout, or one per token (arXiv 2506.14758) with `shaping_entropy`.

    Args:
        advantages: See `entropy_bonus`, and so for the others.
        cot_entropy: E.
        entropy_scale: lambda.
        clip_divisor: alpha.

    Returns:
        Shaped advantages, of the shape of A.

    Raises:
        ValueError: If an argument is out of its range.
    """
    return entropy_bonus(advantages, cot_entropy, entropy_scale, clip_divisor).shaped


def mean_cot_entropy(entropy: Tensor, cot: Tensor, samples: Tensor, rollouts: int) -> Tensor:
    """E of each rollout: the mean entropy of its chain-of-thought tokens (arXiv 2508.05118, eq. 4); 0 without any.

    Args:
        entropy: Entropy of the distribution each token was drawn from, [N], floating.
        cot: Whether the token lies strictly between the think tags, [N], bool.
        samples: Which rollout the token belongs to, [N], long, in [0, rollouts) where `cot`.
        rollouts: R.

    Returns:
        Mean entropies in nats, [R], float32 at least, detached.

    Raises:
        ValueError: If shapes disagree.
    """
    _check(entropy, cot, samples)
    values = entropy.detach()[cot].to(torch.promote_types(entropy.dtype, torch.float32))
    sums, counts = (values.new_zeros(rollouts).index_add(0, samples[cot], x) for x in (values, torch.ones_like(values)))
    return sums / counts.clamp(min=1)


def shaping_entropy(
    entropy: Tensor, cot: Tensor, samples: Tensor, rollouts: int, level: EntropyLevel = "rollout_cot"
) -> Tensor:
    """E of each token, for `entropy_shaped_advantages(advantages[samples], ...)`.

    Args:
        entropy: As in `mean_cot_entropy`.
        cot: As in `mean_cot_entropy`.
        samples: As in `mean_cot_entropy`, in [0, rollouts) throughout.
        rollouts: R.
        level: "rollout_cot" gives every token of a rollout its mean over the chain of thought (EGPO); "token" gives
            each token its own entropy (arXiv 2506.14758); "token_cot" does so in the chain of thought, 0 elsewhere.

    Returns:
        Entropies in nats, [N], float32 at least, detached.

    Raises:
        ValueError: If shapes disagree or the level is unknown.
    """
    if level == "rollout_cot":
        return mean_cot_entropy(entropy, cot, samples, rollouts)[samples]
    _check(entropy, cot, samples)
    if level not in ("token", "token_cot"):
        raise ValueError(f"level must be 'rollout_cot', 'token' or 'token_cot', got {level!r}.")
    values = entropy.detach().to(torch.promote_types(entropy.dtype, torch.float32))
    return values if level == "token" else torch.where(cot, values, 0)


def overlong_penalty(lengths: Tensor, max_length: int, buffer: int) -> Tensor:
    """Soft penalty on long completions (DAPO, arXiv 2503.14476, section 3.4), to be added to their rewards.

    It is 0 up to `max_length - buffer` tokens and falls linearly from there, to -1 at `max_length`.

    Args:
        lengths: Tokens of each completion, any shape.
        max_length: Tokens at which the whole penalty is due.
        buffer: Tokens over which it grows, in [1, max_length].

    Returns:
        Penalties, at most 0, of the shape of `lengths`, float32.

    Raises:
        ValueError: If the buffer is out of its range.
    """
    if not 1 <= buffer <= max_length:
        raise ValueError(f"buffer must lie in [1, max_length {max_length}], got {buffer}.")
    return -((lengths - (max_length - buffer)).to(torch.float32) / buffer).clamp(min=0)


def _check(entropy: Tensor, cot: Tensor, samples: Tensor) -> None:
    if entropy.ndim != 1 or cot.shape != entropy.shape or samples.shape != entropy.shape:
        shapes = [list(tensor.shape) for tensor in (entropy, cot, samples)]
        raise ValueError(f"entropy, cot and samples must all be [N], got {shapes}.")

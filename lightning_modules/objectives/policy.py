"""The clipped policy loss of GRPO and its relatives, on flat completion tokens.

Letters: N completion tokens of a micro-batch, from any number of rollouts, whose tokens are never split over two.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
KL_LIMIT = 10.0
Aggregation = Literal["token_mean", "seq_mean", "dr_grpo"]
RatioLevel = Literal["token", "sequence"]
PUBLISHED: dict[str, tuple[float, float, Aggregation]] = {
    "token": (0.2, 0.2, "token_mean"),  # verl's defaults, with which EGPO was trained (arXiv 2508.05118)
    "sequence": (3e-4, 4e-4, "seq_mean"),  # GSPO (arXiv 2507.18071, eq. 5 and 5.1)
}
"""clip_low, clip_high and aggregation of the method that a level of the ratio belongs to."""


class PolicyTotals(NamedTuple):
    """Counts over a whole optimizer step, all micro-batches and ranks: the denominators of the loss.

    Attributes:
        rollouts: Rollouts that take part in the step.
        tokens: Their completion tokens.
    """

    rollouts: float | Tensor
    tokens: float | Tensor


@dataclass(frozen=True)
class PolicyLoss:
    """The policy loss: its settings, and when called `policy_loss` with them.

    A loss of one's own is a subclass (a frozen dataclass, too, if it has settings) whose `__call__` returns something
    else. The training asks it for `kl_coef`, by which there is a reference or none, and calls it.

    Attributes:
        clip_low: A ratio below 1 - clip_low gains nothing where the advantage is negative; when None what goes with
            `ratio_level` (`PUBLISHED`): 0.2 by token, 3e-4 by sequence.
        clip_high: A ratio above 1 + clip_high gains nothing where the advantage is positive (apart: arXiv 2503.14476);
            0.2 by token, 4e-4 by sequence when None.
        dual_clip: Where the advantage is negative the loss is at most -dual_clip * A (arXiv 1912.09729); None for no
            bound.
        aggregation: "token_mean" is the mean over all tokens of the step; "seq_mean" the mean over rollouts of their
            token means (arXiv 2402.03300); "dr_grpo" the sum over tokens / (rollouts * max_length) (arXiv 2503.20783);
            "token_mean" by token and "seq_mean" by sequence when None.
        ratio_level: "token" is p(token) / p_old(token). "sequence" is the geometric mean of these over the rollout,
            whose gradient reaches each token with its own advantage (GSPO-token, arXiv 2507.18071, 4.3); with the
            settings above at None it is GSPO as published.
        kl_coef: Weight of the KL with the reference: the model without its adapters where LoRA is used, else a frozen
            copy of the initial weights; with 0 there is no reference.

    Raises:
        ValueError: A setting is out of its range.
    """

    clip_low: float | None = None
    clip_high: float | None = None
    dual_clip: float | None = None
    aggregation: Aggregation | None = None
    ratio_level: RatioLevel = "token"
    kl_coef: float = 0.001

    def __post_init__(self) -> None:
        if not 0 <= self.kl_coef < math.inf:
            raise ValueError(f"model.loss.kl_coef is {self.kl_coef}; give a number from 0 up.")
        low, high, aggregation = with_published_defaults(
            self.clip_low, self.clip_high, self.aggregation, self.ratio_level, where="model.loss."
        )
        _check_settings(low, high, self.dual_clip, aggregation, where="model.loss.")

    def __call__(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        samples: Tensor,
        *,
        weights: Tensor | None = None,
        ref_logprobs: Tensor | None = None,
        totals: PolicyTotals | None = None,
        max_length: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a micro-batch and its parts, as `policy_loss` returns them; see there for the tensors.

        `totals` are those of the whole optimizer step, `max_length` the most tokens that a completion can have.
        """
        settings = {field.name: getattr(self, field.name) for field in fields(PolicyLoss)}  # a subclass may have more
        return policy_loss(
            logprobs,
            old_logprobs,
            advantages,
            samples,
            weights=weights,
            ref_logprobs=ref_logprobs,
            totals=totals,
            max_length=max_length,
            **settings,
        )

    def described(self) -> str:
        """The settings but for the KL, in words for the table of a run."""
        low, high, aggregation = with_published_defaults(
            self.clip_low, self.clip_high, self.aggregation, self.ratio_level
        )
        return f"ratio by {self.ratio_level}, clipped at 1 - {low:g} and 1 + {high:g}; {aggregation}"


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) from sampled tokens: r - log r - 1, r = p_ref / p (arXiv 2402.03300, eq. 4).

    The logarithm of r is kept within 20 and the estimate at most 10, beyond which no gradient flows: one token that the
    reference finds absurd must not rule the step.

    Args:
        logprobs: Log-probabilities under the policy.
        ref_logprobs: Those under the reference, of the same shape.

    Returns:
        Estimates, at least 0, of the same shape.
    """
    log_ratio = (ref_logprobs - logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return (torch.expm1(log_ratio) - log_ratio).clamp(max=KL_LIMIT)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    samples: Tensor,
    *,
    clip_low: float | None = None,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    aggregation: Aggregation | None = None,
    ratio_level: RatioLevel = "token",
    max_length: int | None = None,
    weights: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    kl_coef: float = 0.0,
    totals: PolicyTotals | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate, -min(rho A, clip(rho) A) + kl_coef * KL, over completion tokens (arXiv 2508.05118, eq. 2).

    With `totals` given, the losses of any split into micro-batches and ranks add up to the loss of the whole step, and
    so do the parts that are sums. Only `logprobs` receives a gradient.

    Args:
        logprobs: Log-probabilities under the policy, [N], floating; computed with in float32 at least.
        old_logprobs: Those under the policy that is held fixed while this batch of rollouts is learnt from, [N].
        advantages: Of each token, [N]; those of rollouts are `advantages[samples]`.
        samples: Which rollout the token belongs to, [N], long; below 0 it is ignored (not even a NaN there counts).
        clip_low: See `PolicyLoss`, as for the next four; rho is the ratio.
        clip_high: Bound of rho above 1.
        dual_clip: Bound of the loss where the advantage is negative.
        aggregation: What the mean is over.
        ratio_level: Whether rho is of each token or of the whole rollout.
        max_length: Greatest number of tokens of a completion; needed for "dr_grpo".
        weights: Importance weights that the surrogate (not the KL) of each token is multiplied by, [N].
        ref_logprobs: Log-probabilities under the reference, [N]; without them there is no KL.
        kl_coef: Weight of the KL, aggregated as the surrogate is.
        totals: Counts of the whole optimizer step; counted from the arguments when None.

    Returns:
        The loss (0-dim; 0 and in the graph of `logprobs` if all is ignored) and detached 0-dim parts. Sums: "loss"
        (the surrogate's term alone), "kl" (over tokens, k3), "clip_low", "clip_high" and "clip_dual" (tokens that the
        bound in question holds back), "ratio", "tokens", "rollouts" (of this micro-batch). Extreme: "ratio_max".

    Raises:
        ValueError: If shapes disagree or an argument is out of its range.
    """
    optional = [tensor for tensor in (weights, ref_logprobs) if tensor is not None]
    _check_shapes(logprobs, old_logprobs, advantages, samples, *optional)
    clip_low, clip_high, aggregation = with_published_defaults(clip_low, clip_high, aggregation, ratio_level)
    _check_settings(clip_low, clip_high, dual_clip, aggregation)
    if aggregation == "dr_grpo" and (max_length is None or max_length < 1):
        raise ValueError(f"aggregation 'dr_grpo' needs a max_length of at least 1, got {max_length}.")
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    counted = samples >= 0
    logprobs = torch.where(counted, logprobs, 0).to(dtype)
    old, advantage = (torch.where(counted, x.detach(), 0).to(dtype) for x in (old_logprobs, advantages))
    present, group = torch.unique(torch.where(counted, samples, -1), return_inverse=True)
    lengths = logprobs.new_zeros(len(present)).index_add(0, group, torch.ones_like(old))
    n_rollouts, n_tokens = (present >= 0).sum().to(dtype), counted.sum().to(dtype)
    share = _shares(PolicyTotals(n_rollouts, n_tokens) if totals is None else totals, aggregation, lengths, max_length)

    ratio = _ratio(logprobs, old, group, lengths, ratio_level)
    surrogate = _surrogate(ratio, advantage, clip_low, clip_high, dual_clip)
    if weights is not None:
        surrogate = surrogate * torch.where(counted, weights.detach(), 0)
    share = torch.where(counted, share.expand(len(present))[group], 0)  # [N]
    policy_term = loss = (share * surrogate).sum()
    kl = torch.zeros_like(old)
    if ref_logprobs is not None:
        kl = kl_k3(logprobs, torch.where(counted, ref_logprobs.detach(), 0).to(dtype))
        loss = policy_term + kl_coef * (share * kl).sum()
    return loss, {
        "loss": policy_term.detach(),
        "kl": kl.detach().sum(),
        **_ratio_parts(torch.where(counted, ratio.detach(), 0), advantage, clip_low, clip_high, dual_clip),
        "tokens": n_tokens,
        "rollouts": n_rollouts,
    }


def with_published_defaults(
    clip_low: float | None,
    clip_high: float | None,
    aggregation: Aggregation | None,
    ratio_level: RatioLevel,
    where: str = "",
) -> tuple[float, float, Aggregation]:
    """clip_low, clip_high and aggregation, with those of `PUBLISHED` in the place of None.

    Raises:
        ValueError: If there is no such level; its name follows `where`.
    """
    if ratio_level not in PUBLISHED:
        raise ValueError(f"{where}ratio_level must be 'token' or 'sequence', got {ratio_level!r}.")
    low, high, mean = PUBLISHED[ratio_level]
    return low if clip_low is None else clip_low, high if clip_high is None else clip_high, aggregation or mean


def _ratio(logprobs: Tensor, old_logprobs: Tensor, group: Tensor, lengths: Tensor, level: RatioLevel) -> Tensor:
    """The ratio of each token, [N], or that of its rollout, with the gradient that the level asks for."""
    log_ratio = logprobs - old_logprobs
    if level == "sequence":
        mean = torch.zeros_like(lengths).index_add(0, group, log_ratio.detach()) / lengths
        log_ratio = mean[group] + (logprobs - logprobs.detach())  # the bracket is 0 and carries the gradient
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def _surrogate(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None) -> Tensor:
    """Loss of each token, [N]: -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) (arXiv 2508.05118, eq. 2)."""
    surrogate = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))
    if dual_clip is None:
        return surrogate
    return torch.where(advantages < 0, torch.minimum(surrogate, -advantages * dual_clip), surrogate)


def _ratio_parts(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float, dual_clip: float | None
) -> dict[str, Tensor]:
    """The parts of `policy_loss` on the ratio of each token, [N]; ratio and advantage are 0 where it is ignored."""
    worse, better = advantages < 0, advantages > 0
    return {
        "clip_low": (worse & (ratio < 1 - clip_low)).sum().to(ratio.dtype),
        "clip_high": (better & (ratio > 1 + clip_high)).sum().to(ratio.dtype),
        "clip_dual": (worse & (ratio > (torch.inf if dual_clip is None else dual_clip))).sum().to(ratio.dtype),
        "ratio": ratio.sum(),
        "ratio_max": torch.cat([ratio, ratio.new_zeros(1)]).max(),  # 0 without tokens: every ratio is above
    }


def _shares(totals: PolicyTotals, aggregation: Aggregation, lengths: Tensor, max_length: int | None) -> Tensor:
    """What a token's loss is multiplied by in the loss of the step: for each rollout of `lengths`, or one for all."""
    rollouts, tokens = (torch.as_tensor(n, dtype=lengths.dtype, device=lengths.device).clamp(min=1) for n in totals)
    if aggregation == "token_mean":
        return 1 / tokens
    if aggregation == "seq_mean":
        return 1 / (rollouts * lengths)
    return 1 / (rollouts * float(max_length or 0))  # checked to be there


def _check_shapes(*tensors: Tensor) -> None:
    if any(tensor.ndim != 1 or tensor.shape != tensors[0].shape for tensor in tensors):
        raise ValueError(f"Every tensor must be [N], got {[list(tensor.shape) for tensor in tensors]}.")


def _check_settings(
    clip_low: float, clip_high: float, dual_clip: float | None, aggregation: str, where: str = ""
) -> None:
    if not 0 <= clip_low <= 1 or not clip_high >= 0:
        raise ValueError(
            f"{where}clip_low must lie in [0, 1] and {where}clip_high be at least 0, got {clip_low} and {clip_high}."
        )
    if dual_clip is not None and not dual_clip > 1 + clip_high:
        raise ValueError(
            f"{where}dual_clip must be greater than 1 + clip_high, got {dual_clip} with clip_high {clip_high}."
        )
    if aggregation not in ("token_mean", "seq_mean", "dr_grpo"):
        raise ValueError(f"{where}aggregation must be 'token_mean', 'seq_mean' or 'dr_grpo', got {aggregation!r}.")

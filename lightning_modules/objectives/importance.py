"""Importance sampling for a sampler whose probabilities are not quite the policy's (other engine, precision, kernel).

Each token's loss is multiplied by p_policy / p_sampler, cut off at a cap: truncated importance sampling. Both sides
must be at the same temperature, and the sampler must not have cut its distribution (top-p, top-k).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_modules.objectives.policy import LOG_RATIO_LIMIT


@dataclass(frozen=True)
class ImportanceSampling:
    """Truncated importance sampling: its settings, and when called the importance weights of sampled tokens.

    Attributes:
        cap: Greatest weight of a token; None corrects nothing.
        above: What tokens above the cap weigh: the cap ("truncate") or nothing ("mask").

    Raises:
        ValueError: A setting is out of its range.
    """

    cap: float | None = 2.0
    above: Literal["truncate", "mask"] = "truncate"

    def __post_init__(self) -> None:
        if self.cap is not None and not self.cap > 0:
            raise ValueError(f"model.importance_sampling.cap is {self.cap}; give a number greater than 0, or null.")
        if self.above not in ("truncate", "mask"):
            raise ValueError(f"model.importance_sampling.above is {self.above!r}; give truncate or mask.")

    def __call__(self, old_logprobs: Tensor, sampling_logprobs: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Weights [N] and parts, see `truncated_importance_weights`; None and no parts without a cap."""
        if self.cap is None:
            return None, {}
        return truncated_importance_weights(old_logprobs, sampling_logprobs, self.cap, self.above)


def truncated_importance_weights(
    old_logprobs: Tensor, sampling_logprobs: Tensor, cap: float = 2.0, above: Literal["truncate", "mask"] = "truncate"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weights min(p_policy / p_sampler, cap) of sampled tokens, and how far apart the two distributions are.

    Args:
        old_logprobs: Log-probabilities under the policy as it was when the tokens were sampled, [N].
        sampling_logprobs: The sampler's own log-probabilities of the same tokens, [N].
        cap: Greatest weight; greater than 0.
        above: What a token whose ratio is above the cap weighs: the cap, or nothing.

    Returns:
        Weights [N], float32 at least, detached, and 0-dim parts of the ratios before the cap, a difference of more than
        `LOG_RATIO_LIMIT` nats taken for one of so many. Sums, which add up over micro-batches: "tokens",
        "ratio", "ratio_squared", "capped" (tokens above the cap) and "logprob_gap" (|difference|). Extremes:
        "ratio_min" (infinite without tokens), "ratio_max" and "logprob_gap_max".
        The effective sample size, as a share of the tokens, is ratio^2 / (tokens * ratio_squared).

    Raises:
        ValueError: If shapes disagree or an argument is out of its range.
    """
    if old_logprobs.ndim != 1 or sampling_logprobs.shape != old_logprobs.shape:
        shapes = [list(old_logprobs.shape), list(sampling_logprobs.shape)]
        raise ValueError(f"old_logprobs and sampling_logprobs must both be [N], got {shapes}.")
    if not cap > 0 or above not in ("truncate", "mask"):
        raise ValueError(f"cap must be greater than 0 and above 'truncate' or 'mask', got {cap} and {above!r}.")
    dtype = torch.promote_types(old_logprobs.dtype, torch.float32)
    gap = (old_logprobs.to(dtype) - sampling_logprobs.to(dtype)).detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = gap.exp()
    capped = ratio > cap
    weights = torch.where(capped, cap if above == "truncate" else 0.0, ratio)
    zero, infinity = ratio.new_zeros(1), ratio.new_full((1,), torch.inf)  # so that no extreme is one of nothing
    return weights, {
        "tokens": ratio.new_tensor(len(ratio)),
        "ratio": ratio.sum(),
        "ratio_squared": ratio.square().sum(),
        "capped": capped.sum().to(dtype),
        "logprob_gap": gap.abs().sum(),
        "ratio_min": torch.cat([ratio, infinity]).min(),
        "ratio_max": torch.cat([ratio, zero]).max(),
        "logprob_gap_max": torch.cat([gap.abs(), zero]).max(),
    }

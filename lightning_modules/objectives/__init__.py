"""The training objectives as functions of tensors: losses, advantages, log-probabilities; no models, no trainers."""

from lightning_modules.objectives.advantages import (
    EntropyBonus,
    entropy_bonus,
    entropy_shaped_advantages,
    group_advantages,
    mean_cot_entropy,
    overlong_penalty,
    shaping_entropy,
    zero_std_groups,
)
from lightning_modules.objectives.importance import ImportanceSampling, truncated_importance_weights
from lightning_modules.objectives.logprobs import linear_logprobs, linear_scores
from lightning_modules.objectives.policy import PolicyLoss, PolicyTotals, kl_k3, policy_loss
from lightning_modules.objectives.srml import Totals, multiscale_loss

__all__ = [
    "EntropyBonus",
    "ImportanceSampling",
    "PolicyLoss",
    "PolicyTotals",
    "Totals",
    "entropy_bonus",
    "entropy_shaped_advantages",
    "group_advantages",
    "kl_k3",
    "linear_logprobs",
    "linear_scores",
    "mean_cot_entropy",
    "multiscale_loss",
    "overlong_penalty",
    "policy_loss",
    "shaping_entropy",
    "truncated_importance_weights",
    "zero_std_groups",
]

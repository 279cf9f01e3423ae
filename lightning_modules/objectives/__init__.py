"""Mathematics of the training objectives: tensors in, loss and parts out; nothing here knows of models or trainers."""

from lightning_modules.objectives.advantages import (
    EntropyBonus,
    alike_groups,
    entropy_bonus,
    entropy_shaped_advantages,
    group_advantages,
    mean_cot_entropy,
    overlong_penalty,
    shaping_entropy,
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
    "alike_groups",
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
]

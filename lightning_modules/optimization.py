"""The arithmetic of optimization: which weights decay, how the learning rate runs, the norm that clips gradients."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.policy.unshard import FSDP1_PREFIX, unshard


def decay_groups(policy: nn.Module, sizes: Mapping[str, torch.Size], weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups in the order of `named_parameters`: matrices, which decay, and vectors, which do not.

    Args:
        policy: The model, sharded or not; what it does not train is in no group.
        sizes: Of its weights by name, before any strategy cut them into shards, which may be flat.
        weight_decay: Decay of the matrices.
    """
    trained = [(name.replace(FSDP1_PREFIX, ""), p) for name, p in policy.named_parameters() if p.requires_grad]
    matrices = {name for name, size in sizes.items() if len(size) > 1}
    groups = [
        {"params": [p for name, p in trained if name in matrices], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if name not in matrices], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def warmed_up(optimizer: Optimizer, schedule: Literal["cosine", "constant"], warmup: int, total: int) -> LambdaLR:
    """The schedule of a run of `total` steps, `warmup` of which the rates climb, and then run as `schedule` names."""
    factor = warmup_cosine if schedule == "cosine" else warmup_constant
    return LambdaLR(optimizer, lambda step: factor(step, warmup, total))


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor of the peak rate at a step counted from 0: (step + 1) / warmup, then a cosine to 0 at `total`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def warmup_constant(step: int, warmup: int, total: int) -> float:
    """Factor of the peak rate at a step counted from 0: (step + 1) / warmup, then 1."""
    return min(1.0, (step + 1) / max(1, warmup))


def clip_to_norm(policy: nn.Module, max_norm: float) -> float:
    """Scale gradients down to at most this norm, over all shards, and return their norm before that."""
    if isinstance(policy, FullyShardedDataParallel):
        return float(policy.clip_grad_norm_(max_norm))
    gradients = [p for p in policy.parameters() if p.grad is not None]
    return float(unshard(torch.nn.utils.clip_grad_norm_(gradients, max_norm)))

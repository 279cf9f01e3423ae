"""The policy that the KL is measured against: the weights a run started from."""

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from lightning_modules.gathering import whole
from lightning_modules.models import ScoredCausalLM

PREFIX = "reference."
"""Of the frozen copy's names in the state dict of the module that holds it."""
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By their size in bytes."""


def frozen_copy(policy: ScoredCausalLM) -> ScoredCausalLM:
    """A copy that neither learns nor drops anything out."""
    return copy.deepcopy(policy).requires_grad_(False).eval()


@contextmanager
def reference_policy(policy: ScoredCausalLM, frozen: ScoredCausalLM | None) -> Iterator[ScoredCausalLM]:
    """The frozen copy or, without one, the policy with its adapters off: the weights below them never move."""
    if frozen is not None:
        yield frozen
        if isinstance(frozen, FSDPModule):
            frozen.reshard()  # embedding and head, which FSDP2 leaves whole, through the whole update
        return
    with policy.model.disable_adapter():
        yield policy


def fingerprint(model: nn.Module) -> str:
    """A hash of names, shapes and weights that no device or order of summation changes; a collective over shards."""
    digest = hashlib.blake2b(digest_size=16)
    for name, shard in model.state_dict().items():
        weight = whole(shard)
        words = weight.detach().contiguous().view(INTEGERS[weight.element_size()])
        digest.update(f"{name} {tuple(weight.shape)} {int(words.sum(dtype=torch.int64))}".encode())
    return digest.hexdigest()


def drop_reference(checkpoint: dict[str, Any], init_from: str, frozen: ScoredCausalLM) -> None:
    """Leave the frozen copy out of a checkpoint; where it came from and its fingerprint take its place."""
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {name: weight for name, weight in state.items() if not name.startswith(PREFIX)}
    checkpoint["reference"] = {"init_from": init_from, "fingerprint": fingerprint(frozen)}


def check_reference(checkpoint: dict[str, Any], init_from: str, frozen: ScoredCausalLM) -> None:
    """Refuse a checkpoint beside which there was another frozen copy.

    Raises:
        ValueError: If this run's is not the one that the checkpoint was written beside.
    """
    saved = checkpoint.get("reference")
    if saved and saved["fingerprint"] != fingerprint(frozen):
        raise ValueError(
            f"model.init_from {init_from} does not hold the weights that the checkpoint's run started from "
            f"({saved['init_from']}), against which its KL is measured: give those."
        )


def restore_reference(checkpoint: dict[str, Any], frozen: ScoredCausalLM) -> None:
    """Put this run's frozen copy where the checkpoint has none."""
    checkpoint["state_dict"] |= {PREFIX + name: weight for name, weight in frozen.state_dict().items()}

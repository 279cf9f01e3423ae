"""The reference policy of the KL: the weights that a run started from."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule

from lightning_modules.policy.model import ScoredCausalLM

PREFIX = "reference."
"""Of the frozen copy's names in the state dict of the module that holds it."""


def frozen_copy(policy: ScoredCausalLM, shared: bool = False) -> ScoredCausalLM:
    """A frozen copy of a model, in eval mode.

    Args:
        policy: The model.
        shared: Leave the weights in the model's memory, for a strategy that copies them out of it into shards; the
            host need not hold them twice then.
    """
    aliases = {id(weight): nn.Parameter(weight.data) for weight in policy.parameters()} if shared else {}
    return copy.deepcopy(policy, aliases).requires_grad_(False).eval()


@contextmanager
def reference_policy(policy: ScoredCausalLM, frozen: ScoredCausalLM | None) -> Iterator[ScoredCausalLM]:
    """Context with the reference: the frozen copy or, without one, the policy with its adapters disabled."""
    if frozen is not None:
        yield frozen
        if isinstance(frozen, FSDPModule):
            frozen.reshard()  # embedding and head, which FSDP2 leaves whole, through the whole update
        return
    with policy.model.disable_adapter():
        yield policy

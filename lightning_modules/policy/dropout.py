"""A policy without dropout: in eval mode for a while, or in updates, which score tokens as when they were sampled."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(policy: nn.Module) -> Iterator[None]:
    """Context in eval mode; afterwards each module is in the mode that it was in."""
    modes = [(module, module.training) for module in policy.modules()]
    policy.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def disable_dropout(policy: nn.Module) -> None:
    """Switch off dropout but keep gradients, and the recomputation of activations.

    That also leaves out other noise of train mode, such as the jitter of some routers. Modules recompute activations in
    train mode only; theirs stays, and their own probabilities become 0.

    Args:
        policy: Changed in place, down to its last module.
    """
    policy.eval()
    for module in policy.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
            for name, value in vars(module).items():
                if "drop" in name and isinstance(value, float):  # families call it dropout, layerdrop, resid_pdrop, ...
                    setattr(module, name, 0.0)

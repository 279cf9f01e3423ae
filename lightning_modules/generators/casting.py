"""Linear weights in the dtype of autocast for a while, so that not every call of a layer casts them anew."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def cast_once(model: nn.Module) -> Iterator[None]:
    """Under autocast, give each linear layer weights that are cast already; what comes out is equal to the last bit.

    The cache of autocast, which Lightning turns off, would keep them only where they require gradients. A weight that
    is shared with an embedding stays as it is there: autocast casts no embeddings. Takes the memory of the copies, and
    gives the layers their own weights back, whatever happens. Without autocast nothing is changed.

    Args:
        model: The model, on one device; not sharded.
    """
    device = next(model.parameters()).device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)] if dtype else []
    own = [(layer, name, layer._parameters[name]) for layer in layers for name in ("weight", "bias")]
    changed = [(layer, name, value) for layer, name, value in own if value is not None and value.dtype == torch.float32]
    copies: dict[int, nn.Parameter] = {}
    try:
        for layer, name, value in changed:
            if id(value) not in copies:
                copies[id(value)] = nn.Parameter(value.detach().to(dtype), requires_grad=False)
            layer._parameters[name] = copies[id(value)]
        yield
    finally:
        for layer, name, value in changed:
            layer._parameters[name] = value

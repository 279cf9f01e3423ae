"""Linear weights as products take them, in the dtype of autocast and in the layout of oneDNN, for a while.

Otherwise every call of a layer casts them anew and, on a CPU, arranges them anew, which costs more than a product with
few rows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def cast_once(model: nn.Module) -> Iterator[None]:
    """Give each linear layer weights that are cast and, on a CPU, packed already.

    What comes out is equal to the last bit in bfloat16; in float32 sums are in another order. The cache of autocast,
    which Lightning turns off, would keep weights only where they require gradients. A weight that is shared with an
    embedding stays as it is there: autocast casts no embeddings. Takes the memory of the copies, and gives the layers
    their own weights back, whatever happens. Without autocast nothing is changed on other devices than a CPU.

    Args:
        model: The model, on one device; not sharded.
    """
    device = next(model.parameters()).device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    packed = [layer for layer in layers if _can_pack(layer, dtype or layer.weight.dtype)]
    apart = set(layers).difference(packed) if dtype else ()
    own = [(layer, name, layer._parameters[name]) for layer in apart for name in ("weight", "bias")]
    changed = [(layer, name, value) for layer, name, value in own if value is not None and value.dtype == torch.float32]
    copies: dict[int, Tensor] = {}
    try:
        for layer in packed:
            if id(layer.weight) not in copies:
                weight = layer.weight.detach().to(dtype or layer.weight.dtype)
                copies[id(layer.weight)] = torch.ops.mkldnn._reorder_linear_weight(weight)
            layer.forward = _product(layer, copies[id(layer.weight)])
        for layer, name, value in changed:
            if id(value) not in copies:
                copies[id(value)] = nn.Parameter(value.detach().to(dtype), requires_grad=False)
            layer._parameters[name] = copies[id(value)]
        yield
    finally:
        for layer in packed:
            layer.__dict__.pop("forward", None)
        for layer, name, value in changed:
            layer._parameters[name] = value


def _can_pack(layer: nn.Linear, dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies in that dtype here, and the layer does nothing but multiply and add a bias."""
    plain = type(layer) is nn.Linear and "forward" not in vars(layer) and layer.weight.dtype in (torch.float32, dtype)
    if not plain or layer.weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _product(layer: nn.Linear, packed: Tensor) -> Callable[[Tensor], Tensor]:
    """The forward of a layer whose weight is packed."""
    bias = None if layer.bias is None else layer.bias.detach().to(packed.dtype)

    def forward(input: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(input.to(packed.dtype), packed, bias, "none", [], "")

    return forward

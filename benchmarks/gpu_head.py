"""The step of `gpu_session` that times the head by tiles, beside full logits and other packages' kernels."""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu_device import Measurements, device_of, machine, peak, seconds
from benchmarks.head import Shape, full_logits, make_inputs
from lightning_modules.objectives import linear_logprobs, logprobs

TILES = [(16_384, 1024), (16_384, 2048), (16_384, 8192), (32_768, 1024), (32_768, 4096), (65_536, 2048), (8192, 8192)]


def head(small: bool) -> Measurements:
    """The head at the sizes of 7B and of Gemma 3 270M by tiles, full logits and other packages' kernels."""
    device = device_of(small)
    yield "machine", partial(machine, device)
    shapes = [(64, 900)] if small else [(3584, 152_064), (640, 262_144)]
    for hidden, ids in shapes:
        for tokens in [60] if small else [1229, 4915]:  # 30 % of 4,096 and of 16,384
            name = f"{ids:,} x {hidden}, {tokens:,} targets"
            inputs = make_inputs(Shape(ids, hidden, True), tokens, device)
            exact = _exact_gradients(inputs) if tokens < 2000 else None
            for block, chunk in [(256, 32)] if small else TILES:
                yield (
                    f"{name}: tiles of {chunk:,} x {block:,}",
                    partial(_head_passes, _tiled(block, chunk), inputs, exact),
                )
            yield f"{name}: full logits", partial(_head_passes, full_logits, inputs, exact)
    if small:
        return
    for loss in (_liger, _cut):  # they compile
        for hidden, ids in shapes:
            for tokens in (1229, 4915):
                inputs = make_inputs(Shape(ids, hidden, True), tokens, device)
                exact = _exact_gradients(inputs) if tokens < 2000 else None
                yield (
                    f"{ids:,} x {hidden}, {tokens:,} targets: {loss.__name__[1:]}",
                    partial(_head_passes, loss, inputs, exact),
                )


def _exact_gradients(inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    exact = [x.detach().double().requires_grad_() for x in inputs[:2]]
    logits = exact[0] @ exact[1].T
    return [g.float() for g in torch.autograd.grad(torch.nn.functional.cross_entropy(logits, inputs[2]), exact)]


def _tiled(block: int, chunk: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def take(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return linear_logprobs(hidden, weight, targets, chunk_tokens=chunk)[0]

    take.block = block  # type: ignore[attr-defined]
    return take


def _liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return -LigerFusedLinearCrossEntropyLoss()(weight.bfloat16(), hidden.bfloat16(), targets)


def _cut(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets)


def _head_passes(
    take: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: tuple[Tensor, Tensor, Tensor], exact: list[Tensor] | None
) -> dict[str, Any]:
    device = inputs[0].device

    def forward() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return take(*inputs).mean().neg()

    def both() -> list[Tensor]:
        return list(torch.autograd.grad(forward(), inputs[:2]))

    with patch.object(logprobs, "LARGE_BLOCK", getattr(take, "block", logprobs.LARGE_BLOCK)):
        with peak(device) as memory:
            gradients = both()
        values: dict[str, Any] = dict(memory)
        if exact is not None:
            values["errors of gradients"] = [
                float((g - e).norm() / e.norm()) for g, e in zip(gradients, exact, strict=True)
            ]
        del gradients
        values["both, ms"] = 1e3 * seconds(both, device, 3)
        if hasattr(take, "block"):
            inputs[1].requires_grad_(False)
            values["frozen head, ms"] = 1e3 * seconds(lambda: torch.autograd.grad(forward(), inputs[:1]), device, 3)
            inputs[1].requires_grad_(True)
    return values

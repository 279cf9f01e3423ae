"""Norms and gated activations that keep for the backward pass what they were given, and compute the rest again.

transformers' root-mean-square norms leave several float32 copies of a row's states behind, and a gated MLP its
activation besides gate and up: half of what a decoder keeps of a step. Both work on each token by itself. So they are
computed in blocks of tokens, whose temporaries stay in the caches of a CPU, and once more in the backward pass: less
memory and less time. On GPUs, where kernels are bound by other things, the modules do what they always did.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 2**18
"""Numbers of a block: 1 MiB in float32, so that it and its temporaries are in the caches of a core."""


def keep_inputs_alone(model: nn.Module) -> None:
    """Let norms and gated MLPs of a model keep less for the backward pass.

    They are changed in place, and stay what they are to everybody else: of a class by the same name that is derived
    from theirs, with their parameters. What they compute is the same, in the same order, but for the sums of
    the gradients of a norm's weights (and last bits where a kernel treats the end of a tensor otherwise than the rest).
    """
    for module in model.modules():
        kind = type(module)
        if kind.__name__.endswith("RMSNorm") and [name for name, _ in module.named_parameters()] == ["weight"]:
            module.__class__ = _derived(kind, _Norm)
        elif _is_gated(kind):
            module.__class__ = _derived(kind, _GatedMLP)


def by_blocks(function: Callable[..., Tensor], states: Sequence[Tensor], weights: Sequence[Tensor] = ()) -> Tensor:
    """A function of tokens, of which the graph keeps the arguments alone.

    Args:
        function: Of all states and then all weights; to each token what it would be alone, of the states' shape.
        states: Of one shape, [.., T, D].
        weights: What all tokens share.

    Returns:
        `function(*states, *weights)`; second derivatives are refused.
    """
    return _ByBlocks.apply(function, len(states), *states, *weights)  # type: ignore[no-untyped-call, no-any-return]


class _ByBlocks(torch.autograd.Function):
    """Forward in blocks of tokens, and a backward that computes each again, under the autocast of the forward."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], count: int, *tensors: Tensor) -> Tensor:
        device = tensors[0].device.type
        ctx.function, ctx.count = function, count
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device), False)
        ctx.save_for_backward(*tensors)
        out: Tensor | None = None
        values = [x.detach() for x in tensors]  # hooks of modules inside look for their graph
        for tokens in _blocks(tensors[0]):
            block = function(*(x[tokens] for x in values[:count]), *values[count:])
            out = torch.empty_like(tensors[0], dtype=block.dtype) if out is None else out
            out[tokens] = block
        return torch.empty_like(tensors[0]) if out is None else out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors, count, needed = ctx.saved_tensors, ctx.count, ctx.needs_input_grad[2:]
        new = [torch.empty_like] * count + [torch.zeros_like] * (len(tensors) - count)
        gradients = [make(x) if need else None for make, x, need in zip(new, tensors, needed, strict=True)]
        places = [place for place, need in enumerate(needed) if need]
        for tokens in _blocks(tensors[0]):
            parts = [x[tokens] if i < count else x for i, x in enumerate(tensors)]
            parts = [x.detach().requires_grad_(need) for x, need in zip(parts, needed, strict=True)]
            with torch.enable_grad(), torch.autocast(*ctx.autocast):
                block = ctx.function(*parts)
            found = torch.autograd.grad(block, [parts[place] for place in places], grad[tokens])
            for place, gradient in zip(places, found, strict=True):
                if place < count:
                    gradients[place][tokens] = gradient
                else:
                    gradients[place] += gradient
        return None, None, *gradients


class _Norm(nn.Module):
    """A norm over the last dimension, with one weight."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        plain = super().forward
        if args or kwargs or not _pays(hidden_states):
            return plain(hidden_states, *args, **kwargs)

        def norm(states: Tensor, weight: Tensor) -> Tensor:  # of a weight that the graph knows
            return plain.__func__(_with(self, _parameters={}, weight=weight), states)

        return by_blocks(norm, [hidden_states], [self.weight])


class _GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def forward(self, x: Tensor) -> Tensor:
        if not _pays(x) or not isinstance(self.act_fn, nn.Module):
            return super().forward(x)
        return self.down_proj(by_blocks(self._gated, [self.gate_proj(x), self.up_proj(x)]))

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.act_fn.forward(gate) * up  # without hooks, which would see each block, and it again in the backward


def _with(module: nn.Module, **attributes: Any) -> nn.Module:
    """A module that shares everything with another one but some attributes."""
    other = object.__new__(type(module))
    other.__dict__ = module.__dict__ | attributes
    return other


@cache
def _derived(kind: type[nn.Module], form: type[nn.Module]) -> type[nn.Module]:
    """A class that computes as `form` does and is a `kind` otherwise, whose name it has."""
    return type(kind.__name__, (form, kind), {"__module__": kind.__module__})


@cache
def _is_gated(kind: type[nn.Module]) -> bool:
    """Whether modules of a class compute what `_GatedMLP` does: shown by its code on functions that are no layers."""
    code = getattr(kind.forward, "__code__", None)
    if code is None or code.co_argcount != 2 or set(code.co_names) != {"gate_proj", "up_proj", "act_fn", "down_proj"}:
        return False
    layers = {"gate_proj": lambda x: x + 1, "up_proj": lambda x: x + 2, "act_fn": lambda x: x * x}
    layers["down_proj"] = lambda x: x - 5
    return bool(kind.forward(SimpleNamespace(**layers), 3) == (3 + 1) ** 2 * (3 + 2) - 5)


def _pays(states: Tensor) -> bool:
    """Whether there is a backward pass to keep something for, on a CPU, and more of it than a block.

    What is compiled is left to the compiler, which computes again by itself what is cheap.
    """
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() and states.device.type == "cpu" and states.ndim > 1 and states.numel() > BLOCK


def _blocks(states: Tensor) -> Iterator[tuple[Any, ...]]:
    """Places of blocks of tokens, the last dimension but one, in all rows and heads."""
    tokens = states.shape[-2]
    size = max(1, BLOCK * tokens // max(1, states.numel()))
    for start in range(0, tokens, size):
        yield ..., slice(start, start + size), slice(None)

"""Log-probabilities and entropies from hidden states, in tiles: the logits of all tokens are never in memory at once.

Letters: N tokens, D hidden size, V vocabulary; a tile is the logits of C tokens and B ids. The forward walks over the
vocabulary, block by block, with a running maximum and sums for each token, and keeps two numbers per token (logsumexp
and, if asked, entropy); the backward computes the tiles again. A tile fits into the caches of a CPU, so that what is
done to it costs little beside the matrix products, and peak memory grows with neither N nor V, but for the gradients.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_TOKENS, BLOCK = 1024, 2048
"""Tokens and ids of a tile on a CPU: 8 MiB of float32, which its caches hold."""
LARGE_CHUNK, LARGE_BLOCK = 4096, 16384
"""The same on any other device, whose products want to be large: 256 MiB of float32."""


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    entropy: bool = False,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target, and entropy, under softmax(logits / temperature).

    The logits are softcap * tanh(z / softcap) of z = scale * (hidden @ weight.T + bias), or z itself without a cap.

    Both results are differentiable with respect to `hidden`, `weight` and `bias`; second derivatives are refused.
    Inside `torch.autocast` the factors of the matrix products, and the bias, take the autocast dtype; products are
    summed, and the softmax computed, in float32 at least. The gradients of weight and bias are summed over chunks in
    float32 at least. On a CPU, which multiplies bfloat16 faster only into bfloat16, the backward rounds its products
    to it tile by tile, and the logits that it computes again as their distance from the logsumexp: the relative error
    of a probability p is then |log p| / 512 at most (with a bias, that of its product), beside the 1 / 512 of its
    rounding as a factor.

    Args:
        hidden: Last hidden states, [N, D], floating. N may be 0: the results are then empty and still in the graph.
        weight: Head matrix, [V, D].
        targets: Ids in [0, V), [N], long. Positions to ignore must be dropped by the caller.
        temperature: Divides the logits; greater than 0.
        chunk_tokens: Most tokens of a tile, C; a time against memory choice that changes the rounding alone. What
            suits the device when None.
        entropy: Whether to compute H = logsumexp(l) - sum(softmax(l) * l) of l = logits / temperature, in nats.
        bias: Added to the products, [V].
        scale: Multiplies the products and the bias.
        softcap: Greatest absolute value of a logit, greater than 0; None caps nothing.

    Returns:
        Log-probabilities [N] and entropies [N] (None unless asked), in `promote_types(hidden.dtype, float32)`.

    Raises:
        ValueError: If shapes disagree, or temperature, chunk_tokens or softcap is not positive.
    """
    return linear_scores(hidden, weight, targets, temperature, chunk_tokens, entropy, bias, scale, softcap)[:2]


def linear_scores(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
    entropy: bool = False,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """`linear_logprobs`, and whether no token is likelier than the target, [N], bool, for the token accuracy."""
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        raise ValueError(
            "hidden [N, D], weight [V, D] and targets [N] disagree: "
            f"{list(hidden.shape)}, {list(weight.shape)}, {list(targets.shape)}."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [V], one for each row of weight {list(weight.shape)}, got {list(bias.shape)}.")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be greater than 0, or None, got {softcap}.")
    if not temperature > 0:
        raise ValueError(
            f"temperature must be greater than 0, got {temperature}; greedy decoding has no log-probability."
        )
    chunk_tokens = tile(_on_cpu(hidden))[0] if chunk_tokens is None else chunk_tokens
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}.")
    device = hidden.device.type
    factor = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    form = _Form(temperature, scale, softcap, factor, torch.promote_types(hidden.dtype, torch.float32), chunk_tokens)
    arguments = (hidden, weight, bias, targets, form, entropy)
    logprobs, entropies, hits = _LinearLogprobs.apply(*arguments)  # type: ignore[no-untyped-call]
    return logprobs, entropies, hits


def tile(on_cpu: bool) -> tuple[int, int]:
    """Most tokens and ids of a tile, by whether it is on a CPU."""
    return (CHUNK_TOKENS, BLOCK) if on_cpu else (LARGE_CHUNK, LARGE_BLOCK)


class _Form(NamedTuple):
    """How logits are made of hidden states, and in tiles of what size.

    Attributes:
        temperature: See `linear_logprobs`, as for the next two and the last.
        scale: Multiplies products and bias.
        softcap: Greatest absolute value of a logit.
        factor: Dtype that the factors of matrix products are rounded to.
        dtype: Of sums and of everything else.
        chunk_tokens: Most tokens of a tile.
    """

    temperature: float
    scale: float
    softcap: float | None
    factor: torch.dtype
    dtype: torch.dtype
    chunk_tokens: int

    def chunks(self, tokens: int) -> list[slice]:
        """All tokens, in chunks."""
        return _slices(tokens, self.chunk_tokens)

    def blocks(self, weight: Tensor, tokens: int) -> list[slice]:
        """All ids, in blocks; none if there are no tokens."""
        return _slices(len(weight) if tokens else 0, tile(_on_cpu(weight))[1])

    def rounded(self, tensor: Tensor) -> Tensor:
        """Factor of a product in `dtype`; on a CPU, where no kernel sums half products in `dtype`, held in it."""
        factor = tensor.to(self.factor)
        return factor.to(self.dtype) if _on_cpu(factor) else factor

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Matrix product of factors: in `dtype`, but on a CPU in theirs."""
        return a @ b if _on_cpu(a) or a.dtype == self.dtype else torch.mm(a, b, out_dtype=self.dtype)

    def half_products(self, hidden: Tensor) -> bool:
        """Whether the backward makes products in half precision: see `linear_logprobs`; a cap leaves no distance."""
        return _on_cpu(hidden) and self.factor != self.dtype and self.softcap is None

    def logits(self, products: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Bias, scale, soft cap and temperature, in place; with a cap also the tanh, for its derivative."""
        if bias is not None:
            products.add_(bias)
        if self.softcap is None:
            factor = self.scale / self.temperature
            return products if factor == 1 else products.mul_(factor), None
        tanh = products.mul_(self.scale / self.softcap).tanh_()
        return tanh * (self.softcap / self.temperature), tanh


class _LinearLogprobs(torch.autograd.Function):
    """Tiled forward and recomputing backward.

    Autocast is switched off inside both and the dtype of the factors is remembered from the forward, so that the
    backward does the same arithmetic whether it runs inside the autocast region (manual optimisation) or outside it.
    `torch.amp.custom_fwd` and `custom_bwd` do the same, but have to be told the device type in advance.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, form: _Form, entropy: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.form = form
        # Below every logit, and finite, so that no sum of 0 is multiplied by an infinite difference.
        maxima = hidden.new_full((len(targets),), torch.finfo(form.dtype).min / 2, dtype=form.dtype)
        chosen, sums, moments = torch.zeros_like(maxima), torch.zeros_like(maxima), torch.zeros_like(maxima)
        with torch.autocast(hidden.device.type, enabled=False):
            states = form.rounded(hidden)
            for block in form.blocks(weight, len(targets)):
                head, offset = form.rounded(weight[block]), None if bias is None else form.rounded(bias[block])
                for chunk in form.chunks(len(targets)):
                    logits = form.logits(form.product(states[chunk], head.T), offset)[0]
                    places, inside = _places(targets[chunk], block)
                    chosen[chunk] = torch.where(inside, logits.gather(1, places).squeeze(1), chosen[chunk])
                    highest = torch.maximum(maxima[chunk], logits.amax(-1))
                    moved, maxima[chunk] = maxima[chunk] - highest, highest
                    exps = logits.sub_(highest[:, None]).exp()
                    if entropy:  # the sum of e^(l - m) (l - m), which a new maximum m moves
                        before = (moments[chunk] + moved * sums[chunk]) * moved.exp()
                        moments[chunk] = before + logits.mul_(exps).sum(-1)
                    sums[chunk] = sums[chunk] * moved.exp() + exps.sum(-1)
        normalisers = maxima + sums.log()
        entropies = sums.log() - moments / sums if entropy else None
        hits = chosen >= maxima
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers, entropies)
        ctx.mark_non_differentiable(hits)
        return chosen - normalisers, entropies, hits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropies: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalisers, entropies = ctx.saved_tensors
        form: _Form = ctx.form
        if grad_logprobs is None:  # only the entropy is in the loss
            grad_logprobs = torch.zeros_like(normalisers)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        new = torch.empty_like if len(targets) else torch.zeros_like  # every block is written once
        grad_hidden = torch.zeros_like(hidden, dtype=form.dtype) if needs_hidden else None
        grad_weight, grad_bias = new(weight) if needs_weight else None, new(bias) if needs_bias else None
        half = form.half_products(hidden)
        factor = partial(torch.Tensor.to, dtype=form.factor) if half else form.rounded
        with torch.autocast(hidden.device.type, enabled=False):
            states = factor(hidden)
            for block in form.blocks(weight, len(targets)):
                head, offset = factor(weight[block]), None if bias is None else form.rounded(bias[block])
                sum_weight = torch.zeros_like(head, dtype=form.dtype) if needs_weight else None
                sum_bias = torch.zeros_like(grad_bias[block], dtype=form.dtype) if grad_bias is not None else None
                for chunk in form.chunks(len(targets)):
                    log_p, tanh = _log_probabilities(form, states[chunk], head, offset, normalisers[chunk], half)
                    outer = grad_logprobs[chunk]
                    entropic = None if grad_entropies is None else (grad_entropies[chunk], entropies[chunk])
                    grad_products = _grad_products(form, log_p, tanh, *_places(targets[chunk], block), outer, entropic)
                    narrow = factor(grad_products)
                    if grad_hidden is not None:
                        grad_hidden[chunk] += form.product(narrow, head)
                    if sum_weight is not None:
                        sum_weight += form.product(narrow.T, states[chunk])
                    if sum_bias is not None:
                        sum_bias += grad_products.sum(0)
                if grad_weight is not None and sum_weight is not None:
                    grad_weight[block] = sum_weight
                if grad_bias is not None and sum_bias is not None:
                    grad_bias[block] = sum_bias
        return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, grad_bias, *[None] * 3


def _log_probabilities(
    form: _Form, states: Tensor, head: Tensor, bias: Tensor | None, normalisers: Tensor, half: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of a tile, and the tanh of a soft cap; with `half` products, of which the normalisers are part.

    The rounding of a half product is relative to its size: what is computed in half precision is logit - normaliser,
    as rounded before, which is near 0 where it matters.
    """
    if not half:
        logits, tanh = form.logits(form.product(states, head.T), bias)
        return logits.sub_(normalisers[:, None]), tanh
    factor = form.scale / form.temperature
    shift = (normalisers / factor).to(form.factor)  # [C]
    distances = torch.addmm(-shift[:, None], states, head.T).to(form.dtype)
    logits, tanh = form.logits(distances, bias)
    return logits.add_((shift.to(form.dtype) * factor - normalisers)[:, None]), tanh


def _grad_products(
    form: _Form,
    log_p: Tensor,
    tanh: Tensor | None,
    places: Tensor,
    inside: Tensor,
    grad_logprobs: Tensor,
    grad_entropies: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Gradient of the loss with respect to a tile of products with their bias, [C, B]; `log_p` is lost.

    `grad_entropies` come with the entropies themselves.
    """
    # dlogprob/dl = onehot - p and dH/dl = -p (log p + H): first what has the factor -p, then the onehot.
    grad, outer = log_p.exp(), grad_logprobs[:, None]
    if grad_entropies is not None:
        gradients, entropies = grad_entropies
        outer = log_p.add_(entropies[:, None]).mul_(gradients[:, None]).add_(outer)
    grad.mul_(outer).neg_().scatter_add_(1, places, (grad_logprobs * inside)[:, None])
    if form.scale != form.temperature:
        grad.mul_(form.scale / form.temperature)
    if tanh is not None:
        grad.addcmul_(grad * tanh, tanh, value=-1)  # d cap tanh(z / cap) / dz = 1 - tanh^2
    return grad


def _places(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Columns of the targets in a block of ids, [C, 1], 0 where they are outside, and whether they are inside, [C]."""
    inside = (targets >= block.start) & (targets < block.stop)
    return torch.where(inside, targets - block.start, 0)[:, None], inside


def _on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]

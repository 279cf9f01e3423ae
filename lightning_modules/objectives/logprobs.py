"""Log-probabilities and entropies from hidden states, in chunks: the logits of all tokens are never in memory at once.

Letters: N tokens, D hidden size, V vocabulary, C tokens of one chunk. The forward walks over chunks of C tokens and
keeps two numbers per token (logsumexp and, if asked, entropy); the backward computes a chunk's logits again. Peak
memory is that of a few [C, V] buffers, however many tokens there are.
"""

from typing import Any

import torch
from torch import Tensor


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
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
    float32 at least.

    Args:
        hidden: Last hidden states, [N, D], floating. N may be 0: the results are then empty and still in the graph.
        weight: Head matrix, [V, D].
        targets: Ids in [0, V), [N], long. Positions to ignore must be dropped by the caller.
        temperature: Divides the logits; greater than 0.
        chunk_tokens: Tokens per chunk; a time against memory choice that does not change the result.
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
    chunk_tokens: int = 1024,
    entropy: bool = False,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """`linear_logprobs`, and whether each target is the most likely token, [N], bool, for the token accuracy."""
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
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}.")
    arguments = (hidden, weight, bias, targets, temperature, chunk_tokens, entropy, scale, softcap)
    logprobs, entropies, hits = _LinearLogprobs.apply(*arguments)  # type: ignore[no-untyped-call]
    return logprobs, entropies, hits


class _LinearLogprobs(torch.autograd.Function):
    """Chunked forward and recomputing backward.

    Autocast is switched off inside both and the dtype of the factors is remembered from the forward, so that the
    backward does the same arithmetic whether it runs inside the autocast region (manual optimisation) or outside it.
    `torch.amp.custom_fwd` and `custom_bwd` do the same, but have to be told the device type in advance.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_tokens: int,
        entropy: bool,
        scale: float,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        device = hidden.device.type
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.chunk_tokens, ctx.scale, ctx.softcap = temperature, chunk_tokens, scale, softcap
        ctx.factor_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = hidden.new_empty(len(targets), dtype=dtype)
        normalisers = torch.empty_like(logprobs)
        entropies = torch.empty_like(logprobs) if entropy else None
        hits = torch.empty_like(targets, dtype=torch.bool)
        with torch.autocast(device, enabled=False):
            head = _factor(weight, ctx.factor_dtype, dtype)
            offset = None if bias is None else _factor(bias, ctx.factor_dtype, dtype)
            for chunk in _chunks(len(targets), chunk_tokens):
                logits = _product(_factor(hidden[chunk], ctx.factor_dtype, dtype), head.T, dtype)
                logits = _after_product(logits, offset, scale, softcap)[0].div_(temperature)
                normalisers[chunk] = torch.logsumexp(logits, dim=-1)
                hits[chunk] = logits.argmax(dim=-1) == targets[chunk]
                logprobs[chunk] = logits.gather(1, targets[chunk, None]).squeeze(1) - normalisers[chunk]
                if entropies is not None:
                    probabilities = (logits - normalisers[chunk, None]).exp_()
                    entropies[chunk] = normalisers[chunk] - logits.mul_(probabilities).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers, entropies)
        ctx.mark_non_differentiable(hits)
        return logprobs, entropies, hits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropies: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normalisers, entropies = ctx.saved_tensors
        dtype = normalisers.dtype
        if grad_logprobs is None:  # only the entropy is in the loss
            grad_logprobs = torch.zeros_like(normalisers)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=dtype) if needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            head = _factor(weight, ctx.factor_dtype, dtype)
            offset = None if bias is None else _factor(bias, ctx.factor_dtype, dtype)
            for chunk in _chunks(len(targets), ctx.chunk_tokens):
                states = _factor(hidden[chunk], ctx.factor_dtype, dtype)
                logits, tanh = _after_product(_product(states, head.T, dtype), offset, ctx.scale, ctx.softcap)
                log_p = logits.div_(ctx.temperature).sub_(normalisers[chunk, None])
                grad_logits = log_p.exp()
                # dlogprob/dl = onehot - p and dH/dl = -p (log p + H): first what has the factor -p, then the onehot.
                outer = grad_logprobs[chunk, None]
                if grad_entropies is not None:
                    outer = log_p.add_(entropies[chunk, None]).mul_(grad_entropies[chunk, None]).add_(outer)
                grad_logits.mul_(outer).neg_().scatter_add_(1, targets[chunk, None], grad_logprobs[chunk, None])
                grad_logits.div_(ctx.temperature)
                if tanh is not None:
                    grad_logits.addcmul_(grad_logits * tanh, tanh, value=-1)  # d cap tanh(z / cap) / dz = 1 - tanh^2
                if ctx.scale != 1:
                    grad_logits.mul_(ctx.scale)
                factor = _factor(grad_logits, ctx.factor_dtype, dtype)
                if grad_hidden is not None:
                    grad_hidden[chunk] = _product(factor, head, dtype).to(hidden.dtype)
                if grad_weight is not None:
                    grad_weight += _product(factor.T, states, dtype)
                if grad_bias is not None:
                    grad_bias += grad_logits.sum(0)
        sums = [
            None if grad is None else grad.to(parameter.dtype)
            for grad, parameter in ((grad_weight, weight), (grad_bias, bias))
        ]
        return grad_hidden, *sums, None, None, None, None, None, None


def _after_product(
    logits: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Bias, scale and soft cap, in place; with a cap also the tanh, which its derivative is made of."""
    if bias is not None:
        logits.add_(bias)
    if scale != 1:
        logits.mul_(scale)
    if softcap is None:
        return logits, None
    tanh = logits.div_(softcap).tanh_()
    return tanh * softcap, tanh


def _chunks(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


def _factor(tensor: Tensor, factor_dtype: torch.dtype, dtype: torch.dtype) -> Tensor:
    """Round to the dtype of the factors; off CUDA, where no kernel sums half products in `dtype`, hold them in it."""
    rounded = tensor.to(factor_dtype)
    return rounded if rounded.is_cuda else rounded.to(dtype)


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrix product summed and returned in `dtype`."""
    return a @ b if a.dtype == dtype else torch.mm(a, b, out_dtype=dtype)

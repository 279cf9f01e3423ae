"""Log-probabilities and entropies straight from hidden states: the vocabulary logits of all tokens are never held.

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
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target, and entropy, under softmax(hidden @ weight.T / temperature).

    Both results are differentiable with respect to `hidden` and `weight`; there is no bias, and second derivatives are
    refused. Inside `torch.autocast` the factors of the matrix products take the autocast dtype; products are summed,
    and the softmax computed, in float32 at least. The weight gradient is summed over chunks in float32 at least.

    Args:
        hidden: Last hidden states, [N, D], floating. N may be 0: the results are then empty and still in the graph.
        weight: Head matrix, [V, D].
        targets: Ids in [0, V), [N], long. Positions to ignore must be dropped by the caller.
        temperature: Divides the logits; greater than 0.
        chunk_tokens: Tokens per chunk; a time against memory choice that does not change the result.
        entropy: Whether to compute H = logsumexp(z) - sum(softmax(z) * z) in nats.

    Returns:
        Log-probabilities [N] and entropies [N] (None unless asked), in `promote_types(hidden.dtype, float32)`.

    Raises:
        ValueError: If shapes disagree, or temperature or chunk_tokens is not positive.
    """
    return linear_scores(hidden, weight, targets, temperature, chunk_tokens, entropy)[:2]


def linear_scores(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """`linear_logprobs`, and whether each target is the most likely token, [N], bool, for the token accuracy."""
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        raise ValueError(
            "hidden [N, D], weight [V, D] and targets [N] disagree: "
            f"{list(hidden.shape)}, {list(weight.shape)}, {list(targets.shape)}."
        )
    if not temperature > 0:
        raise ValueError(
            f"temperature must be greater than 0, got {temperature}; greedy decoding has no log-probability."
        )
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}.")
    arguments = (hidden, weight, targets, temperature, chunk_tokens, entropy)
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
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk_tokens: int, entropy: bool
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        device = hidden.device.type
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        ctx.factor_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = hidden.new_empty(len(targets), dtype=dtype)
        normalisers = torch.empty_like(logprobs)
        entropies = torch.empty_like(logprobs) if entropy else None
        hits = torch.empty_like(targets, dtype=torch.bool)
        with torch.autocast(device, enabled=False):
            head = _factor(weight, ctx.factor_dtype, dtype)
            for chunk in _chunks(len(targets), chunk_tokens):
                logits = _product(_factor(hidden[chunk], ctx.factor_dtype, dtype), head.T, dtype).div_(temperature)
                normalisers[chunk] = torch.logsumexp(logits, dim=-1)
                hits[chunk] = logits.argmax(dim=-1) == targets[chunk]
                logprobs[chunk] = logits.gather(1, targets[chunk, None]).squeeze(1) - normalisers[chunk]
                if entropies is not None:
                    probabilities = (logits - normalisers[chunk, None]).exp_()
                    entropies[chunk] = normalisers[chunk] - logits.mul_(probabilities).sum(-1)
        ctx.save_for_backward(hidden, weight, targets, normalisers, entropies)
        ctx.mark_non_differentiable(hits)
        return logprobs, entropies, hits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropies: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normalisers, entropies = ctx.saved_tensors
        dtype = normalisers.dtype
        if grad_logprobs is None:  # only the entropy is in the loss
            grad_logprobs = torch.zeros_like(normalisers)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=dtype) if needs_weight else None
        with torch.autocast(hidden.device.type, enabled=False):
            head = _factor(weight, ctx.factor_dtype, dtype)
            for chunk in _chunks(len(targets), ctx.chunk_tokens):
                states = _factor(hidden[chunk], ctx.factor_dtype, dtype)
                log_p = _product(states, head.T, dtype).div_(ctx.temperature).sub_(normalisers[chunk, None])
                grad_logits = log_p.exp()
                # dlogprob/dz = onehot - p and dH/dz = -p (log p + H): first what has the factor -p, then the onehot.
                scale = grad_logprobs[chunk, None]
                if grad_entropies is not None:
                    scale = log_p.add_(entropies[chunk, None]).mul_(grad_entropies[chunk, None]).add_(scale)
                grad_logits.mul_(scale).neg_().scatter_add_(1, targets[chunk, None], grad_logprobs[chunk, None])
                factor = _factor(grad_logits.div_(ctx.temperature), ctx.factor_dtype, dtype)
                if grad_hidden is not None:
                    grad_hidden[chunk] = _product(factor, head, dtype).to(hidden.dtype)
                if grad_weight is not None:
                    grad_weight += _product(factor.T, states, dtype)
        return grad_hidden, grad_weight if grad_weight is None else grad_weight.to(weight.dtype), None, None, None, None


def _chunks(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]


def _factor(tensor: Tensor, factor_dtype: torch.dtype, dtype: torch.dtype) -> Tensor:
    """Round to the dtype of the factors; off CUDA, where no kernel sums half products in `dtype`, hold them in it."""
    rounded = tensor.to(factor_dtype)
    return rounded if rounded.is_cuda else rounded.to(dtype)


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrix product summed and returned in `dtype`."""
    return a @ b if a.dtype == dtype else torch.mm(a, b, out_dtype=dtype)

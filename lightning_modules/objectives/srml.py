"""Multiscale loss of FunReason: reasoning tokens and call tokens averaged apart, then mixed (arXiv 2505.20192).

v1 calls it MSL and fixes the weights (alpha L_think + beta L_result, alpha + beta = 1); v3 calls it SSB and makes alpha
learnable (eq. 3, initial value 0.7). Papers leave the reduction over a batch open; both readings are here.
Letters: N tokens, G groups of tokens that are averaged together.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

COT, CALL = 1, 2  # segments, as `datamodules.packing` numbers them, which this folder does not import


class Totals(NamedTuple):
    """Counts over a whole optimizer step, all micro-batches and ranks: the denominators of the loss and its parts.

    Attributes:
        samples: Documents with at least one supervised token.
        cot: Supervised chain-of-thought tokens.
        call: Supervised call tokens.
        samples_cot: Documents that have some of the former; only the part "loss_cot" needs it. `samples` when None.
        samples_call: Documents that have some of the latter, for "loss_call"; likewise.
    """

    samples: float | Tensor
    cot: float | Tensor
    call: float | Tensor
    samples_cot: float | Tensor | None = None
    samples_call: float | Tensor | None = None


def multiscale_loss(
    nll: Tensor,
    segments: Tensor,
    samples: Tensor,
    cot_weight: float | Tensor | None,
    reduction: Literal["sample", "token"] = "sample",
    totals: Totals | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean CoT loss and mean call loss mixed, alpha * L_cot + (1 - alpha) * L_call (arXiv 2505.20192, v3 eq. 3).

    "sample" takes the two means inside each document, mixes them, and averages over documents; a document must then lie
    in one micro-batch. "token" pools the tokens of the whole step into one mean per segment. Where a segment is missing
    (from the document, or under "token" from the whole step) the other one has weight 1. With `totals` given, the
    losses of any split into micro-batches and ranks add up to the loss of the whole step, and so do all parts.

    Args:
        nll: Negative log-likelihoods, [N], floating; computed with in float32 at least.
        segments: 1 chain of thought, 2 call, 0 ignored (not even a NaN there counts), [N], long.
        samples: Which document of this micro-batch each token belongs to, [N], long; from 0 up where supervised.
        cot_weight: alpha in [0, 1], a number or a tensor of one element that receives its gradient. None is the share
            of CoT tokens, N_cot / (N_cot + N_call): in the step under "token", which weighs every token equally and is
            plain SFT; in the document under "sample", which weighs every document equally.
        reduction: "sample" or "token".
        totals: Counts of the whole optimizer step; counted from the arguments when None.

    Returns:
        The loss (0-dim; 0 and in the graph of `nll` if nothing is supervised) and detached 0-dim parts: "loss_cot" and
        "loss_call" (the unmixed terms; under "sample" means over the documents that have the segment), "samples",
        "tokens_cot" and "tokens_call" (what this micro-batch holds).

    Raises:
        ValueError: If shapes disagree or the reduction is unknown.
    """
    if nll.ndim != 1 or segments.shape != nll.shape or samples.shape != nll.shape:
        shapes = [list(tensor.shape) for tensor in (nll, segments, samples)]
        raise ValueError(f"nll, segments and samples must all be [N], got {shapes}.")
    if reduction not in ("sample", "token"):
        raise ValueError(f"reduction must be 'sample' or 'token', got {reduction!r}.")
    dtype = torch.promote_types(nll.dtype, torch.float32)
    cot, call = (segments == COT).to(dtype), (segments == CALL).to(dtype)  # [N]
    groups, group = torch.unique(torch.where(segments > 0, samples, -1), return_inverse=True)
    group_cot, group_call = (cot.new_zeros(len(groups)).index_add(0, group, mask) for mask in (cot, call))  # [G]
    n_samples, n_cot, n_call = ((group_cot + group_call) > 0).sum().to(dtype), cot.sum(), call.sum()
    with_cot, with_call = ((count > 0).sum() for count in (group_cot, group_call))
    whole = Totals(n_samples, n_cot, n_call, with_cot, with_call) if totals is None else totals
    all_samples, all_cot, all_call, all_with_cot, all_with_call = (
        torch.as_tensor(whole.samples if count is None else count, dtype=dtype, device=nll.device) for count in whole
    )
    if reduction == "token":  # the whole step is one document
        group = torch.zeros_like(group)
        group_cot, group_call = all_cot.reshape(1), all_call.reshape(1)
        all_samples = all_with_cot = all_with_call = all_samples.new_ones(())
    # A token's weight in the mean of its segment, times that mean's weight in the mean over documents.
    of_cot = cot / (group_cot.clamp(min=1)[group] * all_samples.clamp(min=1))  # [N]
    of_call = call / (group_call.clamp(min=1)[group] * all_samples.clamp(min=1))  # [N]
    alpha = _cot_share(cot_weight, group_cot, group_call)[group]  # [N]
    nll = torch.where(segments > 0, nll, 0).to(dtype)
    loss = ((alpha * of_cot + (1 - alpha) * of_call) * nll).sum()
    terms = nll.detach()
    return loss, {
        "loss_cot": (of_cot * terms).sum() * all_samples / all_with_cot.clamp(min=1),
        "loss_call": (of_call * terms).sum() * all_samples / all_with_call.clamp(min=1),
        "samples": n_samples,
        "tokens_cot": n_cot,
        "tokens_call": n_call,
    }


def _cot_share(cot_weight: float | Tensor | None, n_cot: Tensor, n_call: Tensor) -> Tensor:
    """Alpha of each group, [G]: `cot_weight`, or its share of tokens when None; 1 or 0 where a segment is missing."""
    if cot_weight is None:
        return n_cot / (n_cot + n_call).clamp(min=1)
    alpha = torch.as_tensor(cot_weight, dtype=n_cot.dtype, device=n_cot.device).reshape(1).expand_as(n_cot)
    return torch.where(n_cot == 0, 0.0, torch.where(n_call == 0, 1.0, alpha))

"""Attention over packed rows, document by document: what documents of a row would cost each other is not computed.

transformers masks what a document must not see, so that a row costs what one document of its length costs. Here each
document attends alone, by torch's own kernel and mostly without a mask. It is an attention function of transformers'
`AttentionInterface`: decoders hand it the keyword `documents`, also when gradient checkpointing computes a layer again.
A document may go on from the beginning of another one, so that what completions share, their prompt, is there once.

On GPUs each document is a launch of the flash kernel; `torch.nn.attention.varlen` is the place to go further there.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BY_DOCUMENT = "by_document"
"""Name of this attention in transformers, where configs hold it."""


@dataclass
class Documents:
    """Where documents lie among the tokens of all rows, laid end to end.

    Attributes:
        lengths: Tokens of each document.
        prefixes: How many tokens each of them sees before its own: the first ones of the latest document without a
            prefix; 0 for that one.
        windows: The sliding window of each layer that has attended by them, None for one without.
    """

    lengths: list[int]
    prefixes: list[int]
    windows: list[int | None] = field(default_factory=list)


def documents_of(position_ids: Tensor) -> Documents:
    """The documents that positions tell of; on a GPU one transfer to the host.

    A position that is not the one after the last begins a document, and so does a row. One that begins at 0 stands
    alone; one that begins at p goes on from the first p tokens of the latest one that began at 0, which rollouts of one
    prompt share.

    Args:
        position_ids: [R, T], long.

    Raises:
        ValueError: If a document goes on from more tokens than there are.
    """
    positions = position_ids.cpu()
    begins = torch.ones_like(positions, dtype=torch.bool)
    begins[:, 1:] = positions[:, 1:] != positions[:, :-1] + 1
    starts = begins.flatten().nonzero().squeeze(1)
    ends = torch.cat([starts[1:], starts.new_tensor([positions.numel()])])
    documents = Documents((ends - starts).tolist(), positions.flatten()[starts].tolist())
    shared = 0
    for length, prefix in zip(documents.lengths, documents.prefixes, strict=True):
        shared = shared if prefix else length
        if prefix > shared:
            raise ValueError(f"position_ids: a document begins at {prefix}, and the one before it has {shared} tokens.")
    return documents


def decoder_options(position_ids: Tensor) -> dict[str, Any]:
    """Keywords for a decoder whose layers attend by document.

    A 4-D mask is a finished one to transformers, which then builds none. Who looks at this one sees nothing.
    """
    nothing = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=position_ids.device)
    return {"documents": documents_of(position_ids), "attention_mask": nothing}


def attention_by_document(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: Documents | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention inside documents; without `documents` it is what transformers calls sdpa, with the mask.

    Args:
        module: The layer.
        query: [R, H, T, D].
        key: [R, K, T, D], K heads that groups of H / K queries share.
        value: [R, K, T, E].
        attention_mask: Not heeded with `documents`.
        dropout: Share of probabilities that are set to 0.
        scaling: Of the products; 1 / sqrt(D) when None.
        documents: Where they lie.
        **kwargs: `sliding_window`: how many tokens each sees, itself included; and what sdpa heeds or ignores.

    Returns:
        [R, T, H, E], and None for the probabilities.
    """
    if documents is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    window = kwargs.get("sliding_window")
    documents.windows.append(window)
    rows, _, tokens, _ = query.shape
    # Split and joined at once: the gradient of a slice would be as large as all rows, for each document.
    laid = [_rounded(x).transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
    columns = [x.split(documents.lengths) for x in laid]
    attended: list[Tensor] = []
    for prefix, q, k, v in zip(documents.prefixes, *columns, strict=True):
        if prefix == 0:
            shared, cuts = (k, v), {}
        else:
            if prefix not in cuts:  # once for all that go on from there
                cuts[prefix] = [x[:prefix] for x in shared]
            k, v = (torch.cat(parts) for parts in zip(cuts[prefix], (k, v), strict=True))
        attended.append(_causal(q, k, v, window, dropout, scaling))
    return torch.cat(attended).flatten(1, 2).unflatten(0, (rows, tokens)), None


def _rounded(x: Tensor) -> Tensor:
    """What autocast would make of it for the kernel, before heads share it and not for each of them."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _causal(q: Tensor, k: Tensor, v: Tensor, window: int | None, dropout: float, scaling: float | None) -> Tensor:
    """Attention of the last n of m tokens, [n, H, D] over [m, K, D] to [n, K, H / K, E].

    Keys out of the window are not seen. What H / K heads share is not repeated for them: to the kernel, a batch of K.
    """
    shared = k.shape[1]
    q = q.unflatten(1, (shared, -1))  # [n, K, H / K, D]
    k, v = (x.unsqueeze(2).expand(-1, -1, q.shape[2], -1) for x in (k, v))
    n, m = len(q), len(k)
    if window is None or m <= window:
        spans = [slice(m)]
    else:  # of the keys that as many queries as the window is wide look at: the earliest of them sees itself last
        spans = [slice(max(0, first - window + 1), first + window) for first in range(m - n, m, window)]
    parts = []
    for block, span in zip(q.split(window if len(spans) > 1 else n), spans, strict=True):
        keys, values = k[span], v[span]
        plain = len(block) == len(keys) and (window is None or len(keys) <= window)
        mask = None if plain else _mask(len(block), len(keys), window, q.device)
        heads = (x.permute(1, 2, 0, 3) for x in (block, keys, values))
        parts.append(scaled_dot_product_attention(*heads, mask, dropout, is_causal=plain, scale=scaling))
    return torch.cat(parts, 2).permute(2, 0, 1, 3)


def _mask(n: int, m: int, window: int | None, device: torch.device) -> Tensor:
    """Which of m tokens each of the last n sees, [n, m], bool."""
    mask = torch.ones(n, m, dtype=torch.bool, device=device).tril_(m - n)
    return mask if window is None else mask.triu_(m - n - window + 1)


AttentionInterface.register(BY_DOCUMENT, attention_by_document)
AttentionMaskInterface.register(BY_DOCUMENT, sdpa_mask)

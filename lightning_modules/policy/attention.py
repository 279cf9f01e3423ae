"""Attention over packed rows, document by document: what documents of a row would cost each other is not computed.

transformers masks what a document must not see, so that a row costs what one document of its length costs. Here each
document attends alone, by torch's own kernel and mostly without a mask. It is an attention function of transformers'
`AttentionInterface`: decoders hand it the keyword `documents`, also when gradient checkpointing computes a layer again.
A document may go on from the beginning of another one, so that what completions share, their prompt, is there once.

On GPUs in half precision one kernel takes all documents of a layer; elsewhere each has a call of its own.
"""

from dataclasses import dataclass, field
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BY_DOCUMENT = "by_document"
"""Name of this attention in transformers, where configs hold it."""
LARGEST_HEAD = 256
"""Values of a head that the kernel for all documents can take; it takes eights of them."""
SHARES_HEADS = "enable_gqa" in signature(varlen_attn).parameters
"""Whether that kernel lets query heads share keys; before torch 2.12 it is not said to."""


KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""What attends to a document by itself. Not cuDNN: where torch could choose it, too, gradients with heads of 256 were
wrong on an H200 (torch 2.11, bfloat16), for a reason that is not known."""


class Spans(NamedTuple):
    """Documents as the kernel for all of them wants them told; on the device of the tokens.

    Attributes:
        queries: Where each document's tokens begin among all tokens, and where the last one's end, [N + 1], int32.
        keys: The same of what each sees: its prefix and itself.
        longest: Most tokens of a document, and most that one sees.
        places: The tokens that documents see, end to end, long; None where no document has a prefix.
    """

    queries: Tensor
    keys: Tensor
    longest: tuple[int, int]
    places: Tensor | None


@dataclass
class Documents:
    """Where documents lie among the tokens of all rows, laid end to end.

    Attributes:
        lengths: Tokens of each document.
        prefixes: How many tokens each of them sees before its own: the first ones of the latest document without a
            prefix; 0 for that one.
        spans: The same on the device, so that no layer waits for it.
        windows: The sliding window of each layer that has attended by them, None for one without.
    """

    lengths: list[int]
    prefixes: list[int]
    spans: Spans
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
    lengths, prefixes = (ends - starts).tolist(), positions.flatten()[starts].tolist()
    shared = 0
    for length, prefix in zip(lengths, prefixes, strict=True):
        shared = shared if prefix else length
        if prefix > shared:
            raise ValueError(f"position_ids: a document begins at {prefix}, and the one before it has {shared} tokens.")
    return Documents(lengths, prefixes, _spans(lengths, prefixes, position_ids.device))


def _spans(lengths: list[int], prefixes: list[int], device: torch.device) -> Spans:
    """See `Spans`; made on the host."""
    seen = [prefix + length for prefix, length in zip(prefixes, lengths, strict=True)]
    queries, keys = (torch.tensor([0, *counts]).cumsum(0) for counts in (lengths, seen))
    places, shared = [], 0
    for start, length, prefix in zip(queries.tolist(), lengths, prefixes, strict=False):
        shared = shared if prefix else start
        places += [torch.arange(shared, shared + prefix), torch.arange(start, start + length)]
    laid = torch.cat(places).to(device) if any(prefixes) else None
    return Spans(queries.int().to(device), keys.int().to(device), (max(lengths), max(seen)), laid)


def decoder_options(position_ids: Tensor) -> dict[str, Any]:
    """Keywords for a decoder whose layers attend by document.

    A 4-D mask is a finished one to transformers, which then builds none. Who looks at this one sees nothing.
    """
    nothing = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=position_ids.device)
    return {"documents": documents_of(position_ids), "attention_mask": nothing}


def flash_options(position_ids: Tensor) -> dict[str, Any]:
    """Keywords for a decoder whose layers attend by flash-attn, whose kernel takes all documents, laid end to end.

    Without them transformers looks for the documents in each layer, which then waits for the device.
    """
    spans = documents_of(position_ids).spans
    starts = {f"cu_seq_lens_{of}": spans.queries for of in "qk"}
    return {"attention_mask": None, **starts, **{f"max_length_{of}": spans.longest[0] for of in "qk"}}


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
    attend = _at_once if takes_all(query, value, dropout) else _one_by_one
    # Rounded as autocast would for the kernel, but before heads share keys and not for each of them.
    laid = (x.to(_dtype(x)).transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    return attend(*laid, documents, window, dropout, scaling).unflatten(0, (rows, tokens)), None


def takes_all(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether one kernel, flash's for variable lengths, takes all documents; elsewhere each has a call of its own.

    Args:
        query: [.., D].
        value: [.., E].
        dropout: Of the probabilities.
    """
    size = query.shape[-1]
    fits = size == value.shape[-1] and size <= LARGEST_HEAD and size % 8 == 0 and dropout == 0
    return query.is_cuda and _dtype(query) in (torch.bfloat16, torch.float16) and fits


def _dtype(x: Tensor) -> torch.dtype:
    """What attention is computed in; torch's own functions heed autocast by themselves."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _at_once(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Documents,
    window: int | None,
    dropout: float,  # 0
    scaling: float | None,
) -> Tensor:
    """Attention of all documents by one kernel, [N, H, D] over [N, K, D] to [N, H, D]."""
    spans = documents.spans
    if spans.places is not None:
        k, v = k[spans.places], v[spans.places]
    if not SHARES_HEADS:
        k, v = _for_each_head(k, q.shape[1]), _for_each_head(v, q.shape[1])
    # The last token of a document sees the last one that there is, itself, and so many at its left; none at its right.
    options = {"scale": scaling, "window_size": (-1 if window is None else window - 1, 0)}
    options |= {"enable_gqa": True} if SHARES_HEADS else {}
    return varlen_attn(q, k, v, spans.queries, spans.keys, *spans.longest, **options)


def _one_by_one(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, window: int | None, dropout: float, scaling: float | None
) -> Tensor:
    """Attention of each document by a call of its own, [N, H, D] over [N, K, D] to [N, H, E]."""
    # Split and joined at once: the gradient of a slice would be as large as all rows, for each document.
    columns = [x.split(documents.lengths) for x in (q, k, v)]
    attended: list[Tensor] = []
    for prefix, query, key, value in zip(documents.prefixes, *columns, strict=True):
        if prefix == 0:
            shared, cuts = (key, value), {}
        else:
            if prefix not in cuts:  # once for all that go on from there
                cuts[prefix] = [x[:prefix] for x in shared]
            key, value = (torch.cat(parts) for parts in zip(cuts[prefix], (key, value), strict=True))
        attended.append(_causal(query, key, value, window, dropout, scaling))
    return torch.cat(attended).flatten(1, 2)


def _for_each_head(x: Tensor, heads: int) -> Tensor:
    """Repeat what heads share, [N, K, D] to [N, H, D]."""
    return x.unsqueeze(2).expand(-1, -1, heads // x.shape[1], -1).flatten(1, 2)


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
        with sdpa_kernel(KERNELS):
            parts.append(scaled_dot_product_attention(*heads, mask, dropout, is_causal=plain, scale=scaling))
    return torch.cat(parts, 2).permute(2, 0, 1, 3)


def _mask(n: int, m: int, window: int | None, device: torch.device) -> Tensor:
    """Which of m tokens each of the last n sees, [n, m], bool."""
    mask = torch.ones(n, m, dtype=torch.bool, device=device).tril_(m - n)
    return mask if window is None else mask.triu_(m - n - window + 1)


AttentionInterface.register(BY_DOCUMENT, attention_by_document)
AttentionMaskInterface.register(BY_DOCUMENT, sdpa_mask)

"""The step of `gpu_session` that times attention over a packed row by the ways there are."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks.gpu_device import Measurements, device_of, machine, peak, seconds
from lightning_modules.policy import attention as policy_attention

MIXES = {  # tokens of the documents of a row, 4,096 in all
    "24 documents": [
        *(96, 103, 110, 117, 121, 128, 131, 137, 140, 146, 149, 153),
        *(158, 162, 168, 173, 179, 188, 197, 214, 233, 262, 311, 320),
    ],
    "8 documents": [310, 356, 402, 447, 495, 561, 690, 835],
}
HEADS = (28, 4, 128)  # query heads, key heads, values of a head: of 7B


def attention(small: bool) -> Measurements:
    """Forward and backward pass of attention over a packed row, by variants, against one causal flash of its length."""
    device = device_of(small)
    yield "machine", partial(machine, device)
    heads, shared, size = (4, 2, 16) if small else HEADS
    dtype = torch.float32 if small else torch.bfloat16
    variants = ["dense mask", "each document"]
    variants += (
        [] if small else ["one kernel", "one kernel, heads shared", "dense mask, cuDNN", "dense mask, efficient"]
    )
    for mix, lengths in MIXES.items():
        lengths = [n // 16 for n in lengths] if small else lengths
        positions = torch.cat([torch.arange(n) for n in lengths]).to(device)
        row = PackedRow(positions, policy_attention.documents_of(positions[None]))
        shapes = [(1, h, len(positions), size) for h in (heads, shared, shared)]
        inputs = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]
        for variant in (*variants, "flash, one document"):
            yield f"{mix}: {variant}", partial(_passes, partial(VARIANTS[variant], row), inputs, device)
        yield f"{mix}: documents", partial(_documents, row, device)
    if not small:  # it compiles
        yield f"{mix}: flex", partial(_passes, _flex(lengths, device), inputs, device)


def _passes(attend: Callable[..., Tensor], inputs: list[Tensor], device: torch.device) -> dict[str, float]:
    def both() -> None:
        output = attend(*inputs)
        torch.autograd.grad(output, inputs, torch.ones_like(output))

    with torch.no_grad():
        forward = seconds(lambda: attend(*inputs), device)
    with peak(device) as memory:
        whole = seconds(both, device)
    return {"forward, ms": 1e3 * forward, "both, ms": 1e3 * whole, **memory}


class PackedRow(NamedTuple):
    """Positions of a row, [T], and its documents, as a batch has them for all its layers."""

    positions: Tensor
    documents: policy_attention.Documents


def _documents(row: PackedRow, device: torch.device) -> dict[str, float]:
    return {"ms a batch": 1e3 * seconds(lambda: policy_attention.documents_of(row.positions[None]), device)}


def _dense(row: PackedRow, q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend | None = None) -> Tensor:
    documents = (row.positions == 0).cumsum(0)
    mask = (documents[:, None] == documents).tril()[None, None]
    module = SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1], is_causal=True)
    with sdpa_kernel(backend) if backend else nullcontext():
        return sdpa_attention_forward(module, q, k, v, mask)[0]


def _by_document(row: PackedRow, q: Tensor, k: Tensor, v: Tensor, at_once: bool = False) -> Tensor:
    with patch.object(policy_attention, "takes_all", lambda *_: at_once):
        return policy_attention.attention_by_document(None, q, k, v, None, documents=row.documents)[0]


def _heads_shared(row: PackedRow, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The kernel for all documents, given fewer key heads than query heads, where its signature has no word for it."""
    spans = row.documents.spans
    laid = (x[0].transpose(0, 1) for x in (q, k, v))
    options = {"window_size": (-1, 0), **({"enable_gqa": True} if policy_attention.SHARES_HEADS else {})}
    return varlen_attn(*laid, spans.queries, spans.keys, *spans.longest, **options)


def _one_causal(row: PackedRow, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


VARIANTS: dict[str, Callable[..., Tensor]] = {
    "dense mask": _dense,
    "dense mask, cuDNN": partial(_dense, backend=SDPBackend.CUDNN_ATTENTION),
    "dense mask, efficient": partial(_dense, backend=SDPBackend.EFFICIENT_ATTENTION),
    "each document": _by_document,
    "one kernel": partial(_by_document, at_once=True),
    "one kernel, heads shared": _heads_shared,
    "flash, one document": _one_causal,
}


def _flex(lengths: list[int], device: torch.device) -> Callable[..., Tensor]:
    documents = torch.arange(len(lengths), device=device).repeat_interleave(torch.tensor(lengths, device=device))
    kept: list[Any] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not kept:
            mask = create_block_mask(
                lambda b, h, i, j: (i >= j) & (documents[i] == documents[j]), 1, 1, *[len(documents)] * 2, device=device
            )
            kept.extend((torch.compile(flex_attention), mask))
        return kept[0](q, k, v, block_mask=kept[1], enable_gqa=True)

    return attend

"""Attention of one query a row to keys that several query heads share, without a copy of them for each head."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lightning_modules.policy.attention import BY_DOCUMENT

NAME = "sdpa_of_shared_keys"
REPLACED = ("sdpa", BY_DOCUMENT)  # the second is the first wherever rows hold no documents


def shared_key_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`sdpa` of transformers; the query heads that share a key head become queries of one head where that is the same.

    Args:
        module: The attention layer.
        query: [B, H x G, Q, D]; only for Q = 1 is anything different.
        key: [B, H, C, D].
        value: [B, H, C, D].
        attention_mask: [B, 1, Q, C] or None.
        scaling: Of the products; 1 / sqrt(D) when None.
        **kwargs: What else `sdpa` takes.

    Returns:
        [B, Q, H x G, D], and None in the place of the probabilities.
    """
    heads = key.shape[1]
    shared = query.shape[1] // heads
    alike = attention_mask is None or attention_mask.shape[1] == 1  # a mask of each head could not be shared
    if query.shape[2] > 1 or shared == 1 or not alike or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    queries = query.reshape(len(query), heads, shared, query.shape[-1])
    output = scaled_dot_product_attention(queries, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(len(query), 1, heads * shared, output.shape[-1]), None


AttentionInterface.register(NAME, shared_key_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def sharing_keys(model: PreTrainedModel) -> Iterator[None]:
    """A model whose attention is `sdpa` has `shared_key_attention` for a while."""
    config = model.config.get_text_config(decoder=True)
    own = config._attn_implementation
    if own in REPLACED:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = own

"""Attention to shared keys equals that of transformers, in both shapes of mask and where nothing is shared."""

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lightning_modules.generators.attention import shared_key_attention


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("masks", [0, 1, 6])
@pytest.mark.parametrize("heads", [1, 2, 6])
def test_equals_sdpa_of_repeated_keys(heads, masks, queries):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, queries, 8, generator=generator)
    key, value = (torch.randn(2, heads, 9, 8, generator=generator) for _ in range(2))
    mask = torch.rand(2, masks, queries, 9, generator=generator) > 0.3 if masks else None
    module = SimpleNamespace(num_key_value_groups=6 // heads, is_causal=True)
    got, _ = shared_key_attention(module, query, key, value, mask, scaling=0.4, dropout=0.0)
    want, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.4, dropout=0.0)
    assert got.shape == (2, queries, 6, 8)
    torch.testing.assert_close(got, want)

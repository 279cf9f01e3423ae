"""Memory that a step has freed."""

from torch import nn

from lightning_modules.policy.freed_memory import is_large


def test_freed_memory_is_returned_only_for_large_embeddings():
    # 2^27 bytes are 2^25 weights of float32, 2^17 ids x 256
    assert is_large(nn.Embedding(2**17, 256, device="meta"))
    assert not is_large(nn.Embedding(2**17 - 1, 256, device="meta"))

"""Memory that a step on a CPU has freed, returned to the system: the next step may not fit into its pieces."""

from ctypes import CDLL
from typing import Any

from torch import Tensor, nn

LARGE = 2**27
"""Bytes of an embedding, 128 MiB, from which on freed memory is returned: small models would fault pages in again."""


def return_freed_before_embedding(embedding: nn.Module) -> None:
    """Let the system have what a backward pass on a CPU has freed when the embedding's gradient, of all ids, is due."""
    embedding.register_forward_hook(_hook_result)


def _hook_result(embedding: nn.Module, given: Any, embedded: Tensor) -> None:
    if embedded.requires_grad and embedded.device.type == "cpu" and is_large(embedding):
        embedded.register_hook(lambda _: return_freed())


def is_large(embedding: nn.Module) -> bool:
    """Whether it takes `LARGE` bytes or more."""
    return sum(weight.numel() * weight.element_size() for weight in embedding.parameters()) >= LARGE


def return_freed() -> None:
    """Let the system have the pages of memory that was freed; nothing where the C library is not glibc."""
    if trim := getattr(CDLL(None), "malloc_trim", None):
        trim(0)

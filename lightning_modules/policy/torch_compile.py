"""Compiled decoder layers: each by itself, with one compiled code for all that are alike, and not while generating."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from lightning_modules.policy.attention import BY_DOCUMENT, attention_by_document

BACKEND = "inductor"
KERNELS = ("sdpa", "eager")
"""Attention that compiled layers are tested with."""
VARIANTS = 128
"""Compilations of one function after which torch runs it as it is; it allows 8. Kinds of layers, training, validation,
scores with and without adapters, and single tokens need some each."""


def check_compiles(attn_implementation: str) -> None:
    """Refuse to compile where it is known not to work.

    Raises:
        ValueError: There is no compiler, or attention is of a kind that was not tried.
    """
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        raise ValueError(
            f"model.torch_compile needs a C++ compiler, and there is no {compiler} here: install one, name it in the "
            "environment as CXX, or leave model.torch_compile out."
        )
    if attn_implementation not in KERNELS:
        raise ValueError(
            f"model.torch_compile goes with model.attn_implementation {' or '.join(KERNELS)}, and it is "
            f"{attn_implementation}: change or leave out one of the two."
        )


def compile_layers(policy: nn.Module) -> None:
    """Let each decoder layer of a policy be compiled when it is first called, in place; names and classes stay.

    Lengths are symbols in what is compiled, so that others need no compilation of their own; a length of one does.
    Attention by document is called from in between: it knows the lengths of documents as numbers. Where a layer
    computes its activations again, it is the compiled one that does. `fully_shard` comes afterwards, as its hooks are
    called from in between, too. Copies of the policy are not compiled.

    Args:
        policy: The model, with its adapters.

    Raises:
        ValueError: The model has no layers that transformers knows as such.
    """
    from torch._dynamo import config  # here: other runs need none of it

    layers = [module for module in policy.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            "model.torch_compile: the model has no decoder layers that transformers knows as such: leave it out."
        )
    config.recompile_limit = max(config.recompile_limit, VARIANTS)
    config.optimize_ddp = False  # would cut what is compiled at the ends of buckets; layers are as fine a cut
    AttentionInterface.register(BY_DOCUMENT, torch.compiler.disable(attention_by_document))
    for layer in layers:
        layer.compile(backend=BACKEND, dynamic=True)


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Context in which the layers of a model run as they are: decoding would compile them for its caches."""
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield

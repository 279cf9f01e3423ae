"""A mapped file in place of a GPU's memory, for vLLM's transfer over CUDA IPC: what both of its sides ask CUDA for.

A real engine's workers import this module (`worker_extension_cls`); the trainer's side is patched by a test.
"""

from types import SimpleNamespace

import torch
from vllm.distributed.weight_transfer import ipc_engine
from vllm.platforms import current_platform

UUID = "GPU-0"


def properties(index):
    """Those of the one GPU that there seems to be."""
    return SimpleNamespace(uuid=UUID)


def mapped(file, size):
    """Bytes that every process sees which maps the file."""
    return torch.from_file(file, shared=True, size=size, dtype=torch.uint8)


def rebuild(*handle):
    """Of a handle, whose seventh part is the number of the reader's GPU, as of torch's."""
    file, size = handle[:2]
    assert handle[6] == torch.device(current_platform.device_type).index
    return mapped(file, size)


class Workers:
    """An extension of the workers; that it is imported is all."""


if current_platform.is_cpu():
    torch.multiprocessing.reductions.rebuild_cuda_tensor = rebuild
    torch.cuda.get_device_properties = properties
    ipc_engine.rebuild_cuda_tensor = rebuild

"""A mapped file in place of a GPU's memory, for vLLM's transfer over CUDA IPC: what both of its sides ask CUDA for.

A real engine's workers import this module (`worker_extension_cls`), and the trainer's side calls `share`.
"""

import os
from types import SimpleNamespace

import torch
from vllm.distributed.weight_transfer import ipc_engine, packed_tensor
from vllm.platforms import current_platform

GPU = "MAPPED_GPU"
"""Of the environment: the name of this rank's GPU, which its engine's workers inherit."""


def properties(index):
    """Those of the one GPU that a process seems to have."""
    return SimpleNamespace(uuid=os.environ[GPU])


def mapped(file, size):
    """Bytes that every process sees which maps the file."""
    return torch.from_file(file, shared=True, size=size, dtype=torch.uint8)


def rebuild(*handle):
    """Of a handle, whose seventh part is the number of the reader's GPU, as of torch's."""
    file, size, *_, device = handle
    assert device == torch.device(current_platform.device_type).index
    return mapped(file, size)


def share(patch, folder):
    """Have the trainer's side map files.

    Args:
        patch: `setattr`, or pytest's.
        folder: Of the files, this process' own.

    Returns:
        A list that takes the size of each.
    """
    sizes = []

    def empty(size, dtype, device):
        assert (dtype, device) == (torch.uint8, "cuda")
        file = f"{folder}/{len(sizes)}"
        sizes.append(size)
        tensor = mapped(file, size)
        tensor.file = file
        return tensor

    def reduce(tensor):
        return None, (tensor.file, tensor.numel(), torch.Tensor, tensor.shape, tensor.dtype, b"", None)

    stream = SimpleNamespace(synchronize=lambda: None)
    here = SimpleNamespace(uint8=torch.uint8, empty=empty, cuda=SimpleNamespace(current_stream=lambda: stream))
    patch(packed_tensor, "torch", here)
    patch(packed_tensor, "reduce_tensor", reduce)
    patch(torch.accelerator, "current_device_index", lambda: 0)
    patch(torch.cuda, "get_device_properties", properties)
    for name in ("ipc_collect", "synchronize"):
        patch(torch.cuda, name, lambda: None)
    return sizes


class Workers:
    """An extension of the workers; that it is imported is all."""


if current_platform.is_cpu():
    torch.multiprocessing.reductions.rebuild_cuda_tensor = rebuild
    torch.cuda.get_device_properties = properties
    ipc_engine.rebuild_cuda_tensor = rebuild

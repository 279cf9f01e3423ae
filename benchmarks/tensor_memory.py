"""Bytes that tensors hold at any time, and bytes that collectives move; of fake tensors, too.

`TensorMemory` counts storages as operations make and free them, so that it sees fake tensors, which have a size and no
memory. `allocator_peak` asks torch's allocator, which knows real tensors only: the other is checked against it.
"""

import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._guards import active_fake_mode
from torch.distributed._tools.common_utils import get_untyped_storages
from torch.distributed._tools.fake_collectives import CollectiveOp, collective_ops, sync_ops
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of all storages that operations under it have made and not freed.

    Attributes:
        bytes: At this time.
        peak: At most, since the start or since it was set anew.
        moved: Bytes that this rank receives in collectives, by their name and the size of their group; for n ranks and
            a whole of S bytes that is S (n - 1) / n of an all-gather or reduce-scatter and twice that of an all-reduce.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.moved: Counter[tuple[str, int]] = Counter()
        self._sizes: dict[int, int] = {}  # by the id of a storage in use
        self._watches: dict[int, weakref.ref] = {}

    def __enter__(self) -> "TensorMemory":
        """Watch operations, and the storages that FSDP empties and fills again without one."""
        self._mode, self._resize = active_fake_mode(), torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, size: int) -> None:
            self._resize(storage, size)
            if id(storage) in self._sizes:
                self._count(id(storage), size)

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it makes."""
        if DTensor in types:
            return NotImplemented  # it comes again with the local shards
        if func is torch.ops._c10d_functional.wait_tensor.default and active_fake_mode():
            return args[0]  # its fake makes a new tensor
        result = func(*args, **kwargs or {})
        if active_fake_mode() is not self._mode:
            return result  # DTensor tries out what shapes come of an operation
        if func in collective_ops - sync_ops:
            ranks = CollectiveOp.get_process_group(func, args).size()
            whole = CollectiveOp.get_comm_tensor_size(func, result, args, kwargs or {})
            name = func.name().split("::")[1].split(".")[0].strip("_")
            self.moved[name, ranks] += (2 if "allreduce" in name else 1) * whole * (ranks - 1) // ranks
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                for storage in get_untyped_storages(tensor):
                    self._watch(storage)
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key not in self._sizes:
            self._sizes[key] = 0
            self._watches[key] = weakref.ref(storage, lambda _: self._forget(key))
            self._count(key, storage.nbytes())

    def _count(self, key: int, size: int) -> None:
        self.bytes += size - self._sizes[key]
        self._sizes[key] = size
        self.peak = max(self.peak, self.bytes)

    def _forget(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)
        del self._watches[key]


class Selected(TorchDispatchMode):
    """Gives boolean indices, whose values fake tensors do not know, the shape that they would select.

    Args:
        share: Share of the positions that a mask over [R, T] selects; one over [N] selects all of them.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Select leading positions instead."""
        aten = torch.ops.aten
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default):
            (mask,) = args[1] if len(args[1]) == 1 else (None,)
            if mask is not None and mask.dtype == torch.bool:
                flat, shape = args[0].flatten(0, mask.ndim - 1), args[0].shape
                count = int(mask.numel() * (self.share if mask.ndim == 2 else 1))
                chosen = torch.zeros(count, dtype=torch.long)
                result = func(flat, [chosen], *args[2:], **kwargs or {})
                return result if func is aten.index.Tensor else result.view(shape)
        if func is aten._unique2.default:
            return args[0].new_empty(2), torch.empty_like(args[0]), args[0].new_empty(2)
        return func(*args, **kwargs or {})


@contextmanager
def allocator_peak(device: torch.device) -> Iterator[list[int]]:
    """The greatest number of bytes that torch's allocator has handed out inside, beyond those at the start.

    Yields:
        A list that holds it at the end.
    """
    found: list[int] = []
    gc.collect()  # what is freed inside must not have been allocated before
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.append(torch.cuda.max_memory_allocated(device) - before)
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        yield found
    events = [event for event in prof.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    found.append(peak)

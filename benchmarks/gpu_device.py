"""The device of a GPU session: its name, times and memory on it; the CPU to try steps on."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch

Measurements = Iterator[tuple[str, Callable[[], Any]]]


def device_of(small: bool) -> torch.device:
    """The GPU, or a CPU to try things on."""
    return torch.device("cpu" if small else "cuda")


def machine(device: torch.device) -> dict[str, Any]:
    """Name of the device and version of torch; a step's first measurement, which also starts CUDA."""
    return {"device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU", "torch": torch.__version__}


def seconds(take: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """Median seconds of some repeats after one that is not counted."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    times = []
    for _ in range(repeats + 1):
        wait()
        begun = time.perf_counter()
        take()
        wait()
        times.append(time.perf_counter() - begun)
    return median(times[1:])


@contextmanager
def peak(device: torch.device) -> Iterator[dict[str, float]]:
    """Gives a dict that holds, afterwards, the GB that came on top of what was held before."""
    found: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    yield found
    if device.type == "cuda":
        found["peak, GB"] = (torch.cuda.max_memory_allocated() - before) / 1e9

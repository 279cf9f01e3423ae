"""Collectives on plain values: gather from every rank, reduce sums and maxima, raise everywhere what one rank raised.

Every function is a collective: each rank has to call it. Without a process group there is one rank.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


def of_every_rank(value: Any) -> list[Any]:
    """Gather a value that can be pickled from every rank.

    Returns:
        The values in order of the ranks, on each of them.
    """
    values = [value]
    if dist.is_initialized():
        values = [None for _ in range(dist.get_world_size())]
        dist.all_gather_object(values, value)
    return values


def over_ranks(
    sums: dict[str, float], peaks: dict[str, float], device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """Reduce numbers over all ranks in one collective; every rank must give the same names.

    Args:
        sums: Numbers to add up.
        peaks: Numbers of which to take the greatest.
        device: Where the process group communicates.

    Returns:
        Both, reduced in float64.
    """
    mine = torch.tensor([*sums.values(), *peaks.values()], dtype=torch.float64, device=device)
    every_rank = [mine]
    if dist.is_initialized():
        every_rank = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(every_rank, mine)
    stacked = torch.stack(every_rank)
    total, greatest = stacked.sum(0).tolist(), stacked.max(0).values.tolist()
    return dict(zip(sums, total, strict=False)), dict(zip(peaks, greatest[len(sums) :], strict=True))


@contextmanager
def failing_together() -> Iterator[None]:
    """Context that raises on every rank what is raised on one of them, for which the others would wait forever.

    Raises:
        ValueError: What another rank has raised, be it that or an OSError.
    """
    error: ValueError | OSError | None = None
    try:
        yield
    except (ValueError, OSError) as own:
        error = own
    complaints = of_every_rank(str(error) if error else "")
    if error:
        raise error
    if complaint := next(filter(None, complaints), ""):
        raise ValueError(complaint)

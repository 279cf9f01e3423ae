"""Ranks that share an engine, or a node: the first of them acts for all, and the others send it their requests."""

import platform
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from lightning_modules.ranks import of_every_rank

Request = TypeVar("Request")
Answer = TypeVar("Answer")

BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Tells machines apart that have the same name, as NCCL does."""


class EngineGroup:
    """The ranks that share one engine, or a node's weights, as this rank sees them; all ranks make one together.

    They wait for each other on the CPU: NCCL would keep their GPUs busy beside the engine, and give up in ten minutes.

    Args:
        size: Ranks of a group; neighbours, so that they are on one node. 1 shares nothing.
        timeout: Seconds that they wait for each other.

    Raises:
        ValueError: If the ranks cannot be divided into groups of that size.
    """

    def __init__(self, size: int, timeout: float = 1800.0) -> None:
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if ranks % size:
            raise ValueError(
                f"The generator's tensor_parallel_size {size} does not divide the {ranks} ranks of this run: give a "
                "divisor of the number of GPUs of a node."
            )
        self.size = size
        waits = {"backend": "gloo", "timeout": timedelta(seconds=timeout)}
        self.group = dist.new_subgroups(size, **waits)[0] if size > 1 else None
        rank = dist.get_rank() if ranks > 1 else 0
        self.first = rank // size * size

    @property
    def leads(self) -> bool:
        """Whether this rank runs the engine."""
        return self.group is None or dist.get_rank() == self.first

    def ask(self, request: Request, answer: Callable[[list[Request]], list[Answer]]) -> Answer:
        """The engine's answers to this rank's requests: the first rank asks it for all of them; a collective.

        Args:
            request: Of this rank.
            answer: Called on the first rank, with every rank's request; gives an answer for each.

        Returns:
            The answer to this rank's request.
        """
        if self.group is None:
            return answer([request])[0]
        requests: list[Request] | None = [request] * self.size if self.leads else None
        dist.gather_object(request, requests, dst=self.first, group=self.group)
        answers = answer(requests) if requests is not None else [None] * self.size
        mine: list[Answer] = [None]  # type: ignore[list-item]
        dist.scatter_object_list(mine, answers if self.leads else None, src=self.first, group=self.group)
        return mine[0]

    def wait(self) -> None:
        """Wait for the other ranks of the group; a collective."""
        self.ask(None, list)


def ranks_of_node(size: int) -> int:
    """How many neighbouring ranks are on each node; a collective.

    Args:
        size: Ranks that share an engine; given back where nodes do not have equally many, a multiple of it, in a row.
    """
    nodes = of_every_rank((platform.node(), BOOT.read_text() if BOOT.exists() else ""))
    count = nodes.count(nodes[0])
    regular = nodes == [node for node in dict.fromkeys(nodes) for _ in range(count)]
    return count if regular and count % size == 0 else size

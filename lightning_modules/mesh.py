"""The device mesh that a policy is sharded over, and how long ranks wait for each other."""

import math
from datetime import timedelta

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

WAIT = 60.0
"""Minutes that ranks wait for each other unless told: they sample for different times, and rank 0 alone loads or writes
some files."""


def waiting(minutes: float) -> timedelta:
    """`timeout_minutes` as torch has it.

    Raises:
        ValueError: It is no time.
    """
    if not 0 < minutes < math.inf:
        raise ValueError(f"trainer.strategy: timeout_minutes is {minutes}; give a number greater than 0.")
    return timedelta(minutes=minutes)


def make_mesh(device: torch.device, sizes: tuple[int, ...], timeout: timedelta) -> DeviceMesh:
    """The ranks as one group that shares a copy of the weights, or as several that replicate it.

    Args:
        device: Of this rank.
        sizes: The number of ranks; or of groups, and of ranks in each.
        timeout: How long ranks wait for each other. A group that is not of all ranks would have torch's own, which
            under NCCL is ten minutes.
    """
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=("replicate", "shard")[-len(sizes) :])
    for group in mesh.get_all_groups():
        _set_pg_timeout(timeout, group)
    return mesh

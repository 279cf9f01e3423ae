"""The groups of the mesh, and how long their ranks wait."""

from datetime import timedelta

import torch
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_modules import mesh
from lightning_modules.mesh import make_mesh


def test_every_group_of_the_mesh_waits_as_long_as_the_run(monkeypatch):
    waits = []
    monkeypatch.setattr(mesh, "_set_pg_timeout", lambda timeout, group: waits.append((group.size(), timeout)))
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    try:
        whole, hybrid = (make_mesh(torch.device("cpu"), sizes, timedelta(minutes=5)) for sizes in ((8,), (2, 4)))
    finally:
        torch.distributed.destroy_process_group()
    assert (whole.shape, hybrid.shape) == ((8,), (2, 4)) and hybrid.mesh_dim_names == ("replicate", "shard")
    assert waits == [(ranks, timedelta(minutes=5)) for ranks in (8, 2, 4)]

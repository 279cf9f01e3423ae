import os
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_modules.checkpointing import formats as checkpoints
from lightning_modules.checkpointing import sharded as sharded_checkpoints
from lightning_modules.checkpointing.formats import (
    AnyCheckpointIO,
    load,
    optimizer_state_to_names,
    optimizer_state_to_places,
    save_file,
)
from lightning_modules.checkpointing.sharded import save_shards
from lightning_modules.strategies import FSDP2


def stepped(groups):
    """AdamW after a step whose gradients differ by parameter, so that every state is another."""
    optimizer = torch.optim.AdamW([{"params": group, "lr": 0.1 * (i + 1)} for i, group in enumerate(groups)])
    for place, parameter in enumerate(p for group in groups for p in group):
        parameter.grad = torch.full_like(parameter, place + 1.0)
    optimizer.step()
    return optimizer


def test_states_find_their_parameters_in_groups_of_another_order():
    a, b, c = (nn.Parameter(torch.ones(2)) for _ in range(3))
    saved = optimizer_state_to_names(stepped([[a, b], [c]]).state_dict(), [["a", "b"], ["c"]])
    assert saved["param_groups"][0]["params"] == ["a", "b"] and set(saved["state"]) == {"a", "b", "c"}
    other = torch.optim.AdamW([{"params": [c]}, {"params": [b, a]}])
    other.load_state_dict(optimizer_state_to_places(saved, [["c"], ["b", "a"]]))
    # the first moment is 0.1 x the gradient: 1 for a, 2 for b, 3 for c
    assert [other.state[p]["exp_avg"][0].item() for p in (a, b, c)] == pytest.approx([0.1, 0.2, 0.3])
    assert [group["lr"] for group in other.param_groups] == pytest.approx([0.2, 0.1])
    with pytest.raises(ValueError, match="trains other parameters"):
        optimizer_state_to_places(saved, [["c"], ["b"]])


def test_a_file_takes_its_place_when_all_of_it_is_written(tmp_path, monkeypatch):
    path = tmp_path / "run" / "last.ckpt"
    save_file({"step": 1}, path)

    for error in (OSError("no room"), RuntimeError("unexpected pos 128 vs 0")):  # the latter is torch's

        def disk_full(checkpoint, place, error=error):
            place.write_bytes(b"half")
            raise error

        with monkeypatch.context() as patch, pytest.raises(OSError, match=rf"{path} cannot be written.*{error}"):
            patch.setattr(checkpoints.torch, "save", disk_full)
            save_file({"step": 2}, path)
        assert load(path) == {"step": 1}
    save_file({"step": 2}, path)
    assert load(path) == {"step": 2} and [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.fixture
def one_rank(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_folder_of_shards_takes_its_place_when_all_of_it_is_written(tmp_path, one_rank, monkeypatch):
    folder = tmp_path / "run" / "last.ckpt"

    def save(value):
        save_shards({"w": torch.full((3,), value)}, None, {"step": value}, folder)

    def found():
        assert [path.name for path in folder.parent.iterdir()] == ["last.ckpt"]
        state = load(folder)
        return state["step"], state["state_dict"]["w"].tolist()

    save(1.0)

    write, places = torch.save, {"shards": (torch, "save"), "meta.pt": (torch, "save"), "fsync": (os, "fsync")}
    places["name"] = (sharded_checkpoints, "atomic_write")
    for part, place in places.items():

        def disk_full(*args, part=part):
            if part == "meta.pt" and getattr(args[1], "name", "") != part:
                return write(*args)
            raise OSError(f"disk full: {part}")

        with monkeypatch.context() as patch, pytest.raises(OSError, match=f"disk full: {part}"):
            patch.setattr(*place, disk_full)
            save(2.0)
        assert found() == (1.0, [1.0, 1.0, 1.0])
    save(2.0)
    assert found() == (2.0, [2.0, 2.0, 2.0])
    save_file({"step": 3}, folder)  # where a run that shards nothing goes on in its place
    assert load(folder) == {"step": 3}


def test_shards_are_written_without_a_gpu_where_there_is_one(tmp_path, one_rank, monkeypatch):
    def touched(*args):
        raise AssertionError("a stream of the first GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", touched)
    save_shards({"w": torch.ones(3)}, None, {"step": 1}, tmp_path / "last.ckpt")
    assert load(tmp_path / "last.ckpt")["state_dict"]["w"].tolist() == [1.0] * 3


@pytest.mark.parametrize("fsync", [True, False])
def test_a_checkpoint_is_flushed_to_the_disk_unless_told_otherwise(tmp_path, one_rank, monkeypatch, fsync):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    AnyCheckpointIO(fsync).save_checkpoint({"step": 1}, tmp_path / "one.ckpt")
    strategy = FSDP2()
    assert strategy.fsync  # also without the command line
    strategy.checkpoint_io = AnyCheckpointIO(fsync)
    strategy.__dict__ |= {"broadcast": lambda path: path, "_fabric": None}
    monkeypatch.setattr(FSDP2, "global_rank", 0)
    strategy.save_checkpoint({"state_dict": {"w": torch.ones(2)}, "step": 1}, tmp_path / "shards.ckpt")
    assert load(tmp_path / "shards.ckpt")["step"] == load(tmp_path / "one.ckpt")["step"] == 1
    names = {Path(path).name.split(".")[-1] for path in flushed}
    assert names >= {"distcp", "pt", "partial", "metadata", "tmp", tmp_path.name} if fsync else not flushed

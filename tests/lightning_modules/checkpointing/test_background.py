"""Checkpoints that are written while the run goes on: whole, of the moment they were asked for, one after the other."""

import threading
import time

import pytest
import torch

from lightning_modules.checkpointing import formats
from lightning_modules.checkpointing.background import Background, snapshot
from lightning_modules.checkpointing.formats import AnyCheckpointIO, load


def test_a_snapshot_stays_as_it_is_and_shares_what_was_shared():
    weight, counts = torch.ones(2, 3), [1, 2]
    state = {"w": weight, "head": weight, "part": weight[1], "none": [torch.zeros(0), torch.zeros(0, 2)], "at": counts}
    kept = snapshot(state)
    weight += 1
    counts.append(3)
    assert kept["w"].tolist() == [[1.0] * 3] * 2 and kept["part"].tolist() == [1.0] * 3 and kept["at"] == [1, 2]
    assert kept["w"] is kept["head"] and [tensor.shape for tensor in kept["none"]] == [(0,), (0, 2)]
    assert state["w"].tolist() == [[2.0] * 3] * 2


def test_one_thing_comes_after_the_other_and_nothing_after_what_has_failed():
    background, gate, done = Background(), threading.Event(), []
    background.start(gate.wait)
    background.follow(lambda: done.append("followed"))
    assert done == []  # and this thread has gone on
    gate.set()
    background.start(lambda: done.append("second"))
    background.wait()
    assert done == ["followed", "second"]

    def fail():
        raise OSError("disk full")

    background.start(fail)
    background.follow(lambda: done.append("never"))
    with pytest.raises(OSError, match="disk full"):
        background.wait()
    background.wait()  # raised once
    assert done == ["followed", "second"]


def test_what_is_being_written_is_read_when_it_is_there(tmp_path, monkeypatch):
    writer, write = AnyCheckpointIO(asynchronous=True), torch.save
    state = {"state_dict": {}, "loops": {}, "epoch": 0, "global_step": 1, "pytorch-lightning_version": "2.6.4"}

    def slowly(state, place):
        time.sleep(0.1)
        write(state, place)

    monkeypatch.setattr(formats.torch, "save", slowly)
    writer.save_checkpoint(state, tmp_path / "last.ckpt")
    assert writer.load_checkpoint(tmp_path / "last.ckpt") == state


def test_the_checkpoint_before_is_deleted_once_the_new_one_is_there_and_not_if_it_cannot_be_written(
    tmp_path, monkeypatch
):
    old, new, newer = (tmp_path / f"last-{step}.ckpt" for step in (1, 2, 3))
    writer, write, gate = AnyCheckpointIO(asynchronous=True), torch.save, threading.Event()
    writer.save_checkpoint({"step": 1}, old)
    writer.teardown()

    def slowly(state, place):
        gate.wait()
        write(state, place)

    monkeypatch.setattr(formats.torch, "save", slowly)
    state = {"w": torch.ones(2)}
    writer.save_checkpoint(state, new)
    writer.remove_checkpoint(old)
    state["w"] += 1
    assert old.is_file() and not new.exists()
    gate.set()
    writer.teardown()
    assert not old.exists() and load(new)["w"].tolist() == [1.0, 1.0]

    def full(state, place):
        raise OSError("no room")

    monkeypatch.setattr(formats.torch, "save", full)
    writer.save_checkpoint(state, newer)
    writer.remove_checkpoint(new)
    with pytest.raises(OSError, match=r"last-3.ckpt cannot be written.*no room"):
        writer.teardown()
    assert [path.name for path in tmp_path.iterdir()] == ["last-2.ckpt"]

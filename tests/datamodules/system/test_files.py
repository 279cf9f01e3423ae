"""Files and folders that are whole or not there."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from datamodules.system import files
from datamodules.system.files import atomic_write, check_file, check_writable, clear_unfinished, sync

KILLED = """
import os, sys
from pathlib import Path
from datamodules.system import files
path, moment = Path(sys.argv[1]), sys.argv[2]
if moment == "renaming":
    files.remove = lambda path: None
    files.os.replace = lambda new, path: os.kill(os.getpid(), 9) if not path.exists() else os.rename(new, path)
with files.atomic_write(path) as unfinished:
    unfinished.mkdir()
    (unfinished / "part").write_text("new")
    if moment == "writing":
        os.kill(os.getpid(), 9)
"""


def folder(path: Path, text: str) -> None:
    path.mkdir()
    (path / "part").write_text(text)


@pytest.mark.parametrize("fsync", [True, False])
@pytest.mark.parametrize("old", ["nothing", "file", "folder"])
@pytest.mark.parametrize("new", ["file", "folder"])
def test_what_is_written_replaces_what_was_there_and_leaves_nothing_beside(tmp_path, old, new, fsync):
    path = tmp_path / "made" / "name"
    path.parent.mkdir()
    if old == "folder":
        folder(path, "old")
    elif old == "file":
        path.write_text("old")
    with atomic_write(path, fsync) as unfinished:
        folder(unfinished, "new") if new == "folder" else unfinished.write_text("new")
        assert path.exists() == (old != "nothing")
    assert (path / "part" if new == "folder" else path).read_text() == "new"
    assert os.listdir(path.parent) == ["name"]


def test_the_present_folder_is_replaced_under_its_own_name(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with atomic_write(".", fsync=False) as unfinished:
        folder(unfinished, "new")
    assert (tmp_path / "here" / "part").read_text() == "new" and os.listdir(tmp_path) == ["here"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there_and_nothing_beside(tmp_path, error):
    path = tmp_path / "name"
    folder(path, "old")
    with pytest.raises(error), atomic_write(path) as unfinished:
        folder(unfinished, "new")
        raise error
    assert (path / "part").read_text() == "old" and os.listdir(tmp_path) == ["name"]


@pytest.mark.kills
@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_what_a_killed_writer_leaves_is_cleared_and_the_old_kept(tmp_path, moment):
    path = tmp_path / "name"
    folder(path, "old")
    killed = subprocess.run([sys.executable, "-c", KILLED, path, moment])
    assert killed.returncode == -9 and len(os.listdir(tmp_path)) > 1
    (tmp_path / ".of-another.lock").touch()
    clear_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".of-another.lock", "name"] and (path / "part").read_text() == "old"


def test_a_writer_that_lives_is_not_disturbed(tmp_path):
    with atomic_write(tmp_path / "one") as one:
        one.write_text("one")
        with atomic_write(tmp_path / "two") as two:
            two.write_text("two")
        clear_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_many_writers_of_one_folder_leave_one_of_theirs_whole(tmp_path):
    def write(text: str) -> None:
        with atomic_write(tmp_path / "name", fsync=False) as unfinished:
            folder(unfinished, text)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, map(str, range(200))))
    assert (tmp_path / "name" / "part").read_text() in map(str, range(200)) and os.listdir(tmp_path) == ["name"]


def test_all_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_old_one_is_gone(tmp_path, monkeypatch):
    path, done = tmp_path / "name", []
    folder(path, "old")

    def fsync(descriptor: int) -> None:
        file = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        old = any((place / "part").read_text() == "old" for place in tmp_path.glob("*name*") if place.is_dir())
        done.append(("unfinished" if file.name.endswith(".partial") else file.name, old))

    monkeypatch.setattr(files.os, "fsync", fsync)
    with atomic_write(path) as unfinished:
        folder(unfinished, "new")
    assert done == [("part", True), ("unfinished", True), (tmp_path.name, True), (tmp_path.name, True)]
    done.clear()
    sync(path / "part")
    assert done == [("part", False), ("name", False)]


def test_a_folder_that_cannot_be_written_is_refused_and_one_that_can_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_writable("key", tmp_path / "a" / "b") == check_writable("key", "~/a/b") == tmp_path / "a" / "b"
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ValueError, match="key is empty"):
        check_writable("key", "")
    with pytest.raises(ValueError, match="key: s3://bucket/x is no folder of this machine: give a local"):
        check_writable("key", "s3://bucket/x")  # which Path would make a folder `s3:` of
    for folder in ("file", "file/a", "loop/a", "a" * 300, "a\0b", "/proc/absent"):
        with pytest.raises(ValueError, match=r"^key: .* cannot be written"):
            check_writable("key", tmp_path / folder)


def test_a_file_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert check_file("key", "~/a/b.txt") == tmp_path / "a" / "b.txt" and check_file("key", "b.txt") == Path("b.txt")
    for file in ("s3://bucket/b.txt", "s3://b.txt"):
        with pytest.raises(ValueError, match=f"^key: {file} is no folder of this machine: give a local"):
            check_file("key", file)
    with pytest.raises(ValueError, match=r"^key \. is a folder: name a file in it"):
        check_file("key", ".")
    with pytest.raises(ValueError, match=r"^key: '/proc/absent' cannot be written"):
        check_file("key", "/proc/absent/b.txt")
    assert not list(tmp_path.iterdir())

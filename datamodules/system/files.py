"""Atomic writes of files and folders: under a temporary name beside their place, flushed to disk, then renamed."""

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

LOCK = re.compile(r"\.(.+)\.[0-9a-f]{32}\.lock")
"""Name of the file that a writer holds locked; what it has beside has the same name with another ending."""
IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR)
"""How a system says that a folder is to replace, or to be replaced by, what cannot be replaced in one step."""

POINTER = b"version https://git-lfs"
"""How what Git leaves in the place of a large file begins, where Git LFS has not fetched it."""

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""
SHIPPED = ("assets", "configs")  # folders of it that shipped YAMLs name


def shipped(path: str) -> str:
    """A path as it is or, where there is nothing, what this checkout ships under that name (`configs/rl.yaml`)."""
    here = ROOT / path
    ours = Path(path).parts[:1] in [(folder,) for folder in SHIPPED]
    return str(here) if ours and not os.path.lexists(path) and here.exists() else path


def is_pointer(file: Path) -> bool:
    """Whether Git has left a file in the place of a large one, which Git LFS has not fetched."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(len(POINTER)) == POINTER


def check_writable(key: str, folder: str | Path) -> Path:
    """Refuse a folder that is on another machine, or could not be made or written; nothing is left of the attempt.

    Args:
        key: The setting that names it.
        folder: The folder, there or not.

    Returns:
        The folder, with `~` spelt out.

    Raises:
        ValueError: Naming the setting, the folder and the reason.
    """
    if not str(folder):
        raise ValueError(f"{key} is empty: give a folder")
    if "://" in str(folder):
        raise ValueError(
            f"{key}: {folder} is no folder of this machine: give a local or a mounted one, and copy what it holds when "
            "all is done"
        )
    try:
        place = Path(folder).expanduser().absolute()
        os.stat(place)  # a name that is none, a way through a file, links in a circle
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RuntimeError) as error:
        raise _cannot_write(key, folder, error) from error
    there = next(path for path in (place, *place.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryDirectory(prefix=".probe-", dir=there):
            pass
    except OSError as error:
        raise _cannot_write(key, folder, error) from error
    return Path(folder).expanduser()


def check_file(key: str, file: str) -> Path:
    """Refuse a file to write that is a folder, or whose folder `check_writable` refuses.

    Args:
        key: The option that names it.
        file: The file, there or not.

    Returns:
        The file, with `~` spelt out.

    Raises:
        ValueError: Naming the option, the file or its folder, and the reason.
    """
    check_writable(key, file if "://" in file else os.path.dirname(file) or ".")
    place = Path(file).expanduser()
    if place.is_dir():
        raise ValueError(f"{key} {file} is a folder: name a file in it")
    return place


def _cannot_write(key: str, folder: str | Path, error: Exception) -> ValueError:
    reason = getattr(error, "strerror", None) or error
    return ValueError(f"{key}: {str(folder)!r} cannot be written ({reason}): give another folder")


@contextmanager
def atomic_write(path: str | Path, fsync: bool = True) -> Iterator[Path]:
    """Give a name beside `path` to write a file or a folder under; at the end it replaces what was there.

    An error or a kill leaves what was there. What a kill leaves beside it, the next write into that folder clears, or
    `clear_unfinished`. Several processes, on one host or on several, may write one path at once: the last one stays.

    Args:
        path: The file or folder; the folder that it lies in is made.
        fsync: Whether to wait until it is on the disk, so that it also outlives a power cut.

    Yields:
        A name that nothing has yet.
    """
    path = Path(os.path.abspath(path))  # "." has no name of its own
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_unfinished(path.parent)
    lock, held = _claim(path)
    unfinished, previous = _beside(lock)
    with held:
        try:
            yield unfinished
            if fsync:
                sync(unfinished)
            _replace(unfinished, path, previous)
            if fsync:
                _fsync(path.parent)
            remove(previous)  # here, for another writer may have put ours aside by now: nothing is to be put back
        finally:
            _clear(lock)


def write_text(path: str | Path, text: str, fsync: bool = True) -> None:
    """Write a text file in UTF-8 as `atomic_write` does; an interruption leaves the one that was there."""
    with atomic_write(path, fsync) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until a file, or a folder and all that lies in it, is on the disk under its name."""
    for folder, _, files in os.walk(path):
        for name in files:
            _fsync(Path(folder) / name)
        _fsync(Path(folder))
    if not path.is_dir():
        _fsync(path)
    _fsync(path.parent)


def clear_unfinished(folder: Path) -> None:
    """Remove unfinished files of killed writers in a folder, and restore what one of them was about to replace.

    A writer holds a lock that ends with it, so none that lives is disturbed; where the file system has no locks,
    nothing is removed.
    """
    for lock in folder.glob(".*.lock"):
        if LOCK.fullmatch(lock.name):
            try:
                with lock.open("r+") as held:
                    if _lock(held.fileno()):
                        _clear(lock)
            except OSError:  # another process clears it, or it is not ours to remove
                continue


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that lies in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a JSON-lines file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _claim(path: Path) -> tuple[Path, IO[str]]:
    """A lock beside a path, locked. One that is cleared before it is locked is lost, and another takes its place."""
    while True:
        lock = path.with_name(f".{path.name}.{uuid4().hex}.lock")
        held = lock.open("w")
        try:
            fcntl.flock(held.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # somebody takes it for that of a killed writer
            held.close()
            continue
        except OSError:  # the file system has no locks
            return lock, held
        if lock.exists():
            return lock, held
        held.close()


def _beside(lock: Path) -> tuple[Path, Path]:
    return lock.with_suffix(".partial"), lock.with_suffix(".previous")


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process holds it, or the file system has none
        return False
    return True


def _replace(new: Path, path: Path, aside: Path) -> None:
    while True:
        try:
            return os.replace(new, path)
        except OSError as error:
            if error.errno not in IN_THE_WAY:
                raise
        remove(aside)
        try:
            path.rename(aside)
        except FileNotFoundError:  # another writer has just put it aside
            continue


def _clear(lock: Path) -> None:
    path = lock.with_name(LOCK.sub(r"\1", lock.name))
    unfinished, previous = _beside(lock)
    if previous.exists() and not path.exists():
        try:
            previous.rename(path)
        except OSError as error:  # another writer has just put its own there
            if error.errno not in IN_THE_WAY:
                raise
    remove(unfinished)
    remove(previous)
    lock.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that flushes no folders
            raise
    finally:
        os.close(descriptor)

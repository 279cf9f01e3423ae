"""File locks for one writer at a time: a lock beside a file or folder, which ends with the process that holds it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def sole_writer(path: Path, waiting: str = "") -> Iterator[None]:
    """Be the only one of the runs, on every machine that has the folder, that writes a file or a folder.

    Args:
        path: The file or folder; the folder that it lies in is there.
        waiting: Printed where another run is writing it, whose end is then waited for; empty to refuse.

    Raises:
        BlockingIOError: Another run is writing it.
        OSError: Nobody can.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    Path(lock.lock_file).touch()  # says why it cannot be made, where the lock would wait for it
    try:
        held = lock.acquire(timeout=0)
    except Timeout as error:
        if not waiting:
            sentence = f"another run is writing to {path}: wait for it, or write elsewhere"
            raise BlockingIOError(sentence) from error
        print(waiting, flush=True)
        held = lock.acquire()
    with held:
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)  # one who has opened it meanwhile sees that it has no name

"""A fork server for reward functions: forked before the run has threads, devices and weights, it starts processes.

Whatever is forked in the midst of a training takes over locks that threads held at that moment, and may wait for them
for ever. What is forked off an early process does not, and any function reaches it by inheritance: one of a notebook,
a closure, an object that cannot be pickled.
"""

import os
import select
import signal
import socket
import struct
import sys
import traceback
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from datamodules.system.guard import die_with_parent

Loop = Callable[[Connection], None]
"""What a process does with its end of a pipe; when it returns, or the other end is closed, the process ends."""
NUMBER = struct.Struct("q")
PATIENCE = 1.0  # seconds after which the end of a parent is noticed whose end of the socket another process holds


class ForkServer:
    """Starts processes, and ends them with all that they have started in their process group.

    Its own process ends with this object, or with this process, and takes the others along.

    Args:
        loops: What processes can be started for.
    """

    def __init__(self, loops: Sequence[Loop]) -> None:
        self.loops = loops
        self._fork()

    def start(self, place: int) -> tuple[int, Connection]:
        """Start a process for the loop at that place; gives its id and our end of its pipe.

        Raises:
            RuntimeError: If the server has died.
        """
        if os.getpid() != self._parent:  # this is a fork itself, and the server must not serve two
            self._fork()
        ours, theirs = Pipe()
        try:
            with theirs:
                socket.send_fds(self._socket, [NUMBER.pack(place)], [theirs.fileno()])
            return ours.recv(), ours
        except (OSError, EOFError) as error:
            raise RuntimeError(
                "The process that starts those of model.rewards has died or was killed (is there memory left?): go on "
                "from the last checkpoint with --ckpt_path."
            ) from error

    def stop(self, pid: int) -> None:
        """End a process and its group, whatever they do; without effect where the server, and so they, have died."""
        with suppress(OSError):
            self._socket.sendall(NUMBER.pack(pid))

    def _fork(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._parent = os.getpid()
        self.pid = fork(_serve, self.loops, theirs, self._parent, self._socket)
        theirs.close()
        self.close = weakref.finalize(self, _end, self._socket, self.pid)


def fork(run: Callable[..., None], *args: Any) -> int:
    """Call a function in a new process, which ends when it returns; gives its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    try:
        run(*args)
    except Exception:  # there is nobody else to see it
        traceback.print_exc()
    finally:
        os._exit(0)  # without what the parent has registered for its own end


def _serve(loops: Sequence[Loop], requests: socket.socket, parent: int, theirs: socket.socket) -> None:
    """Start and end processes until the parent closes its end of the socket, or ends."""
    theirs.close()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a terminal would stop processes outside its own group that read it
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for the parent, which still has use of this process
        signal.signal(number, signal.SIG_IGN)
    running: set[int] = set()
    try:
        while os.getppid() == parent:
            if not select.select([requests], [], [], PATIENCE)[0]:
                continue
            message, descriptors, *_ = socket.recv_fds(requests, NUMBER.size, 1)
            if not message:
                break
            (number,) = NUMBER.unpack(message)
            if descriptors:
                running.add(pid := fork(_work, loops[number], descriptors[0], requests, os.getpid()))
                with suppress(OSError):  # the child has done so itself, or has ended
                    os.setpgid(pid, pid)
                os.close(descriptors[0])
            else:
                running.discard(number)
                _kill(number)
    finally:
        for pid in running:
            _kill(pid)


def _work(loop: Loop, descriptor: int, requests: socket.socket, server: int) -> None:
    die_with_parent(server)
    requests.close()
    with suppress(OSError):  # the server has done so
        os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    pipe = Connection(descriptor)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has ended
        pipe.send(os.getpid())
        loop(pipe)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _end(ours: socket.socket, pid: int) -> None:
    with suppress(OSError):  # it has ended already
        ours.shutdown(socket.SHUT_RDWR)  # also of the copies that were forked
    ours.close()
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)

"""Several servers of the same model: who is free, who is healthy."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from datamodules.refinement.judging import JudgesLost

FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0  # seconds between two health checks of a server that fails


@dataclass(eq=False)
class Server:
    """One server: its address, its client, and when it may be sent the next request."""

    url: str
    client: Any
    next_at: float = 0.0
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)


class ServerPool:
    """Slots of servers, taken by whoever has something to ask.

    A slot is free again when its request is over, so that a fast server takes more requests than a slow one; the slot
    of a request that failed comes back when the server answers its health check. To be made inside a running loop.

    Args:
        servers: The servers.
        slots: Requests that each may have in flight.
        patience: Seconds after which a server that does not answer is given up.
        check: Asks for a server's health: gives what is wrong with it, "" if nothing.
    """

    def __init__(
        self, servers: Sequence[Server], slots: int, patience: float, check: Callable[[Server], Awaitable[str]]
    ) -> None:
        self.servers = list(servers)
        self.patience = patience
        self.check = check
        self._free: asyncio.Queue[Server] = asyncio.Queue()
        self._down: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lost: dict[str, str] = {}  # servers that were given up, and why
        self._tasks: set[asyncio.Task[None]] = set()
        for server in self.servers:
            self.fail(server, slots)

    async def take(self) -> Server:
        """Wait for a slot.

        Raises:
            JudgesLost: All servers are lost.
        """
        if self._free.empty():
            slot = asyncio.ensure_future(self._free.get())
            try:
                await asyncio.wait({slot, self._down}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not slot.done():
                    slot.cancel()
            if self._down.done():
                self._down.result()
            return slot.result()
        return self._free.get_nowait()

    def give_back(self, server: Server) -> None:
        """Free a slot."""
        self._free.put_nowait(server)

    def fail(self, server: Server, slots: int = 1) -> None:
        """Free slots of a server once it is healthy."""
        task = asyncio.create_task(self._give_back_when_healthy(server, slots))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Stop waiting for servers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._down.cancel()

    async def _give_back_when_healthy(self, server: Server, slots: int) -> None:
        try:
            async with server.checking:  # one asks, the others wait for what it hears
                await self._wait_for(server)
        except RuntimeError as error:
            self._stop(error)
        if server.url not in self._lost:
            for _ in range(slots):
                self._free.put_nowait(server)
        elif len(self._lost) == len(self.servers):
            problems = "; ".join(f"{url}: {problem}" for url, problem in self._lost.items())
            self._stop(JudgesLost(f"no judge answers any more ({problems})"))

    async def _wait_for(self, server: Server) -> None:
        clock = asyncio.get_running_loop().time
        wait, deadline = FIRST_WAIT, clock() + self.patience
        while server.url not in self._lost and (problem := await self.check(server)):
            if clock() + wait > deadline:
                self._lost[server.url] = problem
            else:
                await asyncio.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)

    def _stop(self, error: RuntimeError) -> None:
        if not self._down.done():
            self._down.set_exception(error)
            self._down.exception()  # seen, even where nobody waits for a slot

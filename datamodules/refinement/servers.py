"""A pool of servers of one model: health checks, and a bounded number of requests to each."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from datamodules.refinement.judging import JudgesLost, Unanswered

FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0  # seconds between two health checks of a server that fails


@dataclass(eq=False)
class Server:
    """One server.

    Attributes:
        url: Its address, as it may be shown.
        authorization: The header of that name, "" for none.
        next_at: When it may be sent the next request.
        out: Slots that come back when it is healthy.
    """

    url: str
    authorization: str = ""
    next_at: float = 0.0
    out: int = 0


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
        self._lost: dict[Server, str] = {}  # servers that were given up, and why
        self._tasks: set[asyncio.Task[None]] = set()
        for server in self.servers:
            self._fail(server, slots)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Server]:
        """A slot of a server that is free, for the time of the block; the server counts as healthy if the block ends.

        Raises:
            JudgesLost: All servers are lost.
        """
        server, well = await self._take(), False
        try:
            yield server
            well = True
        except Unanswered:  # that is the question's fault
            well = True
            raise
        finally:
            if well:
                self._free.put_nowait(server)
            else:
                self._fail(server)

    async def close(self) -> None:
        """Stop waiting for servers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._down.cancel()

    async def _take(self) -> Server:
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

    def _fail(self, server: Server, slots: int = 1) -> None:
        """Free slots of a server once it is healthy; one task asks for its health, for all that are out."""
        server.out += slots
        if server.out == slots:
            task = asyncio.create_task(self._give_back_when_healthy(server))
            self._tasks.add(task)
            task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        """Whoever waits for a slot is told of a task that has failed: its slots will not come back."""
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None or self._down.done():
            return
        if not isinstance(error, JudgesLost):
            error = JudgesLost(f"a health check ended in an unexpected {type(error).__name__}: {error}")
        self._down.set_exception(error)
        self._down.exception()  # seen, even where nobody waits for a slot

    async def _give_back_when_healthy(self, server: Server) -> None:
        await self._wait_for(server)
        slots, server.out = server.out, 0
        if server not in self._lost:
            for _ in range(slots):
                self._free.put_nowait(server)
        elif len(self._lost) == len(self.servers):
            problems = "; ".join(f"{lost.url}: {problem}" for lost, problem in self._lost.items())
            raise JudgesLost(f"no judge answers any more ({problems})")

    async def _wait_for(self, server: Server) -> None:
        """Return when a server is well or lost, whichever way its health checks end."""
        wait, problem = FIRST_WAIT, f"it does not answer (no health check ended within {self.patience:g} s)"
        try:
            async with asyncio.timeout(self.patience):
                while server not in self._lost and (found := await self.check(server)):
                    problem = found
                    await asyncio.sleep(wait)
                    wait = min(2 * wait, LONGEST_WAIT)
        except TimeoutError:
            self._lost[server] = problem

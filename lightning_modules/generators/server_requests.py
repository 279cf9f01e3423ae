"""Requests to vLLM servers: spread over those that answer, sent again to the others where one is lost."""

import asyncio
import json
import math
import os
import warnings
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from datamodules.refinement.exchange import Answer as Response
from datamodules.refinement.exchange import Dropped, Failed, exchange, open_session, server_at
from datamodules.refinement.servers import Server
from lightning_modules.generators.vllm_engine import AFTERWARDS

if TYPE_CHECKING:
    from aiohttp import ClientSession

WATCH = 15.0  # seconds between two health checks of a server that has something to do
HEALTH_TIMEOUT = 60.0  # seconds; a server that is busy answers late
FAILURES = 3  # of requests in a row, with which a server that calls itself well is lost all the same
PAUSES = 0.1, 1.0, 4.0  # seconds, after each of which a request that was cut off is sent again to the same server
KEY = "VLLM_API_KEY"  # environment variable from which vLLM's servers have their key, too

Answer = TypeVar("Answer")
Ask = Callable[..., Awaitable[Any]]
"""`await ask(path, body)`: a server's answer, parsed; a GET where there is no body."""


class Servers:
    """The vLLM servers of a run, as one rank sees them.

    What is cut off is asked again. A server that does not answer is lost, which is warned of once, and what it was
    asked goes to the others.

    Args:
        urls: Base addresses, `http://host:8000`.
        timeout: Seconds of one request, from the connection to the last byte of the answer.
        per_server: Requests that this rank may have in flight at each server.

    Raises:
        ValueError: An address is none.
    """

    def __init__(self, urls: Sequence[str], timeout: float, per_server: int) -> None:
        key = os.environ.get(KEY, "").strip()
        self.urls = list(urls)
        self.every = [server_at(url, key) for url in urls]
        self.alive = list(self.every)
        self.lost: dict[str, str] = {}  # why, by the address
        self.timeout, self.per_server = timeout, per_server

    def __reduce__(self) -> tuple[Any, ...]:
        """Be made anew in a process that is spawned, where nothing is known yet of what `redact` has to mask."""
        return Servers, (self.urls, self.timeout, self.per_server)

    def answer(self, path: str, bodies: Sequence[Any], read: Callable[[Any], Answer], first: int = 0) -> list[Answer]:
        """The answers to requests, whichever servers give them.

        Args:
            path: Where they are posted.
            bodies: Of the requests.
            read: Makes the answer of what a server sends; raises `Failed` where that is not what it should be.
            first: Place of the server that is asked first, so that ranks with few requests do not ask the same one.

        Raises:
            RuntimeError: A request is refused, or no server answers any more.
        """
        return asyncio.run(self._answer(path, bodies, read, first))

    def everywhere(self, call: Callable[[Server, Ask], Awaitable[Answer]], again: bool = True) -> dict[str, Answer]:
        """What a call gives for each server that is alive, by the addresses of those that still are afterwards.

        Args:
            call: Is given the server, and how to ask it.
            again: Whether what was cut off may be asked a second time.

        Raises:
            RuntimeError: A server refuses a request, or is well and fails all the same, or none answers any more.
        """
        return asyncio.run(self._everywhere(call, again))

    def keep(self, urls: Sequence[str]) -> None:
        """Go on with the servers of these addresses."""
        self.alive = [server for server in self.every if server.url in urls]
        self.lost = {url: why for url, why in self.lost.items() if url not in urls}

    async def _answer(self, path: str, bodies: Sequence[Any], read: Callable[[Any], Answer], first: int) -> list[Any]:
        answers: list[Any] = [None] * len(bodies)
        to_do, failures = deque(range(len(bodies))), Counter[str]()

        async def work(server: Server) -> None:
            """Have a server answer what is to do; a request without an answer is to do again."""
            while to_do:
                place = to_do.popleft()
                try:
                    answers[place] = read(await _ask(session, server, path, bodies[place], self.timeout))
                    failures[server.url] = 0
                except Failed:
                    failures[server.url] += 1
                    if failures[server.url] >= FAILURES:
                        raise
                    await self._check(session, server)
                finally:
                    if answers[place] is None:
                        to_do.appendleft(place)

        async with open_session(reuse=False) as session:
            while to_do:
                start = first % len(self.alive)
                asked = self.alive[start:] + self.alive[:start]
                slots = min(self.per_server, math.ceil(len(to_do) / len(asked)))
                draining = (self._drain(session, server, [work(server) for _ in range(slots)]) for server in asked)
                await asyncio.gather(*draining)
        return answers

    async def _drain(self, session: "ClientSession", server: Server, work: Sequence[Coroutine[Any, Any, None]]) -> None:
        """Wait until a server's workers have nothing to do or it is lost."""
        workers, watch = [asyncio.create_task(each) for each in work], asyncio.create_task(self._watch(session, server))
        all_of_them = asyncio.gather(*workers)  # fails with the first of them
        try:
            await asyncio.wait({all_of_them, watch}, return_when=asyncio.FIRST_COMPLETED)
            (watch if watch.done() else all_of_them).result()
        except Failed as failure:
            self._lose(server, failure)
        finally:
            for task in (watch, *workers):
                task.cancel()
            await asyncio.gather(watch, all_of_them, *workers, return_exceptions=True)

    async def _everywhere(self, call: Callable[[Server, Ask], Awaitable[Answer]], again: bool) -> dict[str, Answer]:
        async def one(server: Server) -> Answer | None:
            async def ask(path: str, body: Any = None) -> Any:
                return await _ask(session, server, path, body, self.timeout, again)

            try:
                return await call(server, ask)
            except Failed as failure:
                try:
                    if isinstance(failure, Dropped) or isinstance(failure.__cause__, TimeoutError):
                        raise  # it may not be asked again; or it hangs, with which an engine is well, says vLLM
                    await self._check(session, server)
                except Failed:
                    self._lose(server, failure)
                    return None
                raise RuntimeError(f"The vLLM server at {server.url} is well, but {failure}.") from failure
            except (KeyError, TypeError) as error:
                raise RuntimeError(
                    f"The server at {server.url} does not answer as vLLM 0.32 does: {error!r}."
                ) from error

        asked = list(self.alive)
        async with open_session(reuse=False) as session:
            answers = await asyncio.gather(*map(one, asked))
        pairs = zip(asked, answers, strict=True)
        return {server.url: answer for server, answer in pairs if server in self.alive}  # type: ignore[misc]

    async def _check(self, session: "ClientSession", server: Server) -> None:
        """Raise `Failed` unless a server says that it is well."""
        answer = await _insist(session, server, "GET", "/health", min(HEALTH_TIMEOUT, self.timeout))
        if answer.status != 200:
            raise Failed(f"its health check gave {answer.status}")

    async def _watch(self, session: "ClientSession", server: Server) -> None:
        """Check a server's health for ever."""
        while True:
            await asyncio.sleep(WATCH)
            await self._check(session, server)

    def _lose(self, server: Server, failure: Failed) -> None:
        """Go on without a server; RuntimeError if it was the last one."""
        self.alive.remove(server)
        if server.url not in self.lost:
            warnings.warn(f"The vLLM server at {server.url} is lost: {failure}.", stacklevel=2)
        self.lost[server.url] = str(failure)
        if not self.alive:
            why = "; ".join(f"{url}: {problem}" for url, problem in self.lost.items())
            raise RuntimeError(
                f"No vLLM server answers any more ({why}): start them again or change the generator's servers, raise "
                f"its timeout if they were only slow, and {AFTERWARDS}"
            ) from failure


async def _insist(session: "ClientSession", server: Server, *request: Any) -> Response:
    """As `exchange`; a request that is cut off is sent again, after a pause."""
    for pause in PAUSES:
        try:
            return await exchange(session, server, *request)
        except Dropped:  # a server that is dead refuses the next connection
            await asyncio.sleep(pause)
    return await exchange(session, server, *request)


async def _ask(
    session: "ClientSession", server: Server, path: str, body: Any, seconds: float, again: bool = True
) -> Any:
    """A server's answer, parsed; a GET where there is no body. What is cut off is asked `again`.

    Raises:
        Failed: No answer came, or none that can be read.
        RuntimeError: The request is refused, as any server would.
    """
    send = _insist if again else exchange
    answer = await send(session, server, "GET" if body is None else "POST", path, seconds, body)
    words = answer.words or "without a reason"
    if 400 <= answer.status < 500:
        raise RuntimeError(
            f"The vLLM server at {server.url} refuses {path} ({answer.status}): {words}; docs/vllm.md says how "
            "to start it."
        )
    if answer.status != 200:
        raise Failed(f"{path} gave {answer.status}: {words}")
    try:
        return json.loads(answer.body or b"null")
    except (ValueError, RecursionError) as error:
        raise Failed(f"{path} gave no JSON") from error

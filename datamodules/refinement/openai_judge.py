"""A judge behind any number of OpenAI-compatible servers."""

import asyncio
import importlib.util
import math
import os
import re
from typing import TYPE_CHECKING, Any, Literal

from datamodules.refinement.exchange import (
    Failed,
    check_addresses,
    exchange,
    open_session,
    read_completion,
    server_at,
    waiting_time,
)
from datamodules.refinement.judging import JudgesLost, Question, Unanswered, Unfinished
from datamodules.refinement.servers import Server, ServerPool
from datamodules.system.redaction import keep_secret

if TYPE_CHECKING:
    from aiohttp import ClientSession

HEALTH_TIMEOUT = 10.0  # seconds
BACK_OFF, LONGEST_BACK_OFF = 0.5, 30.0  # seconds before a question is asked again; doubled each time
FIRST_QUESTIONS = 16  # when all of these are refused, so would be the others
PLAIN = [{"role": "user", "content": "Is one and one two? Answer <judge>True</judge> or <judge>False</judge>."}]
"""What is asked to find out what a server answers at all: it is short, and holds nothing of any row."""


class OpenAIJudge:
    """Asks a model that OpenAI-compatible servers serve (vLLM, SGLang, llama.cpp, OpenAI itself).

    A question whose request fails is sent again, to whichever server is free, and so is one whose reply is no chat
    completion. Where it goes on failing while others are answered, or a plain one in its place, it is given up; where
    nothing is answered any more, the run ends. A server that answers 429 is given the time that it asks for. A reply
    counts only if the model ended it (`judging.finished_reply`).

    Where a question is refused (400, 413 or 422), a plain one finds out whether the settings are why: `max_tokens` is
    then sent under its other name, `temperature` and `seed` are left out, whichever the server's words name, and it is
    said once; if the plain question is refused all the same, the run ends with the server's words.

    Args:
        model: The model's name on the servers.
        servers: Their base URLs, `http://host:8000/v1`; all of them serve this model.
        per_server: Requests that each server may have in flight.
        temperature: Of sampling (arXiv 2505.20192v3: 0.7 for its votes, 0.1 for chains of thought); not sent when None.
        max_tokens: Longest reply.
        max_tokens_key: The name under which the server wants it.
        seed: Sent with each question, mixed with what the question is, so that a repeated run asks for the same; not
            sent when None.
        extra_body: Further fields of each request, such as `reasoning_effort` or `chat_template_kwargs`.
        retries: Requests after the first one that failed.
        timeout: Seconds of one request, from the connection to the last byte of the reply.
        patience: Seconds that servers may be out of order, or turn a question away with 429.
        rate_limit: Requests per second and server; without limit when None.
        api_key_env: Environment variable that holds the key, if the servers ask for one.

    Raises:
        ValueError: A setting is impossible, or aiohttp is not installed.
    """

    def __init__(
        self,
        model: str,
        servers: list[str],
        per_server: int = 64,
        temperature: float | None = 0.0,
        max_tokens: int = 4096,
        max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        seed: int | None = 0,
        extra_body: dict[str, Any] | None = None,
        retries: int = 4,
        timeout: float = 300.0,
        patience: float = 300.0,
        rate_limit: float | None = None,
        api_key_env: str = "OPENAI_API_KEY",
    ) -> None:
        if importlib.util.find_spec("aiohttp") is None:
            raise ValueError("OpenAIJudge needs aiohttp: pip install -e '.[judge]'")
        check_addresses(servers, "base URLs such as http://localhost:8000/v1")
        above = (timeout, patience, *([] if rate_limit is None else [rate_limit]))
        if min(per_server, max_tokens) < 1 or retries < 0 or not all(value > 0 for value in above):  # NaN is not
            raise ValueError(
                "per_server and max_tokens must be at least 1, retries at least 0, timeout, patience and rate_limit "
                f"above 0, not {per_server}, {max_tokens}, {retries}, {timeout}, {patience} and {rate_limit}"
            )
        if temperature is not None and not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be a number from 0, or null to send none, not {temperature}")
        if taken := {"model", "messages", "stream"} & set(extra_body or {}):
            raise ValueError(f"extra_body must not hold {', '.join(sorted(taken))}: these are the judge's own")
        self.model, self.urls, self.per_server = model, list(servers), per_server
        options = {"temperature": temperature, max_tokens_key: max_tokens, "seed": seed}
        self.options = {name: value for name, value in options.items() if value is not None}
        self.extra_body = extra_body or {}
        self.retries, self.timeout, self.patience, self.rate_limit = retries, timeout, patience, rate_limit
        self.api_key_env = api_key_env
        keep_secret(os.environ.get(api_key_env))  # a server may say it back
        self._pool: ServerPool | None = None  # of the event loop that asks the first question
        self._session: ClientSession | None = None
        self._asked = self._answered = self._refused_first = 0  # questions; the last counts the first ones only
        self._found_out = self._sound_at = 0  # plain questions asked; answers there were when the last one was answered
        self._finding_out: asyncio.Lock | None = None

    async def __call__(self, question: Question) -> str:
        """The model's reply; see `Judge`.

        Raises:
            Unanswered: The servers refuse this question, or fail on it while they answer others.
            JudgesLost: They answer nothing any more, or refuse every question, the key or the model.
        """
        if self._pool is None:
            self._open()
        clock = asyncio.get_running_loop().time
        self._asked += 1
        number, answered, failures, give_up_at = self._asked, self._answered, 0, 0.0
        while True:
            options = self.options
            try:
                text = await self._ask(question.messages, question.seed(self.options.get("seed")))
                self._answered += 1
                return text
            except Unfinished:
                self._answered += 1
                raise
            except Unanswered as refusal:
                await self._find_out()
                if self.options is options:
                    self._count_refusal(number, refusal)
                    raise
            except Failed as failure:
                give_up_at = give_up_at or clock() + self.patience
                over = clock() >= give_up_at if failure.wait else failures == self.retries
                if over and self._answered == answered and await self._ask_plain():
                    raise JudgesLost(f"no judge answers any more ({failure})") from failure
                if over:
                    self._count_refusal(number, failure)
                    raise Unanswered(str(failure)) from failure
                if failure.wait:
                    await asyncio.sleep(min(failure.wait, give_up_at - clock()))
                else:
                    await asyncio.sleep(min(BACK_OFF * 2**failures, LONGEST_BACK_OFF))
                    failures += 1

    async def close(self) -> None:
        """Close the connections."""
        if self._pool is not None and self._session is not None:
            await self._pool.close()
            await self._session.close()
            self._pool = self._session = None

    def _open(self) -> None:
        key = os.environ.get(self.api_key_env, "").strip()  # servers of one's own ask for none
        if not key.isascii() or not key.isprintable():
            raise JudgesLost(f"the environment variable {self.api_key_env} holds no key: no key has such characters")
        self._session = open_session()
        servers = [server_at(url, key) for url in self.urls]
        self._finding_out = asyncio.Lock()
        self._pool = ServerPool(servers, self.per_server, self.patience, self._health)

    def _body(self, messages: list[dict[str, str]], seed: int) -> dict[str, Any]:
        options = self.options | ({"seed": seed} if "seed" in self.options else {})
        return {"model": self.model, "messages": messages} | options | self.extra_body

    async def _find_out(self) -> None:
        """Ask a plain question after a refusal, unless questions are answered; what is refused of the settings changes.

        Raises:
            JudgesLost: It is refused as well.
        """
        found_out = self._found_out
        async with self._finding_out:
            if self._found_out != found_out or self._answered != self._sound_at:
                self._sound_at = self._answered  # another one has just found out, or there are answers
                return
            while True:
                problem = await self._ask_plain()
                if not isinstance(problem, Unanswered):
                    break
                if not self._give_way(str(problem)):
                    raise JudgesLost(
                        f"{problem}; it refuses every question: see max_tokens, max_tokens_key, temperature, seed and "
                        "extra_body of the judge"
                    ) from problem
            if problem is None:
                self._found_out, self._sound_at = self._found_out + 1, self._answered

    async def _ask_plain(self) -> Unanswered | Failed | None:
        """What keeps a plain question from being answered, if anything does."""
        try:
            await self._ask(PLAIN, 0)
        except Unfinished:
            return None  # the settings may be too tight for thoughts, but the server answers
        except (Unanswered, Failed) as problem:
            return problem
        return None

    def _give_way(self, words: str) -> bool:
        """Change the first setting that a server's words name, if it still can be; says so."""
        for name in re.findall(r"\b(?:max_tokens|temperature|seed)\b", words):
            if name in self.options:
                others = {key: value for key, value in self.options.items() if key != name}
                instead = {"max_completion_tokens": self.options[name]} if name == "max_tokens" else {}
                self.options = others | instead
                now = "sends it as max_completion_tokens" if instead else "goes on without it"
                print(f"{self.model} refuses {name}: the judge {now}", flush=True)
                return True
        return False

    def _count_refusal(self, number: int, refusal: Exception) -> None:
        """Raises JudgesLost where the first questions have all been refused, each with its own row."""
        self._refused_first += number <= FIRST_QUESTIONS
        if self._refused_first == FIRST_QUESTIONS:
            raise JudgesLost(f"the first {FIRST_QUESTIONS} questions are all refused: {refusal}") from refusal

    async def _pace(self, server: Server) -> None:
        """Wait until the rate limit lets the server be sent another request."""
        if self.rate_limit is not None:
            now = asyncio.get_running_loop().time()
            server.next_at = max(server.next_at, now) + 1 / self.rate_limit
            await asyncio.sleep(server.next_at - now - 1 / self.rate_limit)

    async def _ask(self, messages: list[dict[str, str]], seed: int) -> str:
        """Send a question to a server that is free.

        Raises:
            Failed: There is no reply.
            Unfinished: The reply did not end by itself.
            Unanswered: The server refuses the question.
            JudgesLost: The server refuses the key or the model, or none is left.
        """
        async with self._pool.slot() as server:
            await self._pace(server)
            try:
                request = (server, "POST", "/chat/completions", self.timeout, self._body(messages, seed))
                answer = await exchange(self._session, *request)
                if 200 <= answer.status < 300:
                    return read_completion(answer.body)
            except (Failed, ValueError) as error:
                raise Failed(f"{server.url} does not answer ({error})") from error
            status = answer.status
            if status == 429:
                raise Failed(f"{server.url} is asked too often (429)", waiting_time(answer.retry_after))
            if status in (400, 413, 422):
                raise Unanswered(f"{server.url} refuses the question ({status}): {answer.words}")
            self._refused(server, status)
            raise Failed(f"{server.url} {_fails(status)}")

    async def _health(self, server: Server) -> str:
        """What is wrong with a server; any answer but a redirection or an error of its own will do."""
        try:
            status = (await exchange(self._session, server, "GET", "/models", HEALTH_TIMEOUT)).status
        except Failed as failure:
            return f"it does not answer ({failure})"
        if status != 404:  # there are servers that do not list their models
            self._refused(server, status)
        return "" if 200 <= status < 300 or 400 <= status < 500 else f"its health check {_fails(status)}"

    def _refused(self, server: Server, status: int) -> None:
        """Raises JudgesLost where asking again is of no use."""
        if status in (401, 403):
            raise JudgesLost(
                f"{server.url} refuses the key ({status}): put one into the environment variable {self.api_key_env}"
            )
        if status == 404:
            raise JudgesLost(f"{server.url} has no model {self.model} at that address (404): see its /models")


def _fails(status: int) -> str:
    return f"redirects elsewhere ({status})" if 300 <= status < 400 else f"fails ({status})"

"""A judge behind any number of OpenAI-compatible servers."""

import asyncio
import importlib.util
import os
import zlib
from typing import Any

from datamodules.refinement.judging import Question, Unanswered
from datamodules.refinement.servers import Server, ServerPool

HEALTH_TIMEOUT = 10.0  # seconds
TOLD = ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")
BACK_OFF, LONGEST_BACK_OFF = 0.5, 30.0  # seconds before a question is asked again; doubled each time


class OpenAIJudge:
    """Asks a model that OpenAI-compatible servers serve (vLLM, SGLang, llama.cpp, OpenAI itself).

    A question whose request fails is sent again, to whichever server is free. Where it goes on failing while others are
    answered, it is given up; where nothing is answered any more, the run ends. A server that answers 429 is given the
    time that it asks for.

    Args:
        model: The model's name on the servers.
        servers: Their base URLs, `http://host:8000/v1`; all of them serve this model.
        per_server: Requests that each server may have in flight.
        temperature: Of sampling (arXiv 2505.20192v3: 0.7 for its votes, 0.1 for chains of thought).
        max_tokens: Longest reply.
        seed: Sent with each question, mixed with what the question is, so that a repeated run asks for the same.
        retries: Requests after the first one that failed.
        timeout: Seconds of one request.
        patience: Seconds that servers may be out of order, or turn a question away with 429.
        rate_limit: Requests per second and server; without limit when None.
        api_key_env: Environment variable that holds the key, if the servers ask for one.

    Raises:
        ValueError: A setting is impossible, or the openai client is not installed.
    """

    def __init__(
        self,
        model: str,
        servers: list[str],
        per_server: int = 64,
        temperature: float = 0.0,
        max_tokens: int = 4096,
        seed: int = 0,
        retries: int = 4,
        timeout: float = 300.0,
        patience: float = 300.0,
        rate_limit: float | None = None,
        api_key_env: str = "OPENAI_API_KEY",
    ) -> None:
        if importlib.util.find_spec("openai") is None:
            raise ValueError("OpenAIJudge needs the openai client: pip install -e '.[judge]'")
        if not servers or any(not url.startswith(("http://", "https://")) for url in servers):
            raise ValueError(f"servers must be base URLs such as http://localhost:8000/v1, not {servers}")
        if min(per_server, max_tokens) < 1 or retries < 0 or min(timeout, patience, rate_limit or 1) <= 0:
            raise ValueError(
                "per_server and max_tokens must be at least 1, retries at least 0, timeout, patience and rate_limit "
                f"above 0, not {per_server}, {max_tokens}, {retries}, {timeout}, {patience} and {rate_limit}"
            )
        self.model, self.urls, self.per_server = model, list(servers), per_server
        self.temperature, self.max_tokens, self.seed = temperature, max_tokens, seed
        self.retries, self.timeout, self.patience, self.rate_limit = retries, timeout, patience, rate_limit
        self.api_key_env = api_key_env
        self._pool: ServerPool | None = None  # of the event loop that asks the first question
        self._answered = 0

    async def __call__(self, question: Question) -> str:
        """The model's reply; see `Judge`.

        Raises:
            Unanswered: The servers refuse this question, or fail on it while they answer others.
            RuntimeError: They answer nothing any more, or refuse the key or the model.
        """
        if self._pool is None:
            self._open()
        body = self._body(question)
        answered, problem, failures = self._answered, "", 0
        give_up_at = asyncio.get_running_loop().time() + self.patience
        while failures <= self.retries:
            server = await self._pool.take()
            await self._pace(server)
            text, problem, wait = await self._request(server, body)
            if text is not None:
                self._pool.give_back(server)
                self._answered += 1
                return text
            self._pool.fail(server)
            if wait is None:
                wait = min(BACK_OFF * 2**failures, LONGEST_BACK_OFF)
                failures += 1
            elif asyncio.get_running_loop().time() + wait > give_up_at:
                break
            await asyncio.sleep(wait)
        if self._answered == answered:
            raise RuntimeError(f"no judge answers any more ({problem})")
        raise Unanswered(problem)

    async def close(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            await self._pool.close()
            for server in self._pool.servers:
                await server.client.close()
            self._pool = None

    def _open(self) -> None:
        import openai

        key = os.environ.get(self.api_key_env) or "none"  # servers of one's own ask for none
        # What the client tells about this machine, a tenth of its work: no business of a judge's server.
        untold = dict.fromkeys((f"X-Stainless-{name}" for name in TOLD), openai.Omit())
        options = {"api_key": key, "max_retries": 0, "timeout": self.timeout, "default_headers": untold}
        servers = [
            Server(url, openai.AsyncOpenAI(base_url=url, http_client=openai.DefaultAioHttpClient(), **options))
            for url in self.urls
        ]
        self._pool = ServerPool(servers, self.per_server, self.patience, self._health)

    def _body(self, question: Question) -> dict[str, Any]:
        asked = f"{self.seed}\0{question.example.id}\0{question.stage}\0{question.finding}\0{question.attempt}"
        return {
            "model": self.model,
            "messages": question.messages,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": zlib.crc32(asked.encode()),
        }

    async def _pace(self, server: Server) -> None:
        """Wait until the rate limit lets the server be sent another request."""
        if self.rate_limit is not None:
            now = asyncio.get_running_loop().time()
            server.next_at = max(server.next_at, now) + 1 / self.rate_limit
            await asyncio.sleep(server.next_at - now - 1 / self.rate_limit)

    async def _request(self, server: Server, body: dict[str, Any]) -> tuple[str | None, str, float | None]:
        """Send a request.

        Returns:
            The reply, or None; what went wrong; and the seconds to wait where the server is merely too busy.

        Raises:
            Unanswered: The server refuses the question.
            RuntimeError: The server refuses the key or the model.
        """
        import openai

        try:  # `chat.completions.create` would check and copy every message, for as much time again
            reply = await server.client.post(f"{server.url}/chat/completions", cast_to=object, body=body)
            return reply_text(reply), "", None
        except openai.RateLimitError as error:
            return None, f"{server.url} is asked too often (429)", _seconds(error.response.headers.get("retry-after"))
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            self._pool.give_back(server)
            raise Unanswered(
                f"{server.url} refuses the question ({error.status_code}): {error.message[:300]}"
            ) from error
        except openai.APIStatusError as error:
            self._refused(server, error.status_code)
            return None, f"{server.url} fails ({error.status_code})", None
        except (openai.APIError, ValueError) as error:
            return None, f"{server.url} does not answer ({_reason(error)})", None

    async def _health(self, server: Server) -> str:
        """What is wrong with a server; any answer but an error of its own will do."""
        import openai

        try:
            await server.client.get("/models", cast_to=object, options={"timeout": HEALTH_TIMEOUT})
        except openai.APIStatusError as error:
            if error.status_code != 404:  # there are servers that do not list their models
                self._refused(server, error.status_code)
            return f"its health check fails ({error.status_code})" if error.status_code >= 500 else ""
        except (openai.APIError, ValueError) as error:
            return f"it does not answer ({_reason(error)})"
        return ""

    def _refused(self, server: Server, status: int) -> None:
        """Raises RuntimeError where asking again is of no use."""
        if status in (401, 403):
            raise RuntimeError(
                f"{server.url} refuses the key ({status}): put one into the environment variable {self.api_key_env}"
            )
        if status == 404:
            raise RuntimeError(f"{server.url} has no model {self.model} at that address (404): see its /models")


def reply_text(reply: Any) -> str:
    """The text of a chat completion, with the reasoning that some servers give apart put before it.

    Raises:
        ValueError: It is none.
    """
    try:
        message = reply["choices"][0]["message"]
        text, reasoning = message.get("content") or "", message.get("reasoning_content") or message.get("reasoning")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"not a chat completion: {str(reply)[:80]!r}") from error
    return f"<think>{reasoning}</think>\n\n{text}" if reasoning and "</think>" not in text else text


def _reason(error: Exception) -> str:
    """What an error says; of one of the connection what it comes from, for the client calls them all timeouts."""
    import openai

    text = error.__cause__ if isinstance(error, openai.APIConnectionError) and error.__cause__ else error
    return f"{text}"[:200] or type(text).__name__


def _seconds(header: str | None) -> float:
    """The seconds of a Retry-After header; a second where it holds none."""
    return min(float(header), 600.0) if header and header.replace(".", "", 1).isdigit() else 1.0

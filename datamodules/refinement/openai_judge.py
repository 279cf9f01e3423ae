"""A judge behind any number of OpenAI-compatible servers."""

import asyncio
import importlib.util
import os
import re
import zlib
from typing import Any, Literal

from datamodules.refinement.judging import JudgesLost, Question, Unanswered
from datamodules.refinement.servers import Server, ServerPool

HEALTH_TIMEOUT = 10.0  # seconds
TOLD = ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")
BACK_OFF, LONGEST_BACK_OFF = 0.5, 30.0  # seconds before a question is asked again; doubled each time
FIRST_QUESTIONS = 16  # when all of these are refused, so would be the others
PLAIN = [{"role": "user", "content": "Is one and one two? Answer <judge>True</judge> or <judge>False</judge>."}]
"""What is asked to find out whether the settings are refused: it is short, and holds nothing of any row."""


class OpenAIJudge:
    """Asks a model that OpenAI-compatible servers serve (vLLM, SGLang, llama.cpp, OpenAI itself).

    A question whose request fails is sent again, to whichever server is free. Where it goes on failing while others are
    answered, it is given up; where nothing is answered any more, the run ends. A server that answers 429 is given the
    time that it asks for. Where a question is refused (400 or 422), a plain one finds out whether the settings are why:
    `max_tokens` is then sent under its other name, `temperature` and `seed` are left out, whichever the server's words
    name, and it is said once; if the plain question is refused all the same, the run ends with the server's words.

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
        if importlib.util.find_spec("openai") is None:
            raise ValueError("OpenAIJudge needs the openai client: pip install -e '.[judge]'")
        if not servers or any(not url.startswith(("http://", "https://")) for url in servers):
            raise ValueError(f"servers must be base URLs such as http://localhost:8000/v1, not {servers}")
        if min(per_server, max_tokens) < 1 or retries < 0 or min(timeout, patience, rate_limit or 1) <= 0:
            raise ValueError(
                "per_server and max_tokens must be at least 1, retries at least 0, timeout, patience and rate_limit "
                f"above 0, not {per_server}, {max_tokens}, {retries}, {timeout}, {patience} and {rate_limit}"
            )
        if taken := {"model", "messages", "stream"} & set(extra_body or {}):
            raise ValueError(f"extra_body must not hold {', '.join(sorted(taken))}: these are the judge's own")
        self.model, self.urls, self.per_server = model, list(servers), per_server
        options = {"temperature": temperature, max_tokens_key: max_tokens, "seed": seed}
        self.options = {name: value for name, value in options.items() if value is not None}
        self.extra_body = extra_body or {}
        self.retries, self.timeout, self.patience, self.rate_limit = retries, timeout, patience, rate_limit
        self.api_key_env = api_key_env
        self._pool: ServerPool | None = None  # of the event loop that asks the first question
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
        self._asked += 1
        number, answered, problem, failures = self._asked, self._answered, "", 0
        give_up_at = asyncio.get_running_loop().time() + self.patience
        while failures <= self.retries:
            server = await self._pool.take()
            await self._pace(server)
            options = self.options
            try:
                text, problem, wait = await self._request(server, self._body(question.messages, self._seed(question)))
            except Unanswered as refusal:
                try:
                    await self._find_out(server)
                finally:
                    self._pool.give_back(server)
                if self.options is not options:
                    continue
                self._count_refusal(number, refusal)
                raise
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
            raise JudgesLost(f"no judge answers any more ({problem})")
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
        self._finding_out = asyncio.Lock()
        self._pool = ServerPool(servers, self.per_server, self.patience, self._health)

    def _seed(self, question: Question) -> int:
        asked = f"{question.example.id}\0{question.stage}\0{question.finding}\0{question.attempt}"
        return zlib.crc32(f"{self.options.get('seed')}\0{asked}".encode())

    def _body(self, messages: list[dict[str, str]], seed: int) -> dict[str, Any]:
        options = self.options | ({"seed": seed} if "seed" in self.options else {})
        return {"model": self.model, "messages": messages} | options | self.extra_body

    async def _find_out(self, server: Server) -> None:
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
                try:
                    text, _, _ = await self._request(server, self._body(PLAIN, 0))
                    break
                except Unanswered as refusal:
                    if not self._give_way(str(refusal)):
                        raise JudgesLost(
                            f"{refusal}; it refuses every question: see max_tokens, max_tokens_key, temperature, seed "
                            "and extra_body of the judge"
                        ) from refusal
            if text is not None:
                self._found_out, self._sound_at = self._found_out + 1, self._answered

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

    def _count_refusal(self, number: int, refusal: Unanswered) -> None:
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

    async def _request(self, server: Server, body: dict[str, Any]) -> tuple[str | None, str, float | None]:
        """Send a request.

        Returns:
            The reply, or None; what went wrong; and the seconds to wait where the server is merely too busy.

        Raises:
            Unanswered: The server refuses the question.
            JudgesLost: The server refuses the key or the model.
        """
        import openai

        try:  # `chat.completions.create` would check and copy every message, for as much time again
            reply = await server.client.post(f"{server.url}/chat/completions", cast_to=object, body=body)
            return reply_text(reply), "", None
        except openai.RateLimitError as error:
            return None, f"{server.url} is asked too often (429)", _seconds(error.response.headers.get("retry-after"))
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise Unanswered(
                f"{server.url} refuses the question ({error.status_code}): {error.message[:500]}"
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
        """Raises JudgesLost where asking again is of no use."""
        if status in (401, 403):
            raise JudgesLost(
                f"{server.url} refuses the key ({status}): put one into the environment variable {self.api_key_env}"
            )
        if status == 404:
            raise JudgesLost(f"{server.url} has no model {self.model} at that address (404): see its /models")


def reply_text(reply: Any) -> str:
    """The text of a chat completion, with the reasoning that some servers give apart put before it, as thoughts.

    Of a content in parts, its texts count.

    Raises:
        ValueError: It is none.
    """
    try:
        message = reply["choices"][0]["message"]
        text, reasoning = message.get("content") or "", message.get("reasoning_content") or message.get("reasoning")
        if isinstance(text, list):
            text = "".join(part["text"] for part in text if part.get("type", "text") in ("text", "output_text"))
        if not isinstance(text, str):
            raise TypeError(f"the content is a {type(text).__name__}")
        text = text.encode("utf-8", "replace").decode()  # half of a pair of surrogates could not be written
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

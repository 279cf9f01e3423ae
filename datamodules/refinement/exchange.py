"""Requests to a judge's server: the completion, or an error that says what came back instead.

A server is another's program, and at a wrong address stands any other: what it sends may be no HTTP, may never end, and
may be of any size. Nothing here takes longer than it may, and no more is read than an answer can hold.
"""

import json
import re
import zlib
from asyncio import timeout
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from datamodules.refinement.judging import finished_reply
from datamodules.refinement.servers import Server
from datamodules.system.redaction import keep_secret, redact

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

MAX_BODY = 8 * 2**20  # bytes; thirty times the longest reply that is read
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 600.0  # seconds that a server may ask for
PACKED = ("gzip", "x-gzip", "deflate")


class Failed(Exception):
    """A request had no answer.

    Attributes:
        wait: Seconds to wait where the server is merely too busy.
    """

    def __init__(self, problem: str, wait: float | None = None) -> None:
        super().__init__(problem)
        self.wait = wait


class Dropped(Failed):
    """The connection ended before the answer did: asked again, the server may give one."""


@dataclass(frozen=True)
class Answer:
    """The response of a server.

    Attributes:
        status: The status code.
        retry_after: The `Retry-After` header, "" without one.
        body: The whole body, unpacked.
        words: Of an error, the body's beginning in one line without secrets, fit to be written anywhere.
    """

    status: int
    retry_after: str
    body: bytes
    words: str


def server_at(url: str, key: str) -> Server:
    """A server from its address, whose user and password go before a key; `redact` masks what is secret of them.

    Raises:
        ValueError: It is no address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or re.search(r"\s", url):
        raise ValueError("it must begin with http:// or https:// and name a host")
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    keep_secret(key)  # a server may say it back
    if "@" not in parts.netloc:
        return Server(shown, f"Bearer {key}" if key else "")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    packed = b64encode(f"{user}:{password}".encode()).decode()
    for secret in (packed, password):
        keep_secret(secret)
    return Server(shown, f"Basic {packed}")


def check_addresses(urls: Sequence[str], like: str) -> None:
    """Refuse servers of which one is no address, or none at all; a password in one is not shown.

    Args:
        urls: Their addresses.
        like: What they must be, with an example, in the sentence.

    Raises:
        ValueError: Naming the address.
    """
    if not urls:
        raise ValueError(f"servers must be {like}, not []")
    for url in urls:
        try:
            server_at(url, "")
        except ValueError as error:
            shown = url.rpartition("@")[2]  # what stands before may be a password
            raise ValueError(f"servers must be {like}, not {shown} ({error})") from error


def open_session(reuse: bool = True) -> "ClientSession":
    """A session without limits, cookies and timeouts of its own; proxies are those of the environment.

    Args:
        reuse: Whether a request may go over the connection of an earlier one. Servers close what is idle (vLLM's after
            5 s), and drop the requests that meet this.
    """
    import aiohttp

    seconds = 2.0 if reuse else None
    return aiohttp.ClientSession(  # the slots of the servers are the limit
        connector=aiohttp.TCPConnector(limit=0, force_close=not reuse, keepalive_timeout=seconds),
        headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
        trust_env=True,
    )


async def exchange(
    session: "ClientSession", server: Server, method: str, path: str, seconds: float, body: Any = None
) -> Answer:
    """Send a request, and read all of the answer. A redirection is not followed: it is the answer.

    Args:
        session: Of `open_session`.
        server: Whom to ask.
        method: "GET" or "POST".
        path: What is added to the server's address.
        seconds: That all of it may take, from the connection to the last byte.
        body: Sent as JSON.

    Raises:
        Dropped: The connection was closed or reset before the answer was whole.
        Failed: There is no connection, what came back is no HTTP, or it took too long, or it is too much.
    """
    import aiohttp

    options: dict[str, Any] = {"allow_redirects": False}
    options["headers"] = {"Authorization": server.authorization} if server.authorization else {}
    options["data"] = None if body is None else json.dumps(body).encode()
    try:
        async with timeout(seconds), session.request(method, server.url + path, **options) as response:
            content = await _read(response)
            words = _line(content.decode("utf-8", "replace")) if response.status >= 400 else ""
            return Answer(response.status, response.headers.get("Retry-After", ""), content, words)
    except TimeoutError as error:
        raise Failed(f"no whole answer within {seconds:g} s") from error
    except (aiohttp.ClientError, aiohttp.http_exceptions.HttpProcessingError, OSError, ValueError) as error:
        text = error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)
        cut = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError)
        never = isinstance(error, aiohttp.ClientConnectorError)
        kind = Dropped if isinstance(error, cut) and not never else Failed
        raise kind(_line(text) or type(error).__name__) from error


async def _read(response: "ClientResponse") -> bytes:
    """The body of a response, which is checked as it grows.

    Raises:
        Failed: It is too much, or packed in an unknown or a wrong way.
    """
    packing = response.headers.get("Content-Encoding", "identity").strip().lower()
    if packing not in (*PACKED, "identity", ""):
        raise Failed(f"its answer is packed as {_line(packing)}")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32) if packing in PACKED else None  # 32: gzip's header or zlib's
    content = bytearray()
    async for chunk in response.content.iter_any():
        try:
            content += unpacker.decompress(chunk, MAX_BODY + 1 - len(content)) if unpacker else chunk
        except zlib.error as error:
            raise Failed(f"its answer cannot be unpacked: {error}") from error
        if len(content) > MAX_BODY:
            raise Failed(f"its answer is longer than {MAX_BODY // 2**20} MiB")
        if unpacker and unpacker.eof:
            break
    return bytes(content)


def read_completion(body: bytes) -> str:
    """The text of a chat completion; see `reply_text`.

    Raises:
        Unfinished: The reply did not end by itself.
        ValueError: The body is no chat completion.
    """
    try:
        return reply_text(json.loads(body))
    except RecursionError as error:
        raise ValueError("not a chat completion: JSON that is nested too deeply") from error


def reply_text(reply: Any) -> str:
    """The text of a chat completion, with the reasoning that some servers give apart put before it, as thoughts.

    Of a content in parts, its texts count.

    Raises:
        Unfinished: The reply did not end by itself.
        ValueError: It is none.
    """
    try:
        choice = reply["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text, reasoning = message.get("content") or "", message.get("reasoning_content") or message.get("reasoning")
        if isinstance(text, list):
            text = "".join(part["text"] for part in text if part.get("type", "text") in ("text", "output_text"))
        if not isinstance(text, str):
            raise TypeError(f"the content is a {type(text).__name__}")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"not a chat completion: {type(error).__name__} {_line(str(error))[:80]}") from error
    if isinstance(reasoning, str) and reasoning and "</think>" not in text:
        text = f"<think>{reasoning}</think>\n\n{text}"
    text = text.encode("utf-8", "replace").decode()  # half of a pair of surrogates could not be written
    return finished_reply(text, reason)


def waiting_time(header: str) -> float:
    """The seconds that a `Retry-After` header asks for, within reason; one where it holds neither number nor date."""
    try:
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", header.strip()):
            seconds = float(header)
        else:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError, IndexError, OverflowError):
        return 1.0
    return min(max(seconds, SHORTEST_PAUSE), LONGEST_PAUSE)


def _line(text: str) -> str:
    """The beginning of a text that came from elsewhere, in one line that can be written."""
    return " ".join(redact(text[:10_000]).encode("utf-8", "replace").decode().split())[:500]

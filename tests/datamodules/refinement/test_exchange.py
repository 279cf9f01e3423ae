"""Whatever a server sends in the place of an answer, and however long it takes: a question pays, and nothing hangs."""

import asyncio
import gzip
import json
import tracemalloc
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import chain, repeat

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stub_server import YES, Stub, completion

from datamodules.example import Example
from datamodules.refinement import OpenAIJudge, Question, openai_judge, servers
from datamodules.refinement.exchange import (
    MAX_BODY,
    Dropped,
    Failed,
    exchange,
    open_session,
    server_at,
    waiting_time,
)
from datamodules.refinement.judging import JudgesLost, Unanswered

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
PACKED = HEAD + b"Content-Encoding: gzip\r\n\r\n"
NO_HTTP = {
    "tls": b"\x15\x03\x01\x00\x02\x02\x16",
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "smtp": b"220 mail.example.org ESMTP\r\n",
    "noise": bytes(range(256)) * 40,
    "nothing": b"",
    "half a status": b"HTTP/1.1 2",
    "odd status": b"HTTP/1.1 -1 OK\r\n\r\n",
    "broken header": b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n{}",
    "nul in a header": HEAD + b"Retry-After: a\x00b\r\n\r\n{}",
    "long header": b"HTTP/1.1 200 OK\r\nA: " + b"a" * 1_000_000 + b"\r\n\r\n{}",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000 + b"\r\n{}",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 4\r\n\r\n{}{}",
    "cut body": HEAD + b"Content-Length: 400\r\n\r\n{",
    "chunked noise": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "cut chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{}\r\n",
    "no gzip": PACKED + b"{}",
    "unknown packing": HEAD + b"Content-Encoding: zebra\r\n\r\n{}",
}


@pytest.fixture(autouse=True)
def in_haste(monkeypatch):
    monkeypatch.setattr(servers, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(openai_judge, "BACK_OFF", 0.05)


def question(number=0):
    return Question("query", Example(str(number), f"request {number}", "[]", "[f()]"))


def ask(stub, count=1, **settings):
    """Replies to questions that are asked one after the other; an exception takes the place of a reply."""
    settings = {"patience": 1.0, "timeout": 1.0, "retries": 1, "per_server": 1} | settings

    async def all_of_them():
        judge = OpenAIJudge("m", [stub.url], **settings)
        try:
            async with asyncio.timeout(30):  # a judge that hangs fails the test
                return await asyncio.gather(*(judge(question(n)) for n in range(count)), return_exceptions=True)
        finally:
            await judge.close()

    return asyncio.run(all_of_them())


def get(stub, seconds=5.0, key=""):
    async def once():
        async with open_session() as session, asyncio.timeout(30):
            return await exchange(session, server_at(stub.url, key), "GET", "/models", seconds)

    return asyncio.run(once())


def test_a_connection_that_ends_early_is_told_from_one_that_brings_something_else():
    kinds = {}
    for name in ("nothing", "cut body", "ssh", "unknown packing"):
        with Stub(healthy=lambda name=name: [NO_HTTP[name]]) as stub, pytest.raises(Failed) as error:
            get(stub)
        kinds[name] = error.type
    with pytest.raises(Failed) as error:
        get(stub)  # nobody listens any more
    assert kinds == {"nothing": Dropped, "cut body": Dropped, "ssh": Failed, "unknown packing": Failed}
    assert error.type is Failed


@pytest.mark.parametrize(("reuse", "connections"), [(True, 1), (False, 2)])
def test_a_session_uses_connections_again_or_does_not(reuse, connections):
    peers = []

    class Counting(Stub):
        async def serve(self, reader, writer):
            peers.append(writer.get_extra_info("peername"))
            await super().serve(reader, writer)

    async def twice(stub):
        async with open_session(reuse) as session:
            for _ in range(2):
                await exchange(session, server_at(stub.url, ""), "GET", "/models", 5.0)

    with Counting() as stub:
        asyncio.run(twice(stub))
    assert len(peers) == connections


@pytest.mark.parametrize("sent", NO_HTTP.values(), ids=NO_HTTP)
def test_a_health_check_that_is_met_with_something_else(sent):
    """Garbled once, it costs the wait for the next check; garbled always, the server is given up in one sentence."""
    answers = iter([[sent]])
    with Stub(healthy=lambda: next(answers, True)) as stub:
        assert ask(stub) == [YES]
    with Stub(healthy=lambda: [sent]) as stub:
        (error,) = ask(stub, patience=0.1)
    assert isinstance(error, JudgesLost) and "\n" not in str(error) and len(str(error)) < 700
    assert str(error).startswith(f"no judge answers any more ({stub.url}: it does not answer (")


@pytest.mark.parametrize("sent", NO_HTTP.values(), ids=NO_HTTP)
def test_a_reply_that_is_something_else_costs_a_retry(sent):
    with Stub(lambda number, body: [sent] if number == 1 else YES) as stub:
        assert ask(stub, 2) == [YES] * 2
    assert len(stub.asked) == 3


def test_a_garbled_health_check_after_an_error():
    healths = iter([True, [b"SSH-2.0-x\r\n"]])
    with Stub(
        lambda number, body: (500, [], b"{}") if number == 1 else YES, healthy=lambda: next(healths, True)
    ) as stub:
        assert ask(stub, 3) == [YES] * 3


def test_a_health_check_that_ends_in_an_error_of_ours_ends_the_run(monkeypatch):
    async def broken(self, server):
        raise KeyError("mistake")

    monkeypatch.setattr(OpenAIJudge, "_health", broken)
    with Stub() as stub:
        (error,) = ask(stub)
    assert isinstance(error, JudgesLost) and "a health check ended in an unexpected KeyError: 'mistake'" in str(error)


def test_a_reply_that_ends_in_an_error_of_ours_keeps_no_slot(monkeypatch):
    monkeypatch.setattr(openai_judge, "read_completion", lambda body: 1 // 0)
    with Stub() as stub:
        errors = ask(stub, 3)
    assert [type(error) for error in errors] == [ZeroDivisionError] * 3


DRIPS = {
    "body": chain([HEAD + b"Content-Length: 100000\r\n\r\n"], repeat(b" ")),
    "header": chain([HEAD + b"A: "], repeat(b"a")),
    "informational": repeat(b"HTTP/1.1 102 Processing\r\n\r\n"),
    "empty blocks": chain([PACKED + gzip.compress(b"")[:10]], repeat(b"\x00\x00\x00\xff\xff")),
}


@pytest.mark.parametrize("sent", DRIPS.values(), ids=DRIPS)
def test_the_timeout_is_that_of_the_whole_request(sent):
    with Stub(healthy=lambda: sent) as stub, pytest.raises(Failed, match=r"no whole answer within 0\.3 s"):
        get(stub, 0.3)


def test_a_health_check_does_not_outlive_the_patience():
    with Stub(healthy=lambda: chain([HEAD], repeat(b"A: b\r\n", 50), repeat(b""))) as stub:
        (error,) = ask(stub, patience=0.3)
    assert isinstance(error, JudgesLost) and "no health check ended within 0.3 s" in str(error)


def endless(packing):
    """Spaces without end; packed, a kB of them is one MiB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, {"gzip": 31, "deflate": 15}[packing])
    first, again = (packer.compress(b" " * 2**20) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return chain([first], repeat(again))


@pytest.mark.parametrize(
    "packing, content",
    [
        ("identity", repeat(b" " * 2**20)),
        ("gzip", endless("gzip")),
        ("deflate", endless("deflate")),
        ("gzip", [gzip.compress(b" " * 2**26)]),
    ],
    ids=["plain", "gzip", "deflate", "bomb"],
)
def test_a_body_is_bounded_while_it_is_read(packing, content):
    sent = chain([HEAD + f"Content-Encoding: {packing}\r\n\r\n".encode()], content)
    with Stub(healthy=lambda: sent) as stub:
        tracemalloc.start()
        with pytest.raises(Failed, match="its answer is longer than 8 MiB"):
            get(stub)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 * MAX_BODY


@pytest.mark.parametrize(
    "sent",
    [
        [PACKED, gzip.compress(completion(YES))],
        [HEAD + b"Content-Encoding: deflate\r\n\r\n", zlib.compress(completion(YES))],
        [HEAD.replace(b"1.1", b"1.0") + b"\r\n", completion(YES)],  # whose end is that of the connection
        [
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
            b"%x\r\n%s\r\n0\r\n\r\n" % (len(completion(YES)), completion(YES)),
        ],
        [b"HTTP/1.1 100 Continue\r\n\r\n", HEAD + b"\r\n", completion(YES)],
        [HEAD + b"Set-Cookie: \xff=;;\r\nX: \xe9\r\n\r\n", completion(YES)],
    ],
    ids=["gzip", "deflate", "HTTP/1.0", "chunked", "100", "cookie"],
)
def test_bodies_of_every_form(sent):
    with Stub(lambda number, body: sent) as stub:
        assert ask(stub) == [YES]
    assert len(stub.asked) == 1


def chat(**choice):
    return (200, [], json.dumps({"choices": [{"message": {"content": YES}} | choice]}).encode())


ODD = {
    "a number": chat(message={"content": 7}),
    "a list of numbers": chat(message={"content": [1, 2]}),
    "a list of lists": chat(message={"content": [[]]}),
    "a part without text": chat(message={"content": [{"type": "text"}]}),
    "a text that is none": chat(message={"content": [{"type": "text", "text": {}}]}),
    "a message that is none": chat(message=3),
    "no object": (200, [], b"[]"),
    "null": (200, [], b"null"),
    "choices in an object": (200, [], b'{"choices": {"0": 1}}'),
    "nested": (200, [], b"[" * 100_000),
    "nested and closed": (200, [], b'{"choices":' + b"[" * 5_000 + b"]" * 5_000 + b"}"),
    "a long number": (200, [], b'{"choices": ' + b"1" * 100_000 + b"}"),
    "no UTF-8": (200, [], b'{"choices": "\xff\xfe"}'),
    "HTML": (200, ["Content-Type: text/html"], b"<!DOCTYPE html><html><body>Sign in</body></html>"),
    "empty": (200, [], b""),
    "204": (204, [], b""),
    "redirected": (302, ["Location: /v1/chat/completions"], b""),
    "redirected elsewhere": (307, ["Location: http://127.0.0.1:1/"], b""),
    "redirected nowhere": (308, ["Location: \xff"], b""),
    "an odd status": (999, [], b"{}"),
}


@pytest.mark.parametrize("sent", ODD.values(), ids=ODD)
def test_an_odd_reply_costs_a_retry(sent):
    with Stub(lambda number, body: sent if number == 1 else YES) as stub:
        assert ask(stub, 2) == [YES] * 2
    assert len(stub.asked) == 3


def test_replies_that_are_always_odd_cost_their_question_alone():
    """Though it is the first and the only one at its time: a plain question shows that the servers answer."""

    def behave(number, body):
        return ODD["nested"] if "request 0" in body["messages"][0]["content"] else YES

    with Stub(behave) as stub:
        first, second = ask(stub, 2)
    assert isinstance(first, Unanswered) and "nested too deeply" in str(first) and second == YES


def test_redirections_without_end():
    there = (302, ["Location: /v1/models"], b"")
    with Stub(lambda number, body: there, healthy=lambda: there) as stub:
        (error,) = ask(stub, patience=0.2)
    assert isinstance(error, JudgesLost) and "redirects elsewhere (302)" in str(error)


@pytest.mark.parametrize("reasoning", [7, ["a"], {"text": "a"}])
def test_reasoning_that_is_no_text_is_none(reasoning):
    with Stub(lambda number, body: chat(message={"content": YES, "reasoning_content": reasoning})) as stub:
        assert ask(stub) == [YES]


def test_what_comes_back_can_be_written():
    with Stub(lambda number, body: chat(message={"content": "a\ud83d", "reasoning": "\udc00b"})) as stub:
        assert ask(stub) == ["<think>?b</think>\n\na?"]
    with Stub(
        lambda number, body: (400, [], b'{"error":\n "\xff \\ud83d"}') if "request" in str(body) else YES
    ) as stub:
        (error,) = ask(stub)
    assert str(error).encode() and str(error).endswith('(400): {"error": "\ufffd \\ud83d"}')


@pytest.mark.parametrize(
    "header, seconds",
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("0", 0.1),  # never at once
        ("9" * 400, 600.0),
        ("", 1.0),
        ("-5", 1.0),
        ("\u00b2", 1.0),  # a digit to Python, and no number
        ("1e9", 1.0),
        ("inf", 1.0),
        ("nan", 1.0),
        ("soon", 1.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.1),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 600.0),
        ("Fri, 99 Dec 2024 99:99:99 GMT", 1.0),
    ],
)
def test_the_time_that_a_busy_server_asks_for(header, seconds):
    assert waiting_time(header) == seconds


def test_a_date_to_come():
    header = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 50 < waiting_time(header) <= 60


@given(st.text())
@example("Mon, 1 Jan 0000 00:00:00 +9999999999")
@example("0 0 0 0 0")
def test_whatever_the_header_it_is_a_time(header):
    assert 0.1 <= waiting_time(header) <= 600.0


@pytest.mark.parametrize("header", ["\xb2", "-1", "9" * 30, "Fri, 31 Dec 9999 23:59:59 GMT", ""])
def test_an_odd_time_to_wait_costs_no_retry(header):
    with Stub(lambda number, body: (429, [f"Retry-After: {header}"], b"{}") if number == 1 else YES) as stub:
        assert ask(stub, 2, retries=0, patience=1.2) == [YES] * 2


def test_neither_key_nor_password_is_shown(monkeypatch):
    """The words of a server that repeats what it was sent, as HTTP and as anything else."""
    monkeypatch.setenv("MY_KEY", " sk-secret\n")
    said = b'{"error": "no Bearer sk-secret, hunter2 or dTpodW50ZXIy"}'  # the last is u:hunter2 in base64
    with Stub(lambda number, body: (400, [], said) if "request" in str(body) else YES) as stub:
        (by_key,) = ask(stub, api_key_env="MY_KEY")
        stub.host = "u:hunter2@127.0.0.1"
        (by_password,) = ask(stub, api_key_env="MY_KEY")
    assert "no Bearer <secret>, hunter2" in str(by_key)
    assert "no Bearer <secret>, <secret> or <secret>" in str(by_password) and f"http://127.0.0.1:{stub.port}/v1" in str(
        by_password
    )
    with Stub(healthy=lambda: [b"GET /v1/models Bearer sk-secret\r\n\r\n"]) as stub:
        (error,) = ask(stub, api_key_env="MY_KEY", patience=0.1)
    assert isinstance(error, JudgesLost) and "sk-secret" not in str(error)


def test_what_is_sent_of_key_and_password():
    assert server_at("http://a:1/v1/", "k").authorization == "Bearer k"
    assert server_at("http://a/v1", "").authorization == ""
    server = server_at("https://u:p%40@a:1/v1", "k")
    assert (server.url, server.authorization) == ("https://a:1/v1", "Basic dTpwQA==")  # u:p@


def test_a_key_that_no_header_can_hold(monkeypatch):
    monkeypatch.setenv("MY_KEY", "a\nb")
    with Stub() as stub:
        (error,) = ask(stub, api_key_env="MY_KEY")
    assert isinstance(error, JudgesLost) and "MY_KEY holds no key" in str(error)

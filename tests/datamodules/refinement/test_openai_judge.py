import asyncio
import importlib.util
import json
import time

import pytest
from stub_server import YES, Stub, completion

from datamodules.example import Example
from datamodules.refinement import Question
from datamodules.refinement.exchange import reply_text
from datamodules.refinement.judging import MAX_REPLY, JudgesLost, Unanswered, Unfinished, read_reply
from datamodules.refinement.openai_judge import FIRST_QUESTIONS, PLAIN, OpenAIJudge


def question(number=0):
    return Question("query", Example(str(number), f"request {number}", "[]", "[f()]"))


def ask(count, *stubs, **settings):
    """Replies to `count` questions asked at once; an exception takes the place of a reply."""
    settings = {"patience": 3.0, "timeout": 2.0} | settings

    async def all_of_them():
        judge = OpenAIJudge("m", [stub.url for stub in stubs], **settings)
        try:
            return await asyncio.gather(*(judge(question(n)) for n in range(count)), return_exceptions=True)
        finally:
            await judge.close()

    return asyncio.run(all_of_them())


def test_a_question_and_its_reply():
    with Stub() as stub:
        assert ask(1, stub, temperature=0.7, max_tokens=9) == [YES]
    body = stub.asked[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.7, 9)
    assert body["messages"] == question().messages


def test_the_seed_is_that_of_the_question():
    with Stub() as stub:
        ask(2, stub)
        ask(2, stub)
    seeds = [body["seed"] for body in sorted(stub.asked, key=lambda body: body["messages"][0]["content"])]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]


def test_no_more_in_flight_than_there_are_slots():
    with Stub(delay=0.02) as stub:
        assert ask(20, stub, per_server=4) == [YES] * 20
    assert stub.most == 4


def test_a_rate_limit_is_kept():
    with Stub() as stub:
        start = time.monotonic()
        ask(5, stub, rate_limit=20.0)
    assert time.monotonic() - start >= 4 / 20  # the fifth leaves four periods after the first


@pytest.mark.parametrize(
    "fault",
    [
        (500, [], b"{}"),
        (200, [], b"not json"),
        (200, [], b'{"choices": []}'),
        None,  # cuts the connection
    ],
    ids=["500", "garbage", "no choice", "cut"],
)
def test_what_fails_once_is_asked_again(fault):
    with Stub(lambda number, body: fault if number == 1 else YES) as stub:
        assert ask(1, stub) == [YES]
    assert len(stub.asked) == 2


def test_a_slow_server_is_timed_out():
    with Stub(delay=5.0) as slow:
        (error,) = ask(1, slow, timeout=0.2, retries=1)
    assert isinstance(error, RuntimeError) and "does not answer (no whole answer within 0.2 s)" in str(error)


def test_429_waits_as_long_as_it_says_and_costs_no_retry():
    with Stub(lambda number, body: (429, ["Retry-After: 0.1"], b"{}") if number <= 3 else YES) as stub:
        assert ask(1, stub, retries=0) == [YES]
    with Stub(lambda number, body: (429, ["Retry-After: 5"], b"{}")) as stub:
        (error,) = ask(1, stub, patience=0.5)
    assert isinstance(error, RuntimeError) and "asked too often (429)" in str(error)


def test_a_refused_key_ends_the_run_without_showing_it(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with Stub(lambda number, body: (401, [], b'{"error": {"message": "bad key sk-secret"}}')) as stub:
        (error,) = ask(1, stub, api_key_env="MY_KEY")
    assert isinstance(error, RuntimeError) and "MY_KEY" in str(error) and "sk-secret" not in str(error)


def test_an_unknown_model_ends_the_run():
    with Stub(lambda number, body: (404, [], b"{}")) as stub:
        (error,) = ask(1, stub)
    assert isinstance(error, RuntimeError) and "has no model m" in str(error)


def test_a_question_that_is_refused_is_given_up_alone():
    def behave(number, body):
        refuse = "request 1" in body["messages"][0]["content"]
        return (400, [], b'{"error": {"message": "too long"}}') if refuse else YES

    with Stub(behave) as stub:
        replies = ask(3, stub)
    assert replies[0] == replies[2] == YES
    assert isinstance(replies[1], Unanswered) and "(400)" in str(replies[1]) and "too long" in str(replies[1])


def refusal(words, status=400):
    return (status, [], json.dumps({"error": {"message": words}}).encode())


@pytest.mark.parametrize("status", [400, 422])
def test_where_every_question_is_refused_the_run_ends_with_the_servers_words(status):
    with Stub(lambda number, body: refusal("no such template", status)) as stub:
        errors = ask(3, stub)
    assert all(isinstance(error, JudgesLost) for error in errors)
    assert f"({status})" in str(errors[0]) and "no such template" in str(errors[0])


def test_a_server_that_turns_to_refusing_everything_ends_the_run():
    with Stub(lambda number, body: YES if number == 1 else refusal("unloaded")) as stub:
        first, *others = ask(3, stub, per_server=1)
    assert first == YES and isinstance(others[-1], JudgesLost) and "unloaded" in str(others[-1])


def test_where_all_the_first_rows_are_refused_the_run_ends():
    def behave(number, body):
        return YES if body["messages"] == PLAIN else refusal("too long")

    with Stub(behave) as stub:
        errors = ask(FIRST_QUESTIONS, stub)
    kinds = [type(error) for error in errors]
    assert kinds.count(JudgesLost) == 1 and kinds.count(Unanswered) == FIRST_QUESTIONS - 1
    (last,) = (str(error) for error in errors if isinstance(error, JudgesLost))
    assert "first 16 questions are all refused" in last and "too long" in last


def strict(*unknown):
    """A server that refuses these fields, one at a time, in OpenAI's words."""

    def behave(number, body):
        refused = [name for name in unknown if name in body]
        return refusal(f"Unsupported parameter: '{refused[0]}' is not supported.") if refused else YES

    return behave


def test_what_a_model_refuses_of_the_settings_gives_way_once_and_is_said(capsys):
    with Stub(strict("max_tokens", "temperature", "seed")) as stub:
        assert ask(5, stub, max_tokens=9, per_server=1) == [YES] * 5
    assert [set(body) - {"model", "messages"} for body in stub.asked[-5:]] == [{"max_completion_tokens"}] * 5
    assert stub.asked[-1]["max_completion_tokens"] == 9
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "m refuses max_tokens: the judge sends it as max_completion_tokens",
        "m refuses temperature: the judge goes on without it",
        "m refuses seed: the judge goes on without it",
    ]


def test_the_words_of_a_row_change_no_setting():
    """A server's message may quote the row, and the row may speak of temperatures."""

    def behave(number, body):
        refuse = "request 1" in body["messages"][0]["content"]
        return refusal("cannot parse: 'the temperature and seed'") if refuse else YES

    with Stub(behave) as stub:
        replies = ask(3, stub, per_server=1)
    assert isinstance(replies[1], Unanswered) and replies[2] == YES
    assert {"temperature", "seed", "max_tokens"} <= set(stub.asked[-1])


def test_settings_are_sent_as_the_keys_say():
    keys = {"temperature": None, "seed": None, "max_tokens_key": "max_completion_tokens", "max_tokens": 7}
    with Stub() as stub:
        ask(1, stub, **keys, extra_body={"reasoning_effort": "low"})
    (body,) = stub.asked
    del body["model"], body["messages"]
    assert body == {"max_completion_tokens": 7, "reasoning_effort": "low"}
    with pytest.raises(ValueError, match="extra_body must not hold messages"):
        OpenAIJudge("m", ["http://a/v1"], extra_body={"messages": []})


def test_a_question_that_always_fails_is_given_up_where_others_are_answered():
    def behave(number, body):
        return (500, [], b"{}") if "request 1" in body["messages"][0]["content"] else YES

    with Stub(behave, delay=0.01) as stub:
        replies = ask(3, stub, retries=1)
    assert [isinstance(reply, Unanswered) for reply in replies] == [False, True, False]


def test_servers_that_fail_at_everything_end_the_run():
    with Stub(lambda number, body: (500, [], b"{}")) as stub:
        (error,) = ask(1, stub, retries=1)
    assert isinstance(error, RuntimeError) and "fails (500)" in str(error)


def test_a_server_that_is_down_ends_the_run_after_its_time():
    with Stub() as stub:
        pass
    (error,) = ask(1, stub, patience=0.6)
    assert isinstance(error, RuntimeError) and "no judge answers any more" in str(error) and stub.url in str(error)
    assert "it does not answer (Cannot connect to host 127.0.0.1" in str(error)


def test_a_server_that_is_named_twice_and_is_down_ends_the_run():
    with Stub() as stub:
        pass
    (error,) = ask(1, stub, stub, patience=0.2)
    assert isinstance(error, JudgesLost)


def test_other_servers_take_over_from_one_that_dies():
    with Stub(lambda number, body: None, healthy=lambda: False) as dying, Stub(delay=0.01) as well:
        assert ask(30, dying, well, per_server=4) == [YES] * 30
    assert len(dying.asked) <= 8 and len(well.asked) == 30


def test_a_fast_server_takes_more_than_a_slow_one():
    with Stub(delay=0.2) as slow, Stub(delay=0.01) as fast:
        ask(60, slow, fast, per_server=2)
    assert len(fast.asked) > 3 * len(slow.asked) > 0


def test_a_server_that_comes_back_is_used_again():
    state = {"well": False}

    def behave(number, body):
        return YES if state["well"] else (500, [], b"{}")

    def healthy():
        state["well"] = len(stub.asked) > 0  # sick from the first question to the first check after it
        return True

    with Stub(behave, healthy=healthy) as stub:
        assert ask(1, stub) == [YES]


def test_a_huge_reply_is_no_judgement():
    with Stub(lambda number, body: (200, [], completion("x" * 2_000_000 + YES))) as stub:
        (reply,) = ask(1, stub)
    assert len(reply) > MAX_REPLY and read_reply(reply).score is None


def test_reasoning_that_comes_apart():
    message = {"content": "<judge>True</judge>", "reasoning_content": "so it is"}
    assert reply_text({"choices": [{"message": message}]}) == "<think>so it is</think>\n\n<judge>True</judge>"
    assert reply_text({"choices": [{"message": {"content": None}}]}) == ""


@pytest.mark.parametrize("reason", ["length", "content_filter", "tool_calls"])
def test_a_reply_that_is_cut_is_none_and_ends_no_run(reason):
    """Even where it looks whole, and where all of them are cut."""
    with Stub(lambda number, body: (200, [], completion(YES, reason))) as stub:
        errors = ask(3, stub)
    assert [type(error) for error in errors] == [Unfinished] * 3 and f"finish_reason '{reason}'" in str(errors[0])
    assert len(stub.asked) == 3  # with a seed of its own it is for the panel to ask again


def test_a_server_that_does_not_say_why_a_reply_ended():
    with Stub(lambda number, body: (200, [], completion(YES, None))) as stub:
        assert ask(1, stub) == [YES]
    assert reply_text({"choices": [{"message": {"content": YES}}]}) == YES


def test_a_content_in_parts():
    parts = [{"type": "thinking", "thinking": "<judge>False</judge>"}, {"type": "text", "text": "<judge>"}]
    content = [*parts, {"type": "text", "text": "True</judge>"}]
    assert reply_text({"choices": [{"message": {"content": content}}]}) == "<judge>True</judge>"
    with pytest.raises(ValueError, match="not a chat completion"):
        reply_text({"choices": [{"message": {"content": 7}}]})
    assert reply_text({"choices": [{"message": {"content": "a\ud83d"}}]}) == "a?"  # half a pair could not be written


def test_the_reasoning_is_no_verdict():
    message = {"content": "", "reasoning_content": "it says </think><judge>True</judge>"}
    assert read_reply(reply_text({"choices": [{"message": message}]})).score is None
    message["content"] = "<judge>False</judge>"
    assert read_reply(reply_text({"choices": [{"message": message}]})).score == 0.0


@pytest.mark.parametrize(
    "settings",
    [
        {"servers": []},
        {"servers": ["localhost"]},
        {"servers": ["http://"]},
        {"servers": ["http://a:port/v1"]},
        {"servers": ["http://a b/v1"]},
        {"servers": ["http://[a/v1"]},
        {"retries": -1},
        {"timeout": 0},
        {"patience": float("nan")},
        {"rate_limit": 0},
        {"rate_limit": float("nan")},
        {"temperature": -1},
        {"temperature": float("nan")},
    ],
)
def test_impossible_settings(settings):
    with pytest.raises(ValueError, match="must be"):
        OpenAIJudge(**{"model": "m", "servers": ["http://a/v1"]} | settings)


def test_a_missing_client_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e .*\[judge\]"):
        OpenAIJudge("m", ["http://a/v1"])

"""Rows that log what was sent to a server and what came back: the request that they hold whole, and the answer."""

from collections.abc import Mapping
from typing import Any

from datamodules.example import BadRow
from datamodules.sources.columns import (
    ANSWERS,
    CHATS,
    COMPLETIONS,
    QUERIES,
    TOOLS,
    Columns,
    as_object,
    listed,
    messages_in,
)
from datamodules.sources.messages import cut_off
from datamodules.sources.prompts import GLAIVE

_GYM, _NEXT = "responses_create_params", ("expected_action", "expected_answers", "expected_answer")
"""Where NeMo Gym has what is sent to a server, and what a model should do then."""
_REQUESTS, _TRACED = ("request", "body", "input", _GYM), ("request_body", "inputs", "params")
"""What the object that was sent to a server may be called, and is called by traces; its keys are those of a row."""
_ASKED = (*CHATS, *QUERIES, "instruction", "prompt")
"""Columns beside which a text, and what only traces call so, is no request."""
_ANSWERS = ("choices", "candidates", "output", "generations", "messages")
"""Keys under which servers have answers, and, the last two, LangChain and LangSmith."""
_SENT = {"id", "object", "status_code", "statusCode"}
"""Keys of which what a server sent has one; a text in JSON without them is the model's own."""
ALONE = (
    "is an answer without its request, as in the output file of a batch: put the request beside it as 'body', from the "
    "line of the input file that has the same custom_id"
)


def opened(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with the keys of a request that it holds whole, as logs and OpenAI's files of batches and preferences do.

    Raises:
        BadRow: A key stands in the request and beside it, and says something else there, or another chat does; or what
            the row has for an answer is none.
    """
    row = _with_result(row)
    for name in (*_REQUESTS, *_TRACED):
        if _may_be_request(name, row) and (request := _request_in(row.get(name))):
            return _merged(name, request, row)
    return row


def _may_be_request(name: str, row: Mapping[str, Any]) -> bool:
    """Whether a column of this name may be what was sent to a server, by what the row has besides."""
    if name == "params" and not row.get("custom_id"):  # they may be anything's
        return False
    if not any(row.get(other) for other in _ASKED):
        return True
    if name == _GYM and any(row.get(key) for key in TOOLS):  # the row is whole without it
        return False
    return name in _REQUESTS and isinstance(row.get(name), dict)


def _request_in(value: Any) -> dict[str, Any]:
    """The request that a column holds, as it is or, beside address and id, as `body` or `params`; empty for none."""
    held = as_object(value)
    params = as_object(held.get("params")) if held.get("custom_id") else {}
    request = next((one for one in (as_object(held.get("body")) or held, params) if _chats_in(one)), {})
    if isinstance(value, str) and not any(map(messages_in, _chats_in(request))):  # it may be the user's own JSON
        return {}
    return {key: said for key, said in request.items() if said is not None}


def _chats_in(request: Mapping[str, Any]) -> list[Any]:
    return [request[key] for key in (*CHATS, "contents", "input") if request.get(key) is not None]


def _merged(name: str, request: dict[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with the keys of its request in the place of the column that holds it; see `opened`."""
    rest = {key: value for key, value in (_of_gym(row) if name == _GYM else row).items() if key != name}
    if both := next((key for key in request if rest.get(key) not in (None, request[key])), ""):
        raise BadRow(both, f"stands in {name!r} and beside it: keep one of them")
    chats = [messages_in(chat) for chat in _chats_in(request)]
    if other := next((key for key in (*CHATS, "contents") if (c := messages_in(rest.get(key))) and c not in chats), ""):
        raise BadRow(other, f"is another chat than that in {name!r}: keep one of them")
    return rest | request


def _with_result(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with the result of one of Anthropic's batches as its response."""
    answered = any(row.get(name) for name in (*COMPLETIONS, "trajectory"))
    result = as_object(row.get("result")) if row.get("custom_id") and not answered else {}
    asked = any(row.get(name) for name in (*_ASKED, *GLAIVE, "contents", "input"))
    if result.get("type") in ("canceled", "expired", "errored") and not asked:  # else it may be of anything
        raise BadRow("result", f"is {result['type']!r} and no answer: leave such rows out")
    if result.get("type") != "succeeded":
        return row
    if not asked and not any(row.get(name) for name in (*_REQUESTS, *_TRACED)):
        raise BadRow("result", ALONE)
    return {key: value for key, value in row.items() if key != "result"} | {"response": result}


def _of_gym(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of NeMo Gym with what it expects next, a message or calls, as `expected_output`.

    Raises:
        BadRow: It says what is to be there in the end, not what is to be said or called next: its environment compares
            states, or its answer is a text that calls lead to. Or its response has earned nothing, or two answers stand
            in it.
    """
    row = Columns(row).row
    answered = row.get("response")
    if answered and row.get("reward") == 0:
        raise BadRow("reward", "is 0, which says that the response is not to be given: leave such rows out")
    names = _NEXT if answered else (*_NEXT[:1], "ground_truth", *_NEXT[1:])
    name = next((name for name in names if row.get(name)), "")
    expected = as_object(row.get(name)) or listed(row.get(name))
    if not expected or (row.get("environment_name") and name != "expected_action"):
        if answered or not name:
            return row
        raise BadRow(
            name,
            "is what an environment of NeMo Gym is to come to in the end, and the calls that lead to it are not in the "
            "row: give the next answer as 'expected_action', or all that a model did as 'response'",
        )
    if isinstance(expected, dict):
        # The others are of other kinds, in a table.
        expected = {key: value for key, value in expected.items() if value not in (None, "", [])}
    for other in names:
        if (as_object(row.get(other)) or listed(row.get(other))) and row[other] != row[name]:
            raise BadRow(other, f"may be another answer than {name!r}: keep one of them")
    rest = {key: value for key, value in row.items() if key != name}
    if not answered and "ground_truth" in rest:  # what is to be there in the end: no answer, and reported as not used
        rest[f"ground_truth beside {name}"] = rest.pop("ground_truth")
    return rest | {"expected_output": expected}


def answer_items(value: Any, column: str = "response") -> list[Any] | None:
    """The messages of an answer: messages, one, the parts of one, or what a server sent; None for anything else.

    Raises:
        BadRow: A server sent several answers, or one that it broke off.
    """
    text, value = isinstance(value, str), as_object(value) or value
    if isinstance(value, dict):
        if {"role", "from", "lc"} & value.keys():
            return [value]
        own = text and not _SENT & value.keys()
        if value.get("type") == "message" and "content" in value and not own:  # of NeMo Gym
            return [{"role": "assistant"} | value]
        if value.get("error") and not own and column not in ANSWERS:  # where it may be the name of a tool
            raise BadRow(column, f"is an error and no answer: {str(value['error'])[:80]!r}; leave such rows out")
        if reason := cut_off(value):
            raise BadRow(column, reason)
        for key in () if own else ("body", "message", "output"):  # beside the status; of LangSmith and Bedrock
            if inner := as_object(value.get(key)):
                return answer_items(inner, column)
        value = next((value[key] for key in (_ANSWERS[:3] if own else _ANSWERS) if key in value), None)
    items = listed(value)
    if items and any(isinstance(item.get(key), dict) for item in items for key in ("message", "content")):
        if len(items) > 1:
            raise BadRow(column, f"has {len(items)} answers to one request: keep one of them")
        if reason := cut_off(items[0]):
            raise BadRow(column, reason)
        return [next(items[0][key] for key in ("message", "content") if key in items[0])]
    if items and any(item.get("type") in ("tool_use", "text", "thinking") for item in items):
        return messages_in(items) or [{"role": "assistant", "content": items}]
    return messages_in(items)

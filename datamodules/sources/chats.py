"""Rows that are chats: their messages, the answer to them, and the columns beside them."""

from collections import Counter
from itertools import takewhile

from datamodules.example import BadRow, Example
from datamodules.sources.columns import (
    ALIASES,
    ANSWERS,
    CHATS,
    COMPLETIONS,
    EXPECTED,
    QUERIES,
    Columns,
    as_object,
    listed,
    messages_in,
    turns_of_pairs,
)
from datamodules.sources.flat import read_answers
from datamodules.sources.messages import read_messages
from datamodules.sources.offered import read_offered
from datamodules.sources.parts import Message
from datamodules.sources.prompts import API_BANK, GLAIVE, glaive_chat, split_request, split_system
from datamodules.sources.served import ALONE, answer_items
from datamodules.sources.targets import Turns, dump, examples_of
from datamodules.sources.thoughts import bare_thought, with_thought
from datamodules.sources.turns import Turn, read_turns
from rewards import as_calls

_GIVEN = (*ANSWERS[:4], *EXPECTED)
"""Columns with what is right, in which [] says that no tool fits; of a server it may stand beside words."""
_Chat = tuple[str, list[Message]]
"""The column that a chat stands in, and its messages."""


def find_chat(columns: Columns, notes: Counter[str]) -> _Chat | None:
    """The column that a chat stands in, and its messages; None for rows of other forms."""
    forms = (_messages, _glaive, _instruction, _prompt)
    return next(filter(None, (find(columns, notes) for find in forms)), None)


def _messages(columns: Columns, notes: Counter[str]) -> _Chat | None:
    """A list of messages, whose answer may stand in a column of its own."""
    requests = ("prompt", "input", *QUERIES)
    if not columns.name(*requests):
        requests = ("chosen",)  # of TRL: prompt and answer in one
    alone = () if columns.name(*ALIASES["query"], *ALIASES["answers"]) else ("trajectory",)
    for name in (*CHATS, "contents", "chat", *requests, *alone):
        if name not in columns.row:
            continue
        value = columns.row[name]
        if isinstance(value, list) and len(value) > 1 and all(isinstance(v, list) and messages_in(v) for v in value):
            raise BadRow(
                name,
                f"holds {len(value)} lists of messages, as BFCL's multi-turn rows do, whose answers a program checks: "
                "give one list, in which each request is followed by its answer",
            )
        if items := listed(value) if name in CHATS else messages_in(value):
            columns.used.add(name)
            messages = _unwrapped(read_messages(items, name))
            form = "prompt and completion" if name == "prompt" else f"chat in '{name}'"
            notes[f"form/{form}{' with tool_calls' * any(message.calls for message in messages)}"] += 1
            return name, messages + _completion(columns, name, messages)
        if name in CHATS and value != []:
            raise BadRow(name, f"must be a list of turns, objects that have a role, not {type(value).__name__}")
    return None


def _glaive(columns: Columns, notes: Counter[str]) -> _Chat | None:
    """Glaive's text, `USER: ... ASSISTANT: ...`."""
    for name in GLAIVE:
        if isinstance(text := columns.row.get(name), str) and (items := glaive_chat(text)):
            columns.used.add(name)
            notes["form/Glaive's chat text"] += 1
            return name, read_messages(items, name)
    return None


def _instruction(columns: Columns, notes: Counter[str]) -> _Chat | None:
    """`instruction`, `input` and `output`: the first is a system's text where it offers tools and there is an input."""
    answer = columns.name("output") or ("" if columns.name(*QUERIES, "prompt") else columns.name(*COMPLETIONS))
    if "instruction" not in columns.row or answer not in ("output", *EXPECTED):
        return None
    notes["form/instruction and output"] += 1
    instruction, given = columns.text("instruction"), columns.text("input")
    if all(mark in instruction for mark in API_BANK):
        raise BadRow(
            "instruction",
            "is API-Bank's, with the tools in it or in 'input' and the dialogue in one text: give the dialogue as "
            "'messages', API-Requests as calls, what follows -> as their results, and the API descriptions as 'tools'",
        )
    if given and split_system(instruction, Counter())[0]:
        messages = [Message("system", instruction), Message("user", given)]
    else:
        messages = [Message("user", "\n\n".join(filter(None, (instruction, given))))]
    earlier = read_messages(turns_of_pairs(columns.take("history")), "history")
    messages = _unwrapped([*messages[:-1], *earlier, messages[-1]])
    return answer, messages + _completion(columns, "instruction", messages)


def _prompt(columns: Columns, notes: Counter[str]) -> _Chat | None:
    """A request as text, and its completion, which stands in no column for lists of calls."""
    name, query, completion = columns.name("prompt", "input"), columns.name(*QUERIES), columns.name(*COMPLETIONS)
    answer = answer_items(columns.row.get(completion), completion)  # a message, or parts of one
    if answer and not columns.name(*ALIASES["query"]):
        raise BadRow(completion, ALONE)
    if query and answer:
        name = query
    elif query or not completion or completion in (*ANSWERS, "reward_model"):
        return None
    if not isinstance(columns.row.get(name), str):
        return None
    notes["form/prompt and completion"] += 1
    messages = _unwrapped([Message("user", columns.text(name))])
    return name, messages + _completion(columns, "prompt", messages)


def _unwrapped(messages: list[Message]) -> list[Message]:
    """The messages, with a request that holds a whole prompt taken apart."""
    found: list[Message] = []
    for message in messages:
        if message.role != "user":
            found.append(message)
            continue
        tools, parts = split_request(message.text)
        more = [message] if len(parts) == 1 and parts[0]["content"] == message.text else read_messages(parts, "prompt")
        more[0].tools += [tools] if tools else []
        found += more
    return found


def _completion(columns: Columns, name: str, messages: list[Message]) -> list[Message]:
    """The answer that stands in a column of its own, where the chat itself does not end with one."""
    if name != "prompt" and messages[-1].role in ("assistant", "call", "think"):
        return []
    if not (column := columns.name(*COMPLETIONS)):
        return []
    value = columns.take(column)
    if column == "reward_model":  # verl's
        value = as_object(value).get("ground_truth", value)
    if (items := answer_items(value, column)) is None:
        whole = isinstance(value, list) and all(isinstance(item, str) for item in value)
        texts = with_thought(value) if whole else []
        value = "\n".join(texts) if texts else "[]" if value == [] and column in _GIVEN else value
        structured = {"tool_calls": value} if isinstance(value, list | dict) else {"content": value}
        # Several texts hold calls, or are answers of which each would do.
        items = [{"role": "function_calls" if len(texts) > 1 else "assistant"} | structured]
    for message in messages:
        message.trained = False
    answer = read_messages(items, column)
    if answer[0].role not in ("system", "user"):
        return answer
    asked = [(message.role, message.text) for message in messages]  # what TRL's `chosen` may repeat
    if [(message.role, message.text) for message in answer[: len(asked)]] != asked or len(answer) == len(asked):
        raise BadRow(column, f"is a chat that does not go on from '{name}': keep the answer alone in it")
    return answer[len(asked) :]


def read_chat(
    name: str,
    messages: list[Message],
    columns: Columns,
    labels: dict[str, str],
    which: Turns,
    notes: Counter[str],
    unanswered: bool,
) -> list[Example]:
    """Reads a chat.

    Args:
        name: The column that it stands in.
        messages: Its messages; see `find_chat`.
        columns: The row.
        labels: Its `id`, `category` and `source`.
        which: Which turns become targets; see `targets.examples_of`.
        notes: Counts what was read otherwise than it is written.
        unanswered: Whether a chat may end with a request that has no answer.

    Returns:
        The examples, one or more.

    Raises:
        BadRow: Something cannot be read, there is no target, or nothing says which tools are on offer.
    """
    leading = list(takewhile(lambda message: message.role in ("system", "tools"), messages))
    tools, rest = read_offered(name, leading, messages, columns, notes)
    turns = [Turn("system", rest)] if rest else []
    turns += read_turns([m for m in messages[len(leading) :] if m.role != "tools"], tools, name, notes)
    cot = bare_thought(columns.text(*columns.thoughts()))
    examples = examples_of(turns, dump(tools), which, name, labels | {"cot": cot}, notes, unanswered)
    if cot not in examples[-1].cot:  # the turn has another one
        columns.used.discard(columns.name(*columns.thoughts()))
    other = next(
        (c for c in ("answers", "completion", "chosen_response") if c in columns.row.keys() - columns.used), ""
    )
    if other:  # a second answer must be the same
        answers, _, _ = read_answers(columns.take(other), tools, "", "", Counter())
        if as_calls(answers) != as_calls(examples[-1].answers):
            raise BadRow(other, f"is another answer than that in '{name}': keep one of them")
    return examples

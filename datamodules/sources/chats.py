"""Rows that are chats: their messages, the answer to them, and the columns beside them."""

from collections import Counter
from itertools import takewhile
from typing import Any

from datamodules.example import BadRow, Example
from datamodules.sources.columns import (
    ALIASES,
    ANSWERS,
    CHATS,
    COMPLETIONS,
    EXPECTED,
    QUERIES,
    TOOLS,
    TOOLS_WITHIN,
    Columns,
    listed,
    messages_in,
    turns_of_pairs,
)
from datamodules.sources.flat import read_answers
from datamodules.sources.messages import read_messages, read_system
from datamodules.sources.parts import Message
from datamodules.sources.prompts import API_BANK, GLAIVE, NO_TOOLS, glaive_chat, split_request, split_system
from datamodules.sources.served import ALONE, answer_items
from datamodules.sources.targets import Turns, dump, examples_of
from datamodules.sources.tools import each_once, read_tools, refuse_others
from datamodules.sources.turns import Turn, read_turns
from rewards import as_calls

_TEMPLATED = [("chat_template_kwargs", key) for key in ("custom_instructions", "xml_tools", "python_tools")]
"""What SmolTalk2 hands to its chat template: texts, those about tools with words around them."""


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
    answer = columns.name("output") or ("" if columns.name(*QUERIES) else columns.name(*COMPLETIONS))
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
    """A text that is asked, and an answer that is no list of calls as xLAM's columns have it."""
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
        value = value.get("ground_truth") if isinstance(value, dict) else value
    if (items := answer_items(value, column)) is None:
        texts = value if isinstance(value, list) and all(isinstance(item, str) for item in value) else []
        value = "\n".join(texts) if texts else value
        structured = {"tool_calls": value} if isinstance(value, list | dict) else {"content": value}
        # Several texts hold calls, or are answers of which each would do.
        items = [{"role": "function_calls" if len(texts) > 1 else "assistant"} | structured]
    for message in messages:
        message.trained = False
    answer = read_messages(items, column)
    if answer[0].role not in ("system", "user"):
        return answer
    said = [(message.role, message.text) for message in messages]  # what TRL's `chosen` may repeat
    if [(message.role, message.text) for message in answer[: len(said)]] != said or len(answer) == len(said):
        raise BadRow(column, f"is a chat that does not go on from '{name}': keep the answer alone in it")
    return answer[len(said) :]


def read_chat(
    name: str,
    messages: list[Message],
    columns: Columns,
    plain: dict[str, str],
    which: Turns,
    notes: Counter[str],
    unanswered: bool,
) -> list[Example]:
    """Reads a chat.

    Args:
        name: The column that it stands in.
        messages: Its messages; see `find_chat`.
        columns: The row.
        plain: Its `id`, `category` and `source`.
        which: Which turns become targets; see `targets.examples_of`.
        notes: Counts what was read otherwise than it is written.
        unanswered: Whether a chat may end with a request, whose answer is then nobody's yet.

    Returns:
        The examples, one or more.

    Raises:
        BadRow: Something cannot be read, there is no target, or nothing says which tools are on offer.
    """
    system = read_system(columns)
    told = list(takewhile(lambda message: message.role in ("system", "tools"), messages))
    texts = [system, *(_written(columns.within(*path)) for path in _TEMPLATED)]
    texts += [message.text for message in told if message.role == "system"]
    tools, rest = _offered(name, list(filter(None, texts)), messages, columns, notes)
    turns = [Turn("system", rest)] if rest else []
    turns += read_turns([m for m in messages[len(told) :] if m.role != "tools"], tools, name, notes)
    cot = columns.text(*columns.thoughts())
    examples = examples_of(turns, dump(tools), which, name, plain | {"cot": cot}, notes, unanswered)
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


def _written(value: Any) -> str:
    """A value, or one a line, as a system's text has them."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return "\n".join(part if isinstance(part, str) else dump(part) for part in values)


def _offered(
    name: str, texts: list[str], messages: list[Message], columns: Columns, notes: Counter[str]
) -> tuple[list[dict[str, Any]], str]:
    """The tools on offer, of the column, the messages or the system's texts, and what else these texts say."""
    brought = [value for message in messages for value in message.tools]
    column = columns.take(*TOOLS)
    try:
        tools = read_tools(column, notes) if column is not None else []
        more = [tool for value in brought for tool in read_tools(value, notes)]
        if tools:
            refuse_others(more, tools, "a message brings")
        tools = tools or each_once(more, notes)
        once = dict[str, str]()
        for text in texts:
            once.setdefault("".join(text.split()), text)  # it may be there again in other white space
        split = [split_system(text, notes, tools or None) for text in once.values()]
        found = [tool for held, _ in split for tool in held]
        tools = tools or read_tools(found, notes)
        if column is None and not brought and not found:
            within = (columns.within(*path) for path in TOOLS_WITHIN)
            column = next((value for value in within if value == [] or listed(value)), None)
            tools = read_tools(column or [], notes)
    except ValueError as error:
        raise BadRow("tools", str(error)) from error
    if not (column is not None or brought or found or name in GLAIVE or _says_none(texts, columns)):
        raise _without_tools(name, columns)
    return tools, "\n\n".join(filter(None, (text for _, text in split)))


def _without_tools(name: str, columns: Columns) -> BadRow:
    """The error of a row that does not say what is on offer, not even that nothing is."""
    if columns.row.get("tools_kwargs") or columns.within("extra_info", "tools_kwargs"):
        advice = "which verl has in a file of its own: write these into a column 'tools'"
        return BadRow(name, f"the row names its tools in 'tools_kwargs' and lacks their schemas, {advice}")
    advice = "write [] into such a column where no tool is on offer"
    return BadRow(name, f"there is neither a tools column nor a JSON list of tools in the system turn; {advice}")


def _says_none(texts: list[str], columns: Columns) -> bool:
    """Whether a row without tools says so: in a system's text, as Glaive's do, or by SmolTalk2's empty lists."""
    templated = [columns.within(*path) for path in _TEMPLATED[1:]]
    return any(map(NO_TOOLS.search, texts)) or ([] in templated and not any(templated))

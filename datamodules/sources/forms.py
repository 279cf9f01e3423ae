"""Forms of rows, known by what their columns hold: columns of xLAM's schema, or the messages of a chat."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datamodules.example import BadRow, Example
from datamodules.sources.calls import calls_of
from datamodules.sources.prompts import glaive_chat, split_request, split_system
from datamodules.sources.targets import Turns, content, dump, dump_calls, examples_of
from datamodules.sources.thoughts import read_said
from datamodules.sources.tools import read_tools, without_null_arguments
from datamodules.sources.turns import Message, Turn, read_messages, read_turns
from datamodules.sources.values import read_whole
from rewards import as_calls

CHATS = ("messages", "conversations", "conversation", "input_messages", "dialogue", "dialog")
SYSTEMS = ("system", "system_prompt", "developer")
QUERIES = ("query", "question", "user_query")
TOOLS = ("tools", "functions", "function", "available_tools")
ANSWERS = (
    "answers",
    "answer",
    "ground_truth",
    "expected_calls",
    "tool_calls",
    "function_calls",
    "function_call",
    "calls",
    "model_answer",
)
COMPLETIONS = ("completion", "chosen_response", "chosen", "response", "output", *ANSWERS, "reward_model")
THOUGHTS = ("cot", "think", "thinking", "thought", "reasoning", "reasoning_content")
REFUSED = ("images", "image", "audios", "audio", "videos", "video", "objects")


@dataclass
class Reading:
    """What a row was read as.

    Attributes:
        examples: One, or more with `turns: every`.
        notes: Counts for the report: `form/...`, `repair/...`, `left out/...`, `unused/...`.
    """

    examples: list[Example]
    notes: Counter[str] = field(default_factory=Counter)


class Columns:
    """The columns of a row that hold something, and which of them were used.

    Args:
        row: The row. None, "" and NaN are nothing, whatever the name they stand under.
    """

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.given = row
        self.row = {
            k: v for k, v in row.items() if v is not None and v == v and not (isinstance(v, str) and not v.strip())
        }
        self.used: set[str] = set()

    def name(self, names: tuple[str, ...]) -> str:
        """The first of these names that holds something; "" if none does."""
        return next((name for name in names if name in self.row), "")

    def take(self, *names: str) -> Any:
        """What the first of these names holds, which is used by that; None if none holds anything."""
        name = self.name(names)
        if name:
            self.used.add(name)
        return self.row.get(name)

    def text(self, *names: str) -> str:
        """The same for columns of text; "" if none holds anything.

        Raises:
            BadRow: It holds something else.
        """
        value = self.take(*names)
        if value is not None and not isinstance(value, str):
            raise BadRow(self.name(names), f"must be a string, not {type(value).__name__}")
        return value or ""


def read_row(row: Mapping[str, Any], turns: Turns = "last", keep_answers: bool = False) -> Reading:
    """Reads a row of any known form.

    Args:
        row: The row.
        turns: Which turns of a chat become targets; see `targets.examples_of`.
        keep_answers: Leave the text of an `answers` column as it is, whatever it says.

    Returns:
        Its examples, which are not checked yet.

    Raises:
        BadRow: The row is of no known form, or says something that is not read.
    """
    columns, notes = Columns(row), Counter[str]()
    if refused := next((name for name in REFUSED if columns.row.get(name)), ""):
        raise BadRow(refused, "is not read by this project, which is about text alone")
    plain = {name: _label(columns, name) for name in ("id", "category", "source")}
    if chat := _chat(columns, notes):
        examples = _from_chat(*chat, columns, plain, turns, notes)
    else:
        examples = [_from_columns(columns, plain, keep_answers, notes)]
    notes.update({f"unused/{name}": 1 for name in columns.row.keys() - columns.used})
    return Reading(examples, notes)


def _label(columns: Columns, name: str) -> str:
    """A column that is carried through: a text, or a number as text."""
    value = columns.row.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) in (str, int) or (type(value) is float and name != "id"):
        columns.used.add(name)
        return str(value)
    if name == "id" and value is not None:
        raise BadRow("id", f"must be a string or an integer, not {type(value).__name__}")
    return ""


def _listed(value: Any) -> list[Any] | None:
    """A list of objects, given as such or as JSON or Python text; None for anything else."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = read_whole(value)
        except ValueError:
            return None
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):  # BFCL's turns of turns
        value = value[0]
    if isinstance(value, list) and value and all(isinstance(item, str) and item.lstrip()[:1] == "{" for item in value):
        try:
            value = [read_whole(item) for item in value]
        except ValueError:
            return None
    return value if isinstance(value, list) and value and all(isinstance(item, dict) for item in value) else None


def _messages_in(value: Any) -> list[Any] | None:
    items = _listed(value)
    return items if items and any({"role", "from", "human", "user"} & item.keys() for item in items) else None


def _chat(columns: Columns, notes: Counter[str]) -> tuple[str, list[Message]] | None:
    """The column that a chat stands in, and its messages; None for rows of other forms."""
    for name in (*CHATS, "chat", "prompt", *QUERIES):
        if name not in columns.row:
            continue
        value = columns.row[name]
        if items := _messages_in(value):
            columns.used.add(name)
            notes["form/" + ("prompt and completion" if name == "prompt" else f"chat in '{name}'")] += 1
            messages = _unwrapped(read_messages(items, name))
            return name, messages + _completion(columns, name, messages)
        if name in CHATS and value != []:
            raise BadRow(name, f"must be a list of turns, not {type(value).__name__}")
    if isinstance(text := columns.row.get("chat"), str) and (items := glaive_chat(text)):
        columns.used.add("chat")
        notes["form/Glaive's chat text"] += 1
        return "chat", read_messages(items, "chat")
    if "instruction" in columns.row and "output" in columns.row:
        return _instruction(columns, notes)
    if (
        isinstance(columns.row.get("prompt"), str)
        and not columns.name(QUERIES)
        and columns.name(COMPLETIONS[: -len(ANSWERS) - 1])
    ):
        notes["form/prompt and completion"] += 1
        messages = _unwrapped([Message("user", columns.text("prompt"))])
        return "prompt", messages + _completion(columns, "prompt", messages)
    return None


def _instruction(columns: Columns, notes: Counter[str]) -> tuple[str, list[Message]]:
    """`instruction`, `input` and `output`: the first is a system's text where it offers tools and there is an input."""
    notes["form/instruction and output"] += 1
    instruction, given = columns.text("instruction"), columns.text("input")
    if given and split_system(instruction, Counter())[0]:
        messages = [Message("system", instruction), Message("user", given)]
    else:
        messages = [Message("user", "\n\n".join(filter(None, (instruction, given))))]
    earlier = [
        Message(role, text)
        for pair in _pairs(columns.take("history"))
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    messages = _unwrapped([*messages[:-1], *earlier, messages[-1]])
    return "output", messages + _completion(columns, "instruction", messages)


def _pairs(value: Any) -> list[Any]:
    value = read_whole(value) if isinstance(value, str) else value or []
    if not isinstance(value, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair) for pair in value
    ):
        raise BadRow("history", "must be a list of pairs of a request and an answer")
    return value


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
    if not (column := columns.name(COMPLETIONS)):
        return []
    value = columns.take(column)
    if column == "reward_model":  # verl's
        value = value.get("ground_truth") if isinstance(value, dict) else value
    items = _messages_in(value) or ([value] if isinstance(value, dict) and {"role", "from"} & value.keys() else None)
    if items is None:
        structured = {"tool_calls": value} if isinstance(value, list | dict) else {"content": value}
        items = [{"role": "assistant"} | structured]
    for message in messages:
        message.trained = False
    return read_messages(items, column)


def _from_chat(
    name: str, messages: list[Message], columns: Columns, plain: dict[str, str], which: Turns, notes: Counter[str]
) -> list[Example]:
    system = columns.text(*SYSTEMS)
    texts = [system] * bool(system) + [message.text for message in messages if message.role == "system"]
    split = [split_system(text, notes) for text in texts]
    brought = [tools for message in messages for tools in message.tools]
    found = [tool for tools, _ in split for tool in tools]
    offered = columns.take(*TOOLS)
    if offered is None and not brought and not found and name != "chat":  # Glaive's systems say when there are none
        raise BadRow(name, "there is neither a tools column nor a JSON list of tools in the system turn")
    try:
        tools = read_tools(offered, notes) if offered is not None else []
        tools = tools or [tool for value in brought for tool in read_tools(value, notes)] or read_tools(found, notes)
    except ValueError as error:
        raise BadRow("tools", str(error)) from error
    rest = "\n\n".join(filter(None, (text for _, text in split)))
    turns = [Turn("system", rest)] if rest else []
    turns += read_turns([m for m in messages if m.role not in ("system", "tools")], tools, name, notes)
    examples = examples_of(turns, dump(tools), which, name, plain | {"cot": columns.text(*THOUGHTS)}, notes)
    other = next(
        (c for c in ("answers", "completion", "chosen_response") if c in columns.row.keys() - columns.used), ""
    )
    if other:  # a second answer must be the same
        answers, _, _ = _answers(columns.take(other), tools, "", "", Counter())
        if as_calls(answers) != as_calls(examples[-1].answers):
            raise BadRow(other, f"is another answer than that in '{name}': keep one of them")
    return examples


def _from_columns(columns: Columns, plain: dict[str, str], keep_answers: bool, notes: Counter[str]) -> Example:
    notes["form/xLAM's columns"] += 1
    given = {"query": (*QUERIES, "instruction", "prompt"), "tools": TOOLS, "answers": (*ANSWERS, *COMPLETIONS)}
    found = {column: columns.name(names) for column, names in given.items()}
    if keep_answers and isinstance(columns.given.get("answers"), str):
        found["answers"] = "answers"  # an empty text, too, is for the refinement to judge
    for column, name in found.items():
        if not name:
            blank = any(columns.given.get(other) is not None for other in given[column])
            raise BadRow(
                column, "is empty" if blank else f"is missing; the row has {', '.join(columns.given) or 'nothing'}"
            )
    query = columns.text(found["query"])
    offered, answers = columns.take(found["tools"]), columns.take(found["answers"])
    tools = _read("tools", read_tools, offered, notes)
    tools_text = offered if isinstance(offered, str) and _same(offered, tools) else dump(tools)
    cot, response = columns.text(*THOUGHTS), columns.text("response") if found["answers"] != "response" else ""
    if keep_answers and (answers is None or isinstance(answers, str)):
        answers_text = answers or ""
    else:
        answers_text, cot, response = _answers(answers, tools, cot, response, notes)
    return Example(
        id=plain["id"],
        query=query,
        tools=tools_text,
        answers=answers_text,
        cot=cot if cot.strip() else "",
        response=response,
        history=_history(columns, tools, notes),
        category=plain["category"],
        source=plain["source"],
    )


def _answers(
    value: Any, tools: list[dict[str, Any]], cot: str, response: str, notes: Counter[str]
) -> tuple[str, str, str]:
    """The answers as JSON, and chain of thought and response with what their text says besides."""
    text = value if isinstance(value, str) else ""
    offered, nested, calls = frozenset(tool["name"] for tool in tools), not text, None
    try:
        calls = as_calls(text) if text else calls_of(value, offered)
    except ValueError as error:
        if not text:
            raise BadRow("answers", str(error)) from error
    if calls is None:
        try:  # JSON whose calls are written otherwise
            calls = calls_of(text, offered)
        except ValueError:
            said = _read("answers", read_said, text, tools)
            calls, cot = said.calls, "\n\n".join(filter(None, (cot, said.cot)))
            if calls is None:
                response = "\n\n".join(filter(None, (said.text, response)))
            elif said.text:
                notes["repair/words before the calls read as chain of thought"] += 1
                cot = "\n\n".join(filter(None, (cot, said.text)))
    cleaned = without_null_arguments(calls or [], tools, nested, notes)
    same = text and calls is not None and cleaned == calls and _same_calls(text, calls)
    return (text if same else dump_calls(cleaned)), cot, response


def _history(columns: Columns, tools: list[dict[str, Any]], notes: Counter[str]) -> str:
    """Earlier turns, with the text of a system's column in front; as they are where they are of our form already."""
    value, system = columns.take("history"), columns.text(*SYSTEMS)
    text = value if isinstance(value, str) else dump(value or [])
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow("history", f"is not readable JSON: {error}") from error
    if not isinstance(items, list):
        raise BadRow("history", f"must be a list of turns, not {type(items).__name__}")
    ours = all(
        isinstance(item, dict) and item.keys() == {"role", "content"} and all(isinstance(v, str) for v in item.values())
        for item in items
    )
    if not ours:
        pairs = all(isinstance(item, list) for item in items)
        flat = (
            [
                message
                for pair in _pairs(items)
                for message in ({"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]})
            ]
            if pairs
            else items
        )
        turns = read_turns(read_messages(flat, "history"), tools, "history", notes)
        items = [{"role": turn.role, "content": content(turn, "history")} for turn in turns]
    if system:
        if items and items[0]["role"] == "system":
            system, items = f"{system}\n\n{items[0]['content']}", items[1:]
        items = [{"role": "system", "content": system}, *items]
    return dump(items) if system or not ours else text


def _read(column: str, reader: Any, *arguments: Any) -> Any:
    try:
        return reader(*arguments)
    except ValueError as error:
        raise BadRow(column, str(error)) from error


def _same(text: str, value: Any) -> bool:
    """Whether a text is the JSON of a value."""
    try:
        return bool(json.loads(text) == value)
    except (ValueError, RecursionError):
        return False


def _same_calls(text: str, calls: Any) -> bool:
    try:
        return as_calls(text) == calls
    except ValueError:
        return False

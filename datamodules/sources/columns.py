"""The columns of a row, taken by what they hold, not by their presence."""

from collections.abc import Mapping
from typing import Any

from datamodules.example import BadRow
from datamodules.sources.values import read_whole

CHATS = ("messages", "conversations", "conversation", "input_messages", "dialogue", "dialog")
SYSTEMS = ("system", "system_prompt", "developer", "instructions", "systemInstruction", "system_instruction")
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
EXPECTED = ("expectedOutput", "expected_output")
"""What a model should have written, in data sets of experiments."""
WRITTEN = ("response", "choices", "output", "output_messages", "response_body")
"""What a model wrote; it may be wrong where the row also has one of `EXPECTED`."""
LOGGED = ("response_body", *EXPECTED, "outputs")
"""Where logs and traces have an answer; it may be any model's where the row also has one of the names above."""
COMPLETIONS = (
    *("completion", "chosen_response", "chosen", "preferred_output", "response", "choices", "output"),
    "output_messages",
    *(*ANSWERS, *LOGGED, "reward_model"),
)
THOUGHTS = ("cot", "think", "thinking", "thought", "reasoning", "reasoning_content")
_SETTINGS = ("on", "off", "true", "false", "enabled", "disabled", "auto", "minimal", "low", "medium", "high")
"""Texts that say whether, or how much, a model was to think, in a column that is called like a thought."""
_CHOICES = ("auto", "required")
"""What a request's `function_call` says of the answer that is to come; "none" is nothing already."""
NOTHING = ("", "null", "none", "nan")
"""Texts, in lower case, that a table exported as texts has in the place of nothing."""
_ITEMS = ("function_call", "function_call_output", "reasoning", "human", "ai")
"""Types of messages that have no role: OpenAI's items of responses, LangChain's messages."""
TOOLS_WITHIN = (
    *(("toolConfig", "tools"), ("metadata", "tools"), ("chat_template_kwargs", "tools")),  # of Bedrock, Nemotron, TRL
    *(("optional_params", "tools"), ("extra", "invocation_params", "tools")),  # of LiteLLM, LangSmith
    ("extra_info", "tools"),  # of verl
)
"""Where rows without a column of tools may have them: a column that is about more, and keys in it."""
REFUSED = ("images", "image", "audios", "audio", "videos", "video", "objects")

ALIASES: dict[str, tuple[str, ...]] = {
    "query": (*QUERIES, "instruction", "prompt", "input"),
    "tools": TOOLS,
    "answers": (*ANSWERS, *COMPLETIONS),
    "cot": THOUGHTS,
}
"""Names under which a row may have a column of an example, the usual one first."""


def name_in(row: Mapping[str, Any], column: str) -> str:
    """The name under which a row has a column of an example, for a message; the column itself where it has none."""
    columns = Columns(row)
    if column in columns.row or column not in (*ALIASES, "response", "history"):
        return column
    aliases = ALIASES.get(column, ())
    whole: tuple[str, ...] = () if column in row else ("chat", "prompt", "instruction")  # which may hold everything
    return columns.name(*((*aliases, *CHATS) if column == "tools" else (*CHATS, *aliases)), *whole) or column


class Columns:
    """The columns of a row that hold something, and which of them were used.

    Args:
        row: The row. None, NaN, "" and the texts of `NOTHING` are nothing, whatever the name they stand under, and so
            is a `function_call` that asks for one.
    """

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.given = row
        self.row = {
            name: value
            for name, value in row.items()
            if value is not None
            and value == value
            and not (isinstance(value, str) and value.strip().lower() in NOTHING)
            and not (name == "function_call" and value in _CHOICES)
        }
        self.used: set[str] = set()

    def name(self, *names: str) -> str:
        """The first of these names that holds something; "" if none does."""
        return next((name for name in names if name in self.row), "")

    def take(self, *names: str) -> Any:
        """The value of the first of these columns that holds any, now marked as used; None if none does."""
        name = self.name(*names)
        if name:
            self.used.add(name)
        return self.row.get(name)

    def within(self, column: str, *keys: str) -> Any:
        """The value at a path of keys inside a column, which is then marked as used; None if there is none."""
        value = self.row.get(column)
        for key in keys:
            value = as_object(value).get(key)
        if value is not None:
            self.used.add(column)
        return value

    def thoughts(self) -> tuple[str, ...]:
        """Names of columns for a chain of thought, without those that hold a setting (`reasoning: off`, options)."""
        return tuple(name for name in THOUGHTS if not _is_setting(self.row.get(name)))

    def text(self, *names: str) -> str:
        """The text of the first of these columns that holds any, now marked as used; "" if none does.

        Raises:
            BadRow: It holds something else.
        """
        value = self.take(*names)
        if value is not None and not isinstance(value, str):
            raise BadRow(self.name(*names), f"must be a string, not {type(value).__name__}")
        return value or ""

    def label(self, name: str) -> str:
        """A column that is carried through, now marked as used: a text, or a number as text; "" for anything else.

        Raises:
            BadRow: It is the id, and holds something else.
        """
        value = self.row.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) in (str, int) or (type(value) is float and name != "id"):
            self.used.add(name)
            return str(value)
        if name == "id" and value is not None:
            raise BadRow("id", f"must be a string or an integer, not {type(value).__name__}")
        return ""


def _is_setting(value: Any) -> bool:
    return isinstance(value, dict | bool) or (isinstance(value, str) and value.strip().lower() in _SETTINGS)


def as_object(value: Any) -> dict[str, Any]:
    """An object, given as such or as its JSON text; an empty one for anything else."""
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        try:
            value = read_whole(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any] | None:
    """A list of objects, given as such or as JSON or Python text; None for anything else."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = read_whole(value)
        except ValueError:
            return None
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):  # BFCL's turns of turns
        value = value[0]
    if isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):  # column by column
        if len({len(part) for part in value.values()}) > 1 and _is_message(value):
            raise ValueError(f"the lists {', '.join(map(repr, value))} of its turns are not of one length")
        value = [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=False)]
    if isinstance(value, list) and value and all(isinstance(item, str) and item.lstrip()[:1] == "{" for item in value):
        try:
            value = [read_whole(item) for item in value]
        except ValueError:
            return None
    return value if isinstance(value, list) and value and all(isinstance(item, dict) for item in value) else None


def messages_in(value: Any) -> list[Any] | None:
    """The messages that a column holds, as a list or as the text of one; None where it holds something else."""
    items = listed(value)
    return items if items and any(map(_is_message, items)) else None


def _is_message(item: dict[str, Any]) -> bool:
    return bool({"role", "from", "human", "user", "lc"} & item.keys()) or item.get("type") in _ITEMS


def turns_of_pairs(value: Any) -> list[dict[str, Any]]:
    """Earlier turns, of pairs of a request and an answer, or as they are; none for None.

    Raises:
        BadRow: It is something else.
    """
    value = read_whole(value) if isinstance(value, str) else value or []
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        return value
    if not isinstance(value, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair) for pair in value
    ):
        raise BadRow("history", "must be a list of pairs of a request and an answer")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in value for role, text in zip(roles, pair, strict=True)]

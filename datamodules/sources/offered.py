"""What a chat's row has on offer: its tools, wherever they stand, and what its system's texts say besides."""

from collections import Counter
from typing import Any

from datamodules.example import BadRow
from datamodules.sources.columns import TOOLS, TOOLS_WITHIN, Columns, listed
from datamodules.sources.messages import read_system
from datamodules.sources.parts import Message
from datamodules.sources.prompts import GLAIVE, NO_TOOLS, split_system
from datamodules.sources.targets import dump
from datamodules.sources.tools import each_once, read_tools, refuse_others

_TEMPLATED = [("chat_template_kwargs", key) for key in ("custom_instructions", "xml_tools", "python_tools")]
"""What SmolTalk2 hands to its chat template: texts, those about tools with words around them."""


def read_offered(
    name: str, leading: list[Message], messages: list[Message], columns: Columns, notes: Counter[str]
) -> tuple[list[dict[str, Any]], str]:
    """Reads the tools on offer, of the column, the messages or the system's texts, and what else these texts say.

    Args:
        name: The column that the chat stands in.
        leading: The messages before the first turn, the system's.
        messages: All messages, any of which may bring tools.
        columns: The row.
        notes: Counts what was read otherwise than it is written.

    Raises:
        BadRow: The tools cannot be read, or nothing says which are on offer.
    """
    texts = [read_system(columns), *(_written(columns.within(*path)) for path in _TEMPLATED)]
    texts = list(filter(None, [*texts, *(message.text for message in leading if message.role == "system")]))
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


def _written(value: Any) -> str:
    """A value, or one a line, as a system's text has them."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return "\n".join(part if isinstance(part, str) else dump(part) for part in values)

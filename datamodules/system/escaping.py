"""Text from rows and models, escaped for a terminal and for Markdown; tables of it."""

import html
import re
from collections.abc import Iterable, Sequence

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # all but tab and line feed; ESC and CSI begin a terminal's commands
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # they turn the order of what is read
    "\ud800-\udfff]"  # half a pair of surrogates cannot be printed
)
_ENTITIES = str.maketrans({c: f"&#{ord(c)};" for c in "|\\`*_{}[]()!~#$:@"})
_LINKED = re.compile(r"(?<=www)\.", re.IGNORECASE)


def visible(text: str) -> str:
    r"""A text that a terminal shows and does not obey: control characters are written as `\x1b` and the like."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def markdown_text(text: str, max_chars: int) -> str:
    """A text that Markdown shows as it is: no tag, link, image, table or emphasis comes of it.

    What begins a block is left alone: put it after a text of ours, or into a cell.

    Args:
        text: Any text; its line feeds stay.
        max_chars: A longer text is cut and ends in an ellipsis.
    """
    cut = text if len(text) <= max_chars else text[: max_chars - 1] + "…"
    return _LINKED.sub("&#46;", html.escape(visible(cut), quote=False).translate(_ENTITIES))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already, without a line feed at its end."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])

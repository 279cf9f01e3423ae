"""The forms that an answer with calls is written in, with their strict reader: Python, or JSON objects in a frame."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rewards.calls import JSON, Call, as_calls, call_from, check_json_depth
from rewards.render import escaped_json, render_calls


@dataclass(frozen=True)
class CallFrame:
    """Calls as JSON objects `{"name": ..., key: {...}}` with fixed text around and between them.

    Attributes:
        head: What stands before the first object.
        key: The name that the arguments have.
        separator: What stands between two objects.
        tail: What stands after the last one.
    """

    head: str
    key: str
    separator: str
    tail: str

    def write(self, calls: Sequence[Call]) -> str:
        """The calls in this form; `[]` where there are none."""
        if not calls:
            return "[]"
        objects = [escaped_json({"name": call.name, self.key: call.arguments}) for call in calls]
        return self.head + self.separator.join(objects) + self.tail

    def read(self, text: str) -> list[Call]:
        """The calls of a text of this form; white space around the fixed parts may be any.

        The JSON decoder itself finds the end of each object, so that nothing inside a string ends one.

        Raises:
            ValueError: The text is not of this form.
        """
        if re.fullmatch(r"\[\s*\]", text):
            return []
        check_json_depth(text)
        at, calls = _after(text, self.head, 0), []
        while True:
            item, at = JSON.raw_decode(text, at)
            calls.append(call_from(self._renamed(item)))
            if re.compile(_flexible(self.tail) + r"\s*\Z").match(text, at):
                return calls
            at = _after(text, self.separator, at)

    def _renamed(self, item: Any) -> Any:
        if isinstance(item, dict) and item.keys() == {"name", self.key}:
            return {"name": item["name"], "arguments": item[self.key]}
        raise ValueError(f"a call must be an object with exactly the keys 'name' and {self.key!r}")


FRAMES = {
    "json": CallFrame("[", "arguments", ", ", "]"),
    "hermes": CallFrame("<tool_call>\n", "arguments", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>"),
}
"""The frames that have a name of their own, beside the "python" form."""


def write_calls(calls: Any, frame: CallFrame | None = None) -> str:
    """Calls as the text of an answer: a Python list, or JSON objects in a frame.

    Args:
        calls: Anything `as_calls` accepts.
        frame: The frame; the form "python" of `render_calls` when None.

    Raises:
        ValueError: The calls cannot be written.
    """
    return render_calls(calls) if frame is None else frame.write(as_calls(calls))


def _flexible(part: str) -> str:
    return r"\s*+" + r"\s*+".join(map(re.escape, part.split()))


def _after(text: str, part: str, at: int) -> int:
    found = re.compile(_flexible(part) + r"\s*+").match(text, at)
    if found is None:
        raise ValueError(f"{part.strip()!r} is missing at {text[at : at + 40]!r}")
    return found.end()

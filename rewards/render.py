"""Writes calls as text."""

import json
import keyword
import re
import unicodedata
from typing import Any

from rewards.calls import as_calls


def is_python_name(name: str) -> bool:
    """Whether `name` can be written in Python source and be read back unchanged (Python NFKC-normalises names)."""
    return name.isidentifier() and not keyword.iskeyword(name) and unicodedata.normalize("NFKC", name) == name


def render_calls(calls: Any) -> str:
    """Writes calls as the text that the parser reads back as the same calls.

    Args:
        calls: Anything `as_calls` accepts.

    Returns:
        A Python list of calls, `[f(a=1), g(b='x')]`, where all names are identifiers; else a JSON list.

    Raises:
        ValueError: The calls cannot be written, for instance because of a NaN.
    """
    calls = as_calls(calls)
    parts = [part for call in calls for part in [*call.name.split("."), *call.arguments]]
    if all(map(is_python_name, parts)):
        written = (f"{call.name}({', '.join(f'{k}={v!r}' for k, v in call.arguments.items())})" for call in calls)
        # Only a string can hold a tag; the escape keeps it from being counted as one around the reasoning.
        return re.sub("<(?=/?think>)", r"\\x3c", f"[{', '.join(written)}]")
    return escaped_json([{"name": c.name, "arguments": c.arguments} for c in calls])


def escaped_json(value: Any) -> str:
    """JSON in which no string holds a think tag or a surrogate as it is.

    Raises:
        ValueError: A string holds two surrogates in a row.
    """
    text = json.dumps(value, ensure_ascii=False)
    if re.search("[\ud800-\udbff][\udc00-\udfff]", text):
        raise ValueError("a string holds two surrogates in a row, which JSON reads back as one character")
    text = re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)
    return re.sub("<(?=/?think>)", r"\\u003c", text)

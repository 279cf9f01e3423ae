"""What tools gave back, where it stands in a text: between tags, or after ReAct's label."""

import re

from datamodules.sources.marks import blocks, tags
from datamodules.sources.values import skip_space

_OPENING, _CLOSING = tags(
    *("tool_response", "tool_result", "tool_results", "function_response", "function_result", "function_results"),
    *("observation", "obs"),
)
_OPENING = re.compile(rf"{_OPENING.pattern}|\[TOOL_RESULTS\]|<start_function_response>")
_CLOSING |= {"[TOOL_RESULTS]": "[/TOOL_RESULTS]", "<start_function_response>": "<end_function_response>"}
LABEL = re.compile(r"\s*Observation:\s*")
"""Before what a tool gave back, where it follows calls; elsewhere a user's text may begin so, too."""


def split_results(text: str) -> tuple[list[str], str]:
    """The results at the beginning of a text, one after the other, and what stands after them."""
    results, at = [], 0
    for _, start, content, end, after in blocks(text, _OPENING, _CLOSING):
        if start != skip_space(text, at):
            break
        results.append(text[content:end].strip())
        at = after
    return results, text[at:].strip() if results else text


def holds_result(text: str) -> bool:
    """Whether there is a result between tags in a text."""
    return next(blocks(text, _OPENING, _CLOSING), None) is not None

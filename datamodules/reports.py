"""Reports on the rows that were read: counts by form and kind, and the same in words."""

from collections import Counter
from collections.abc import Mapping

from datamodules.example import Example
from datamodules.system.escaping import visible
from rewards import as_calls

_TITLES = {
    "form": "rows read as",
    "answer": "answers",
    "cot": "chain of thought",
    "repair": "repaired",
    "left out": "left out",
    "ambiguous": "AMBIGUOUS",
    "unused": "columns not used, rows",
}


def count_example(example: Example, counts: Counter[str]) -> None:
    """Count an example by the number of its calls, and by whether it has a chain of thought."""
    if not example.answers:
        kind = "not given"
    elif calls := as_calls(example.answers):
        kind = "of several calls" if len(calls) > 1 else "of one call"
    else:
        kind = "in words" if example.response else "[]"
    counts[f"answer/{kind}"] += 1
    counts[f"cot/{'with' if example.cot else 'without'}"] += 1


def describe(counts: Mapping[str, int]) -> list[str]:
    """The counts in words, a line of each kind.

    Args:
        counts: Numbers by `kind/name`: what `sources` notes of rows, and what `count_example` counts.
    """
    lines = []
    for kind, title in _TITLES.items():
        found = {name.partition("/")[2]: count for name, count in counts.items() if name.partition("/")[0] == kind}
        if found:
            ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
            lines.append(f"{title}: " + ", ".join(f"{_shown(name)} {count:,}" for name, count in ordered))
    return lines


def _shown(name: str) -> str:
    """A name in one line: columns are named by the rows."""
    return " ".join(visible(name).split())

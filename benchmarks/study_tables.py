"""The study as Markdown: tables of claims, of arms, and of BFCL beside FunctionGemma's row, in the page's words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from datamodules.system.escaping import markdown_table

FUNCTION_GEMMA = {
    "simple": 61.6,
    "multiple": 63.5,
    "parallel": 39.0,
    "parallel_multiple": 29.5,
    "live_simple": 36.2,
    "live_multiple": 25.7,
    "live_parallel": 22.9,
    "live_parallel_multiple": 20.8,
    "live_relevance": 61.1,
    "irrelevance": 73.7,
}
"""Percent by category of BFCL, as its model card has them (270M parameters, tuned by Google from the same base)."""
SCALES = ("real", "small")
HELD = {True: "yes", False: "no, the opposite", "undecided": "undecided"}
WORDS = Path(__file__).with_name("study_page.md")


def claims_table(claims: Sequence[Mapping[str, Any]]) -> str:
    """A line for each claim."""
    rows = [
        [
            entry["claim"],
            entry["paper"],
            f"{entry['ours']:+.3g} {span(entry['interval'])}",
            span(entry["prediction"]),
            f"{entry['seeds']} x {entry['rows']}",
            HELD[entry["held"]],
        ]
        for entry in claims
    ]
    return markdown_table(["claim", "paper", "ours, 95 %", "new seed", "seeds x rows", "holds"], rows) + "\n"


def arms_table(arms: Sequence[Mapping[str, Any]], scale: str) -> str:
    """A line for each arm of a scale, a column for each metric."""
    chosen = [entry for entry in arms if entry["scale"] == scale]
    measures = list(dict.fromkeys(entry["measure"] for entry in chosen))
    cells = {(entry["arm"], entry["measure"]): f"{entry['mean']:.3g} {span(entry['interval'])}" for entry in chosen}
    seeds = {entry["arm"]: str(entry["seeds"]) for entry in chosen}
    rows = [[arm, seeds[arm], *(cells.get((arm, measure), "") for measure in measures)] for arm in seeds]
    return markdown_table(["arm", "seeds", *(measure.replace("_", " ") for measure in measures)], rows) + "\n"


def bfcl_table(bfcl: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Percent right by category, a line for each arm, and FunctionGemma's.

    Args:
        bfcl: Of each arm and category the mean and both ends of its interval, as shares.
    """
    rows = [
        [arm, *(f"{100 * of[c][0]:.1f} ({100 * of[c][1]:.0f} to {100 * of[c][2]:.0f})" for c in FUNCTION_GEMMA)]
        for arm, of in bfcl.items()
    ]
    published = ["FunctionGemma", *(f"{value:.1f}" for value in FUNCTION_GEMMA.values())]
    return markdown_table(["arm", *(name.replace("_", " ") for name in FUNCTION_GEMMA)], [*rows, published]) + "\n"


def span(ends: Sequence[float] | None) -> str:
    """An interval; nothing of None."""
    return f"({ends[0]:+.3g} to {ends[1]:+.3g})" if ends else ""


def page(study: Mapping[str, Any]) -> str:
    """The page of a study: the words of `study_page.md` with the tables in their places."""
    tables = {"bfcl": bfcl_table(study["bfcl"])}
    for scale in SCALES:
        claims = [entry for entry in study["claims"] if entry["scale"] == scale]
        chance = f"By chance alone at most about {0.05 * len(claims):.1f} of these {len(claims)}"
        tables[f"claims_{scale}"] = f"{claims_table(claims)}\n{chance} would look decided on average.\n"
        tables[f"arms_{scale}"] = arms_table(study["arms"], scale)
    return Template(WORDS.read_text(encoding="utf-8")).substitute(tables)

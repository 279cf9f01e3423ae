"""The table that a BFCL evaluation prints: a row per category, and the columns of the papers beside their own."""

from collections.abc import Mapping

from datamodules.bfcl.package import BFCLPackage
from lightning_modules.bfcl.scores import Score

PAPERS = (
    ("FunRL, Qwen2.5-Coder-7B (2508.05118v1)", 90.40, 81.64, 86.02),
    ("EGPO, Qwen3-4B (2508.05118v4)", 88.50, 81.34, 84.92),
    ("BalanceSFT, Qwen2.5-Coder-7B (2505.20192v3)", 88.29, 79.70, 84.00),
    ("FunReason, Qwen2.5-Coder-7B (2505.20192v1)", 87.00, 80.31, 83.66),
    ("GPT-4o-2024-11-20 (2505.20192v1)", 86.81, 78.85, 82.83),
    ("FunRL, Llama-3.2-3B (2508.05118v1)", 79.75, 74.77, 77.26),
    ("Qwen2.5-Coder-7B-Instruct (2505.20192v1)", 84.08, 69.78, 76.93),
)
"""Non-Live AST, Live and their mean as published, in percent, on BFCL v3."""
COLUMNS = {"non_live_ast": "Non-Live AST", "live": "Live", "mean": "Mean"}
PRINTED_WITHOUT_ALL = ("non_live", "live")
"""Summaries that the official tool prints although categories are missing; it prints N/A for others."""


def percent(name: str, score: Score) -> str:
    """A score in percent as the official tool writes it, without the sign."""
    return f"{score.accuracy * 100:.2f}" if score.known or name in PRINTED_WITHOUT_ALL else "N/A"


def bfcl_table(
    scores: Mapping[str, Score], package: BFCLPackage, sizes: Mapping[str, int], model: str, samples: int
) -> str:
    """The scores as a text table.

    Args:
        scores: What `BFCLAccuracy.compute` returns.
        package: Where the rows are from.
        sizes: Rows of each category.
        model: What was evaluated.
        samples: Answers per row.
    """
    lines = [
        f"BFCL v{package.version} (bfcl-eval {package.release}), {model}, {samples} sample{'s' * (samples > 1)} a row"
    ]
    lines += [f"{'':<48}{'accuracy':>16}{'rows':>20}"]
    partial = False
    for category, size in sizes.items():
        rows = scores[category].count // samples if scores[category].known else 0
        partial = partial or rows < size
        if rows:
            answered = f"{rows:,}" if rows == size else f"first {rows:,} of {size:,}"
            lines.append(f"{category:<48}{percent(category, scores[category]):>16}{answered:>20}")
    lines += ["", f"{'':<48}" + "".join(f"{column:>16}" for column in COLUMNS.values())]
    ours = [percent(name, scores[name]) for name in COLUMNS]
    lines.append(f"{'this model' + ' (PARTIAL)' * partial:<48}" + "".join(f"{cell:>16}" for cell in ours))
    lines += [f"{name:<48}" + "".join(f"{cell:>16.2f}" for cell in cells) for name, *cells in PAPERS]
    if partial:
        lines.append("PARTIAL: rows are missing. A category without any counts as 0 in Live, as it does officially.")
    if package.version != 3:
        lines.append(
            "The papers report BFCL v3, whose Live counts irrelevance and relevance: not comparable with this."
        )
    return "\n".join(lines)

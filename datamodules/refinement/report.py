"""Counts of a refinement by stage and outcome, and its report as Markdown and JSON."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from datamodules.refinement.judging import Outcome
from datamodules.system.escaping import markdown_table, markdown_text
from datamodules.system.redaction import redact

STAGES = ("response", "query", "cot", "call", "format", "evaluate", "ast", "write_cot", "row")
SHOWN = 3  # examples of each stage in the report
MAX_TEXT = 300  # characters of a text in the report
_TOTALS = ("rows", "kept", "rejected", "statements", "regenerated", "undecided", "errors", "replies")
ERROR = "error"  # the fault of a row that ended in an unexpected exception
_COUNTS = ("reached", "passed", "dropped")


@dataclass
class Tally:
    """Counts of outcomes.

    Attributes:
        totals: `rows`, `kept`, `rejected`, `statements` (kept without a call), `regenerated` (kept with another answer
            than they had), `undecided` (rejected for want of a judgement), `errors` (rejected by an unexpected
            exception) and `replies` (read from judges).
        stages: For each stage `reached`, `passed` at the first check, and `dropped` rows.
        faults: How often each fault was the first one named.
    """

    totals: Counter[str] = field(default_factory=Counter)
    stages: dict[str, Counter[str]] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome) -> None:
        """Count one row."""
        verdicts, last = outcome.verdicts, outcome.verdicts[-1]
        self.totals["rows"] += 1
        self.totals["kept"] += outcome.kept
        self.totals["rejected"] += not outcome.kept
        self.totals["statements"] += outcome.kept and outcome.example.answers == "[]"
        self.totals["regenerated"] += outcome.kept and any(verdict.correction for verdict in verdicts)
        self.totals["undecided"] += last.passed is None
        self.totals["errors"] += last.fault == ERROR
        self.totals["replies"] += sum(verdict.replies for verdict in verdicts)
        firsts = {verdict.stage: verdict for verdict in reversed(verdicts)}
        for stage, verdict in firsts.items():
            counts = self.stages.setdefault(stage, Counter())
            counts["reached"] += 1
            counts["passed"] += verdict.passed is True
            counts["dropped"] += last.stage == stage and not outcome.kept
        self.faults.update([verdict.fault for verdict in verdicts if verdict.fault][:1])

    def merge(self, counts: Mapping[str, Any]) -> None:
        """Add the counts of other rows: the attributes of their tally."""
        self.totals.update(counts["totals"])
        self.faults.update(counts["faults"])
        for stage, values in counts["stages"].items():
            self.stages.setdefault(stage, Counter()).update(values)

    def as_dict(self) -> dict[str, Any]:
        """The counts in a fixed order, for `report.json`."""
        stages = {s: {name: self.stages[s][name] for name in _COUNTS} for s in in_order(self.stages)}
        faults = {name: self.faults[name] for name in sorted(self.faults)}
        return {name: self.totals[name] for name in _TOTALS} | {"stages": stages, "faults": faults}

    def metrics(self) -> dict[str, int]:
        """The counts under TensorBoard's names."""
        metrics = {f"refine/{name}": self.totals[name] for name in _TOTALS}
        for stage, counts in self.stages.items():
            metrics |= {f"refine_{stage}/{name}": counts[name] for name in _COUNTS}
        return metrics


def in_order(stages: Collection[str]) -> list[str]:
    """Stages in the order in which a row gets to them; those of a recipe of one's own before the last check."""
    own = [stage for stage in stages if stage not in STAGES]
    return [stage for stage in (*STAGES[:-1], *sorted(own), STAGES[-1]) if stage in stages]


def rejection(number: int, outcome: Outcome) -> dict[str, Any]:
    """One line of `rejected.jsonl`: the row, the stage that rejected it and why, and the judges' words."""
    last = outcome.verdicts[-1]
    row = {"content": outcome.content} if outcome.content is not None else asdict(outcome.example)
    return {
        "row": number,
        "stage": last.stage,
        "verdict": "undecided" if last.passed is None else "rejected",
        "fault": last.fault,
        "reason": redact(last.reason),
        "judge": redact(last.words),
        "tried": [verdict.correction for verdict in outcome.verdicts if verdict.correction],
    } | row


class Examples:
    """The first rejected and regenerated rows of each stage, as Markdown."""

    def __init__(self) -> None:
        self.lines: dict[str, list[str]] = {}

    def add(self, number: int, outcome: Outcome) -> None:
        """Take a row, if its stage still needs one."""
        refused = next((verdict for verdict in outcome.verdicts if verdict.fault or verdict.passed is None), None)
        lines = self.lines.setdefault(refused.stage, []) if refused else []
        if refused is None or len(lines) >= SHOWN:
            return
        answer = f"<code>{_cut(outcome.example.answers)}</code>" if outcome.kept else "rejected"
        reason, words = _cut(redact(refused.reason)), _cut(redact(refused.words))
        lines.append(
            f"- row {number} ({_cut(outcome.example.id)}): {_cut(outcome.example.query)}\n"
            f"  - Reason: {reason} Judge: {words or 'not asked'}\n  - {answer}"
        )

    def merge(self, lines: Mapping[str, list[str]]) -> None:
        """Take those of later rows, where a stage still needs them."""
        for stage, found in lines.items():
            self.lines[stage] = [*self.lines.get(stage, []), *found][:SHOWN]


def markdown(counts: dict[str, Any], planted: dict[str, dict[str, float | None]], examples: Examples) -> str:
    """The report to read: totals, stages, planted defects where there are some, examples."""
    totals = [[name, f"{counts[name]:,}"] for name in _TOTALS]
    stages = [[stage, *(f"{values[name]:,}" for name in _COUNTS)] for stage, values in counts["stages"].items()]
    parts = [
        "# Refinement",
        markdown_table(["", "rows"], totals),
        "## Stages",
        markdown_table(["stage", *_COUNTS], stages),
    ]
    if planted:
        head = ["defect", *next(iter(planted.values()))]
        rows = [[kind, *map(str, metrics.values())] for kind, metrics in planted.items()]
        parts += ["## Planted defects", markdown_table(head, rows)]
    for stage in in_order(examples.lines):
        parts += [f"## Refused by {stage}", "\n".join(examples.lines[stage])]
    return "\n\n".join(parts) + "\n"


def _cut(text: str) -> str:
    return markdown_text(" ".join(text.split()), MAX_TEXT)

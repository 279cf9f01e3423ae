"""The shipped corpus with defects planted in it, and how many of them a refinement found.

Each kind of defect belongs to one stage of the refinement and to the fault that the stage names. A planted row is
consistent but for its defect: where function or value are wrong, the chain of thought leads to just that call.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from datamodules.refinement.judging import Outcome
from datamodules.toolbox.catalogue import FUNCTIONS, Function, sample_arguments
from datamodules.toolbox.rows import WORDINGS, cot_text, make_corpus, request_text
from datamodules.toolbox.values import sample_value
from rewards import Call, as_calls, as_tools, dump_calls, match_calls, parse_calls, render_calls

Row = dict[str, Any]
_FUNCTIONS = {function.name: function for function in FUNCTIONS}
_SEEN = [function for function in FUNCTIONS if not function.unseen]


@dataclass(frozen=True)
class Corpus:
    """Rows of the shipped corpus, a share of them with a planted defect.

    Attributes:
        rows: How many.
        seed: Of rows and defects.
        share: Of rows that are given a defect; the kinds take turns. Only rows with calls can have one.
        split: Of the corpus; see `datamodules.toolbox.rows`.

    Raises:
        ValueError: There are no rows, or the share is none.
    """

    rows: int = 2000
    seed: int = 0
    share: float = 0.3
    split: str = "train"

    def __post_init__(self) -> None:
        if self.rows < 1 or not 0 <= self.share <= 1:
            raise ValueError(
                f"corpus.rows must be at least 1 and corpus.share from 0 to 1, not {self.rows} and {self.share}"
            )


def corrupted_rows(corpus: Corpus) -> Iterator[tuple[Row, Row, str]]:
    """Make the rows.

    Yields:
        The row to refine, the row as it was made, and the kind of defect planted in it ("" for none).
    """
    rng = random.Random(f"corruption-{corpus.seed}")
    kinds, turn = list(KINDS), 0
    rows = make_corpus(corpus.split, corpus.rows, corpus.seed)
    calling = sum(row["answers"] != "[]" for row in rows) / len(rows)
    for row in rows:
        kind, planted = "", row
        if row["answers"] != "[]" and rng.random() < corpus.share / calling:
            kind = kinds[turn % len(kinds)]
            changed = KINDS[kind](row, as_calls(row["answers"]), rng)
            if changed is None:  # nothing in this row can be spoiled like that; the next one's turn
                kind = ""
            else:
                turn, planted = turn + 1, row | changed
        yield planted, row, kind


def _rewritten(row: Row, calls: list[Call], rng: random.Random, tools: list[Any] | None = None) -> Row:
    """Other calls, and a chain of thought that leads to them."""
    tools = tools or as_tools(row["tools"])
    offered = [_FUNCTIONS[tool["name"]] for tool in tools]
    return {
        "tools": json.dumps(tools),
        "answers": dump_calls(calls),
        "cot": cot_text(offered, [_FUNCTIONS[call.name] for call in calls], calls, rng),
    }


def _changed(calls: list[Call], at: int, **changes: Any) -> list[Call]:
    """The calls, with these changes of one of them."""
    return [*calls[:at], replace(calls[at], **changes), *calls[at + 1 :]]


def _other_function(row: Row, calls: list[Call], rng: random.Random) -> Function:
    """A function that the row does not call: one that it offers, or one of the catalogue."""
    called = {call.name for call in calls}
    offered = [_FUNCTIONS[tool["name"]] for tool in as_tools(row["tools"]) if tool["name"] not in called]
    return rng.choice(offered or [function for function in _SEEN if function.name not in called])


def _unanswerable_query(row: Row, calls: list[Call], rng: random.Random) -> Row:
    """The tools that the request needs are not on offer, or the request is for something else altogether."""
    offered = {tool["name"] for tool in as_tools(row["tools"])} | {call.name for call in calls}
    others = [function for function in _SEEN if function.name not in offered]
    if rng.random() < 0.5:
        tools = [function.tool() for function in rng.sample(others, rng.randint(1, 3))]
        return {"tools": json.dumps(tools)}
    function = rng.choice([function for function in others if function.parameters])
    request = request_text(function, sample_arguments(function, rng, held_out=False), rng)
    query = rng.choice(WORDINGS[0]).format(request)
    return {"query": query[0].upper() + query[1:]}


def _cot_leads_elsewhere(row: Row, calls: list[Call], rng: random.Random) -> Row | None:
    """The chain of thought arrives at another function or at other values, or stops before it arrives."""
    way = rng.choice(("function", "values", "stops"))
    if way == "stops":
        lines = row["cot"].splitlines()
        return {"cot": "\n".join(line for line in lines if not line.startswith(calls[0].name + ": "))}
    if way == "function":
        other = _other_function(row, calls, rng)
        elsewhere = [*calls[1:], Call(other.name, sample_arguments(other, rng, held_out=False))]
        return {"cot": _rewritten(row, elsewhere, rng)["cot"]}
    wrong = _with_wrong_value(row, calls, rng)
    return wrong and {"cot": _rewritten(row, wrong, rng)["cot"]}


def _wrong_tool(row: Row, calls: list[Call], rng: random.Random) -> Row:
    """One call is of another function, which is on offer and is given arguments that fit it."""
    other = _other_function(row, calls, rng)
    tools = as_tools(row["tools"])
    if other.name not in {tool["name"] for tool in tools}:
        tools.insert(rng.randint(0, len(tools)), other.tool())
    at = rng.randrange(len(calls))
    wrong = _changed(calls, at, name=other.name, arguments=sample_arguments(other, rng, held_out=False))
    return _rewritten(row, wrong, rng, tools)


def _wrong_value(row: Row, calls: list[Call], rng: random.Random) -> Row | None:
    """One argument has a value that the request does not give."""
    wrong = _with_wrong_value(row, calls, rng)
    return wrong and _rewritten(row, wrong, rng)


def _with_wrong_value(row: Row, calls: list[Call], rng: random.Random) -> list[Call] | None:
    at = rng.randrange(len(calls))
    declared = _FUNCTIONS[calls[at].name].parameters
    choices = [p for p in declared if p.kind != "flag" and (p.name in calls[at].arguments or p.default is not None)]
    if not choices:
        return None
    parameter = rng.choice(choices)
    for _ in range(20):
        value = sample_value(parameter.kind, parameter.options, rng, held_out=False)
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if str(value) != parameter.default and not any(str(part).lower() in row["query"].lower() for part in parts):
            break
    else:
        return None
    return _changed(calls, at, arguments=calls[at].arguments | {parameter.name: value})


def _wrong_type(row: Row, calls: list[Call], rng: random.Random) -> Row | None:
    """A number, a flag or a list is written as a string; the chain of thought has it right."""
    places = [
        (at, name)
        for at, call in enumerate(calls)
        for name, v in call.arguments.items()
        if not isinstance(v, str | dict)
    ]
    if not places:
        return None
    at, name = rng.choice(places)
    value = calls[at].arguments[name]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return {"answers": dump_calls(_changed(calls, at, arguments=calls[at].arguments | {name: text}))}


def _broken_format(row: Row, calls: list[Call], rng: random.Random) -> Row:
    """The answer is not what a parser reads: one of the ways in which models and people get it wrong."""
    unreadable = [text for text in (write(calls) for write in _BREAKS) if parse_calls(text)[0] is None]
    return {"answers": rng.choice(unreadable)}


def _unquoted(calls: list[Call]) -> str:
    written = (f"{c.name}({', '.join(f'{k}={v}' for k, v in c.arguments.items())})" for c in calls)
    return f"[{', '.join(written)}]"


def _quoted_names(calls: list[Call]) -> str:
    written = (f"{c.name}({', '.join(f'{k!r}={v!r}' for k, v in c.arguments.items())})" for c in calls)
    return f"[{', '.join(written)}]"


_BREAKS: tuple[Callable[[list[Call]], str], ...] = (
    lambda calls: render_calls(calls)[:-1],  # the list is never closed
    lambda calls: render_calls(calls)[:-2],  # nor is the last call
    lambda calls: f"```json\n{dump_calls(calls)}\n```",
    lambda calls: f"Here is the call: {render_calls(calls)}",
    lambda calls: dump_calls(calls).replace('"arguments":', '"parameters":'),
    lambda calls: str(json.loads(dump_calls(calls))),  # Python's quotes in JSON's place
    lambda calls: json.dumps(dump_calls(calls)),  # JSON inside a JSON string
    _unquoted,
    _quoted_names,
)

KINDS: dict[str, Callable[[Row, list[Call], random.Random], Row | None]] = {
    "unanswerable_query": _unanswerable_query,
    "cot_leads_elsewhere": _cot_leads_elsewhere,
    "wrong_tool": _wrong_tool,
    "wrong_value": _wrong_value,
    "wrong_type": _wrong_type,
    "broken_format": _broken_format,
}
"""Kinds of defect: what each changes in a row and its calls; None where the row has nothing to spoil."""

FAULTS = dict(zip(KINDS, ("query", "cot", "function", "parameter", "type", "format"), strict=True))
"""The fault that a stage names for each kind."""


def planted_metrics(
    outcomes: Iterable[Outcome], truths: Iterable[tuple[Row, Row, str]]
) -> dict[str, dict[str, float | None]]:
    """Precision and recall for each kind of planted defect.

    A row counts as found if the first stage that refused it named the fault of its defect, and the row was then
    rejected or restored to the calls that it was made with. Precision is of the rows for which that fault was named
    first, recall of the rows in which the defect was planted.

    Args:
        outcomes: In the order of the rows.
        truths: From `corrupted_rows`.

    Returns:
        For each kind `planted`, `named`, `found`, `precision` and `recall`; None for a ratio of nothing.
    """
    planted, named, found = Counter[str](), Counter[str](), Counter[str]()
    for outcome, (_, row, kind) in zip(outcomes, truths, strict=True):
        fault = next((verdict.fault for verdict in outcome.verdicts if verdict.fault), "")
        planted[kind] += 1
        named[fault] += 1
        restored = match_calls(outcome.example.answers, row["answers"], row["tools"]).matched
        found[kind] += fault == FAULTS.get(kind) and (restored or not outcome.kept)
    return {
        kind: {
            "planted": planted[kind],
            "named": named[fault],
            "found": found[kind],
            "precision": _ratio(found[kind], named[fault]),
            "recall": _ratio(found[kind], planted[kind]),
        }
        for kind, fault in FAULTS.items()
    }


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None

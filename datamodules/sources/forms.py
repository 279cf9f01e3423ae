"""A row of any form, read into examples."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datamodules.example import BadRow, Example
from datamodules.sources.chats import find_chat, read_chat
from datamodules.sources.columns import ANSWERS, EXPECTED, REFUSED, WRITTEN, Columns
from datamodules.sources.flat import read_columns
from datamodules.sources.messages import ENDS, cut_off
from datamodules.sources.served import opened
from datamodules.sources.targets import Turns
from rewards import Call, as_calls


@dataclass
class Reading:
    """The result of reading a row.

    Attributes:
        examples: One, or more with `turns: every`.
        notes: Counts for the report: `form/...`, `repair/...`, `left out/...`, `unused/...`.
    """

    examples: list[Example]
    notes: Counter[str] = field(default_factory=Counter)


def read_row(
    row: Mapping[str, Any], turns: Turns = "last", keep_answers: bool = False, unanswered: bool = False
) -> Reading:
    """Reads a row of any known form.

    Args:
        row: The row.
        turns: Which turns of a chat become targets; see `targets.examples_of`.
        keep_answers: Leave the text of an `answers` column as it is, whatever it says.
        unanswered: Take a row without an answer, and a chat that ends with a request; `answers` of its example is "".

    Returns:
        Its examples, which are not checked yet.

    Raises:
        BadRow: The row is of no known form, or says something that is not read.
    """
    columns, notes = Columns(opened(row)), Counter[str]()
    if refused := next((name for name in REFUSED if columns.row.get(name)), ""):
        raise BadRow(refused, "is not read by this project, which is about text alone")
    marks = {name: str(columns.row.get(name)).lower() for name in ("label", "kto_tag")}  # of KTO
    if not_to_give := next((name for name, mark in marks.items() if mark == "false"), ""):
        raise BadRow(not_to_give, "is false, which says that the answer is not to be given: leave such rows out")
    ends = {name: columns.row.get(name) for name in ENDS if name != "status"}  # which may be of anything
    if "answers" not in columns.row and (reason := cut_off(ends)):  # gold answers are no server's
        raise BadRow(columns.name(*ends), reason)
    if earlier := columns.name("previous_response_id"):
        raise BadRow(earlier, "says that turns come before, which are not in the row: give them in 'input'")
    labels = {name: columns.label(name) for name in ("id", "category", "source")}
    if chat := find_chat(columns, notes):
        examples = read_chat(*chat, columns, labels, turns, notes, unanswered)
    else:
        examples = [read_columns(columns, labels, keep_answers, notes, unanswered)]
    _refuse_others_expected(columns)
    notes.update({f"unused/{name}": 1 for name in columns.row if name not in columns.used})
    return Reading(examples, notes)


def _refuse_others_expected(columns: Columns) -> None:
    """Refuse a row in which a model wrote another answer than the one that the row expects.

    Raises:
        BadRow: It does.
    """
    written = next((name for name in WRITTEN if name in columns.used), "")
    expected = next((name for name in EXPECTED if name in columns.row and name not in columns.used), "")
    if not (written and expected) or columns.used & set(ANSWERS):
        return
    wanted = columns.row[expected]
    if isinstance(wanted, dict) and all(value is None for value in wanted.values()):  # nothing, in a table
        return
    if columns.take(expected) != columns.row[written] and _answer_without(EXPECTED, columns) != _answer_without(
        (*WRITTEN, *ANSWERS), columns
    ):
        raise BadRow(expected, f"says something else than '{written}', which may be any model's: keep one of them")


def _answer_without(names: tuple[str, ...], columns: Columns) -> tuple[list[Call], str] | None:
    """The answer of a row that lacks these columns; None if it cannot be read."""
    try:
        example = read_row({name: value for name, value in columns.given.items() if name not in names}).examples[0]
        return as_calls(example.answers), example.response.strip()
    except ValueError:
        return None

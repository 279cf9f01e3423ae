"""Examples of a chat: the turns that become targets, each with the history before it."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any, Literal

from datamodules.example import BadRow, Example, answers_tool
from datamodules.sources.thoughts import join_thoughts
from datamodules.sources.turns import Turn
from rewards import dump_calls, render_calls

Turns = Literal["last", "every"]


def examples_of(
    turns: list[Turn],
    tools: str,
    which: Turns,
    column: str,
    labels: dict[str, str],
    notes: Counter[str],
    unanswered: bool,
) -> list[Example]:
    """Makes the examples of a chat.

    Args:
        turns: The turns, the system's in front if there is one.
        tools: The tools on offer, as JSON.
        which: `last` makes one example, of the last assistant turn that answers a user (of the last that answers a
            tool, where none answers a user); `every` makes one of each that answers either.
        column: The column the turns come from.
        labels: The row's `id`, `category` and `source`, and `cot`, which is that of the chat's last answer.
        notes: Counts what was read in another sense than the obvious, and what was left out.
        unanswered: Whether turns that end with a request, or with what a tool gave back, make one example without an
            answer.

    Raises:
        BadRow: There is no such turn, or calls cannot be written.
    """
    if unanswered and _answered(turns):
        example = _example([*turns, Turn("assistant")], len(turns), tools, column, labels, False, notes)
        return [replace(example, answers="")]
    answered = {i: _answered(turns[:i]) for i, turn in enumerate(turns) if turn.role == "assistant"}
    answers = [i for i, role in answered.items() if role and any(turn.role == "user" for turn in turns[:i])]
    trained = [i for i in answers if turns[i].trained]
    if not trained:
        untrained = " and is not marked as one not to train on" if answers else ""
        raise BadRow(column, f"has no assistant turn that answers a user turn{untrained}")
    chosen = trained
    if which == "last":
        chosen = ([i for i in trained if answered[i] == "user"] or trained)[-1:]
    left_out = sum(turn.role == "assistant" and turn.trained for turn in turns) - len(chosen)
    if left_out:
        notes["left out/assistant turns that are no target"] += left_out
    if turns[-1].role == "user":
        notes["left out/requests at the end that nobody answers"] += 1
    examples = [_example(turns, place, tools, column, labels, len(chosen) > 1, notes) for place in chosen]
    if chosen[-1] == max(answered) and not turns[chosen[-1]].cot and (cot := labels["cot"]):
        examples[-1] = replace(examples[-1], cot=join_thoughts(cot, examples[-1].cot))
    return examples


def _answered(before: list[Turn]) -> str:
    """Whom an assistant answers after these turns, a "user" or a "tool"; "" if neither."""
    role = next((turn.role for turn in reversed(before) if turn.role != "system"), "")
    return role if role in ("user", "tool") else ""


def _example(
    turns: list[Turn], place: int, tools: str, column: str, labels: dict[str, str], several: bool, notes: Counter[str]
) -> Example:
    target, before = turns[place], turns[:place]
    asked = max(i for i, turn in enumerate(before) if turn.role == "user")
    # An answer to a tool has the request in its history.
    earlier = before if _answered(before) == "tool" else before[:asked] + before[asked + 1 :]
    history = [{"role": turn.role, "content": content(turn, column)} for turn in earlier]
    forgotten = sum(bool(turn.cot) for turn in earlier)
    if forgotten:
        notes["left out/chains of thought of earlier turns"] += forgotten
    cot, response = target.cot, target.text
    if target.calls is not None and target.text:
        notes["repair/words before the calls read as chain of thought"] += 1
        cot, response = join_thoughts(cot, target.text), ""
    row_id = labels["id"]
    example = Example(
        id=f"{row_id}-{place}" if row_id and several else row_id,
        query=before[asked].text,
        tools=tools,
        answers=dump_calls(target.calls or []),
        cot=cot,
        response="" if target.calls is not None else response,
        history=json.dumps(history, ensure_ascii=False),
        category=labels["category"],
        source=labels["source"],
    )
    to_tool = _answered(before) == "tool"
    if answers_tool(example) and not to_tool:
        raise BadRow(
            column,
            f"asks {example.query[:80]!r} again right after a tool's result, as an earlier turn did, so that what "
            "follows reads as an answer to the tool: reword that request, or say something between the two",
        )
    if to_tool and not answers_tool(example):
        raise BadRow(column, "has a system text between a tool's result and the answer to it: move it to the beginning")
    return example


def content(turn: Turn, column: str) -> str:
    """The text of a turn in a history: its words, and its calls as a model of this project writes them."""
    try:
        written = render_calls(turn.calls) if turn.calls is not None else ""
    except ValueError as error:
        raise BadRow(column, f"calls of an earlier turn cannot be written: {error}") from error
    return "\n\n".join(filter(None, (turn.text, written)))


def dump(value: Any) -> str:
    """Any value as the JSON of an example."""
    return json.dumps(value, ensure_ascii=False)

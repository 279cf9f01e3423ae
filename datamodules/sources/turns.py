"""Turns of a chat, made of its messages: assistants' texts parsed, and messages that are one turn joined."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from datamodules.example import BadRow
from datamodules.sources.calls import ARGUMENT_KEYS, calls_of
from datamodules.sources.columns import NOTHING
from datamodules.sources.nulls import without_null_arguments
from datamodules.sources.parts import Message
from datamodules.sources.results import LABEL, holds_result
from datamodules.sources.syntax import read_answer
from datamodules.sources.thoughts import join_thoughts, read_assistant_text
from rewards import Call

MAX_TURNS = 2_048
"""Messages of one chat; each target repeats those before it."""


@dataclass(frozen=True)
class Turn:
    """One turn.

    Attributes:
        role: system, user, assistant or tool.
        text: What is said; where there are calls, what is said before them.
        cot: An assistant's chain of thought.
        calls: An assistant's calls; None where it answers in words.
        ids: Of an assistant's calls, or of the call that a tool answers; the names of tools where calls have none.
        trained: Whether an assistant's turn may be a target.
    """

    role: str
    text: str = ""
    cot: str = ""
    calls: list[Call] | None = None
    ids: tuple[str, ...] = ()
    trained: bool = True


def read_turns(messages: list[Message], tools: list[dict[str, Any]], column: str, notes: Counter[str]) -> list[Turn]:
    """Reads what assistants say, and joins turns that are one: parallel calls, a thought or words and then the calls.

    Raises:
        BadRow: Something looks like calls and cannot be read, a turn says nothing, or there are more than `MAX_TURNS`.
    """
    if len(messages) > MAX_TURNS:
        raise BadRow(column, f"has {len(messages):,} turns, and {MAX_TURNS:,} are read at most")
    turns: list[Turn] = []
    places: list[tuple[str, int]] = []
    for number, message in enumerate(messages, start=1):
        place = message.place or (column, number)
        try:
            turn = _turn(message, tools, notes)
        except ValueError as error:
            raise BadRow(place[0], f"turn {place[1]}: {error}") from error
        if turns and turns[-1].calls and turn.role == "user" and (label := LABEL.match(turn.text)):
            turn = Turn("tool", turn.text[label.end() :].strip())
        if turns and (joined := _joined(turns[-1], turn)):
            turns[-1] = joined
        else:
            turns.append(turn)
            places.append(place)
    for turn, (name, number) in zip(turns, places, strict=True):
        if turn.role in ("user", "assistant") and turn.calls is None and not turn.text.strip():
            raise BadRow(name, f"turn {number}, the {turn.role}'s, says nothing" + " but a thought" * bool(turn.cot))
    return _in_order_of_calls(turns)


def _turn(message: Message, tools: list[dict[str, Any]], notes: Counter[str]) -> Turn:
    if message.role == "think":
        return Turn("assistant", cot=message.text.strip(), trained=message.trained)
    if message.role not in ("assistant", "call"):
        return Turn(message.role, message.text, ids=tuple(message.ids))
    offered = frozenset(tool["name"] for tool in tools)
    places = [_calls_at(place, tools, offered) for place in message.calls]
    if any(calls != places[0] for calls in places):
        raise ValueError("there are calls in two places, and they differ")
    structured = places[0] if places else []
    parsed = read_assistant_text(message.text, tools)
    if message.role == "call" and message.text and parsed.calls is None:
        raise ValueError(f"the calls cannot be read: {message.text[:80]!r}")
    if holds_result(parsed.text):
        raise ValueError(f"the assistant says what a tool gave back: {parsed.text[:80]!r}; give it a turn of the tool")
    if structured and parsed.calls:
        raise ValueError("there are calls both in the text and beside it")
    if structured and parsed.text.lower() in NOTHING:
        parsed = replace(parsed, text="")
    calls = structured or parsed.calls
    if calls:
        nested = any(_is_nested(call) for place in message.calls for call in place)
        calls = without_null_arguments(calls, tools, nested, notes)
    cot = join_thoughts(*message.cot, parsed.cot)
    ids = tuple(dict.fromkeys(message.ids)) or tuple(call.name for call in calls or ())
    return Turn("assistant", parsed.text, cot, calls, ids, message.trained)


def _calls_at(place: list[Any], tools: list[dict[str, Any]], offered: frozenset[str]) -> list[Call]:
    """The calls of one place; their text may be of any syntax, as Python's in Olmo's `function_calls`."""
    if not all(isinstance(call, str) for call in place):
        return calls_of(place, offered)
    words, calls = read_answer("\n".join(place), tools)
    if calls is None or words:
        raise ValueError(f"the calls cannot be read: {place[0][:80]!r}")
    return calls


def _is_nested(call: Any) -> bool:
    """Whether the arguments of a call are an object, not the JSON text of one."""
    call = call.get("function", call) if isinstance(call, dict) else call
    return isinstance(call, dict) and any(isinstance(call.get(key), dict) for key in ARGUMENT_KEYS)


def _joined(first: Turn, second: Turn) -> Turn | None:
    """Two turns as one, if they are one."""
    if first.role != second.role or first.role not in ("assistant", "system"):
        return None
    if first.calls is not None and not second.calls:
        return None  # words after the calls, or after [], which belong to no answer
    cot, text = join_thoughts(first.cot, second.cot), "\n\n".join(filter(None, (first.text, second.text)))
    calls = first.calls if second.calls is None else [*(first.calls or []), *second.calls]
    trained = first.trained and second.trained
    return Turn(first.role, text, cot, calls, first.ids + second.ids, trained)


def _in_order_of_calls(turns: list[Turn]) -> list[Turn]:
    """The answers of tools in the order of the calls that they answer, where ids or names say which those are."""
    turns, at = list(turns), 0
    while at < len(turns):
        end = at + 1
        while end < len(turns) and turns[end].role == "tool":
            end += 1
        results, calls = turns[at + 1 : end], turns[at].calls or ()
        for names in (turns[at].ids, [call.name for call in calls]):
            order = {name: place for place, name in enumerate(names)}
            once = len(order) == len(names)  # two calls of one tool have one name
            if once and all(turn.ids and turn.ids[0] in order for turn in results):
                turns[at + 1 : end] = sorted(results, key=lambda turn: order[turn.ids[0]])
                break
        at = end
    return turns

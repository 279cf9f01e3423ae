"""An assistant's message that holds several steps: what it calls, what the tools give back, and what it does then.

Vercel's AI SDK keeps messages so, a call and its result in one part; so do providers that run tools themselves.
"""

from typing import Any

from datamodules.sources.parts import is_blank, is_result, typed

Step = tuple[list[Any], list[Any]]
"""The parts that an assistant says in a step, and those with what its calls gave back."""
_NAMED = ("dynamic-tool", "tool-invocation")
"""Parts of a call, and of what it gave back, that name the tool; others have its name in their type (`tool-NAME`)."""
_OWN = ("tool-call", "tool-result", "tool-invocation")
"""Types of parts of their own, which name the tool elsewhere and, but for the last, have no state."""
_CALLED = (None, "input-available", "approval-requested", "call")
_ANSWERED = ("output-available", "output-error", "result")
"""States of such a part, the last of each in older ones; others are of calls that are not whole or not allowed."""


def steps_of(parts: list[Any]) -> list[Step]:
    """The steps of an assistant's parts: another one begins where it goes on after a result.

    Calls that stand in one part with their results are of one step where the same mark is before them and they have the
    same number, if they have any; what is said between them is of that step, too.

    Raises:
        ValueError: A call is not whole, or nothing says of calls whether they are of one step.
    """
    steps: list[Step] = [([], [])]
    parts = [_unwrapped(typed(part)) for part in parts]
    marked = any(part["type"] == "step-start" for part in parts)
    marks, number, at = 0, None, 0  # the last two: which step the last call is of, and its place in `steps`
    for part in parts:
        if is_blank(part):
            continue
        call, result = _invoked(part)
        marks += part["type"] == "step-start"
        same = False
        if call:
            before, number = number, (marks, part.get("step")) if marked or "step" in part else None
            same = number is not None and number == before and not part.get("providerExecuted")
        while same and len(steps) > at + 1:
            for had, more in zip(steps[at], steps.pop(at + 1), strict=True):
                had.extend(more)
        if steps[-1][1] and not (is_result(part) or same):
            if call and number is None:
                raise ValueError(
                    "has one call with its result after another, and no 'step-start' that says whether they were made "
                    "at once: put one before each step"
                )
            steps.append(([], []))
        at = len(steps) - 1 if call else at
        said, results = steps[-1]
        if is_result(part) or result:
            results.append(result or part)
        if call or not (is_result(part) or part["type"] == "step-start"):
            said.append(call or part)
    return [step for step in steps if any(step)]


def _unwrapped(part: dict[str, Any]) -> dict[str, Any]:
    """A part without the keys of other parts, which a table has in it; the older interface has calls one key deeper."""
    if part["type"] == "tool-invocation" and isinstance(part.get("toolInvocation"), dict):
        part = part["toolInvocation"] | {"type": part["type"]}
    part = {key: value for key, value in part.items() if value not in (None, "") or key == "type"}
    if part["type"] in _OWN and isinstance(part.get("state"), str) and "toolName" not in part:  # a tool is called so
        part |= {"type": "dynamic-tool", "toolName": part["type"].removeprefix("tool-")}
    return part


def _invoked(part: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The call and the result of a part that is both, as parts of their own; None for what it lacks."""
    kind = str(part["type"])
    whole = kind.startswith("tool-") and bool({"state", "result"} & part.keys())
    if is_result(part) or not (kind in _NAMED or whole):
        return None, None
    name = part.get("toolName") or (None if kind in (*_NAMED, "tool-call") else kind.removeprefix("tool-"))
    state, arguments = part.get("state"), part.get("input", part.get("args"))
    if state not in (*_CALLED, *_ANSWERED):
        raise ValueError(f"has a call in the state {str(state)[:40]!r}, which is not read: leave such rows out")
    if arguments is None and "rawInput" in part:
        raise ValueError(f"has a call whose arguments could not be read: {str(part['rawInput'])[:80]!r}; leave it out")
    of_call = {"toolCallId": part.get("toolCallId")}
    call = of_call | {"type": "tool-call", "toolName": name, "input": arguments}
    given = [part[key] for key in ("errorText", "output", "result") if key in part]
    if state in _CALLED and not (state is None and given):
        return call, None
    return call, of_call | {"type": "tool-result", "result": given[0] if given else ""}


def without_repeats(item: dict[str, Any]) -> dict[str, Any]:
    """A message without what Vercel's older ones have a second time beside their parts: calls, and what is said.

    The latter may be of the last step alone.
    """
    if not isinstance(item.get("parts"), list):
        return item
    parts = [part for part in item["parts"] if isinstance(part, dict)]
    calls = [part["toolInvocation"] for part in parts if part.get("toolInvocation")]
    again = {"toolInvocations"} if item.get("toolInvocations") == calls else set()
    for key, kind in (("content", "text"), ("reasoning", "reasoning")):
        said = [str(part.get("text") or part.get(kind) or "") for part in parts if part.get("type") == kind]
        places = range(len(said) + 1) if key in item else ()
        again |= {key for at in places if "".join(str(item[key]).split()) == "".join("".join(said[at:]).split())}
    return {key: value for key, value in item.items() if key not in again}

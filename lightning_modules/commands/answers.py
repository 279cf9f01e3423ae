"""Scores of a row's own answer and of alterations of it, which show what the reward looks at."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from datamodules.example import Example
from datamodules.gold import framed
from rewards import FRAMES, Call, CallFrame, FunctionCallReward, RewardResult, as_calls, as_tools, write_calls

PARTS = ("format", "parse", "name", "arg_names", "arg_values")
"""Parts of the reward in the order in which an answer fails them."""
OTHER_FORM = {"python": FRAMES["json"], "json": None, "hermes": FRAMES["json"]}


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer and its score.

    Attributes:
        name: What was done to the row's own answer.
        text: The completion.
        result: Of the run's reward.
    """

    name: str
    text: str
    result: RewardResult

    @property
    def fails(self) -> str:
        """The first part of the reward that it fails, and why where the reader says so; "" where it is right."""
        if self.result.parts["exact_match"] == 1:  # words, where those are asked for, are no list of calls
            return ""
        part = next((name for name in PARTS if not self.result.parts[name]), "")
        why = self.result.parsed.error if self.result.parsed and part in ("format", "parse") else ""
        return f"{part}: {why}" if why else part


def score_answers(
    reward: FunctionCallReward, example: Example, target: str, frame: CallFrame | None, learnt: bool
) -> list[ScoredAnswer]:
    """The row's own answer and alterations of it, each scored by the reward.

    Args:
        reward: The run's.
        example: The row.
        target: Its answer in the form of the run; see `segments.target_text`.
        frame: What calls are framed with in that form; see `form.frame_of`.
        learnt: Whether the target is trained on as it is, and not through rewards alone.
    """
    asked, own = framed(reward, example, target), "the row's own answer"
    pays = reward(target, example.tools, example.answers).parts["exact_match"]
    answers: dict[str, str] = {}
    if pays or learnt:
        answers[f"{own}, as it is trained on" if learnt else own] = target
    if not pays and asked != target:
        how = " after any thought" if reward.think and not example.cot else ""
        answers[own + (how or " as the reward asks for it")] = asked
    answers |= altered(reward, example, target if pays else asked, frame)
    return [ScoredAnswer(name, text, reward(text, example.tools, example.answers)) for name, text in answers.items()]


def altered(reward: FunctionCallReward, example: Example, right: str, frame: CallFrame | None) -> dict[str, str]:
    """Alterations of a right completion, by what was done.

    Args:
        reward: The run's: whether it wants a thought and answer tags.
        example: The row.
        right: A completion that the reward scores 1.
        frame: What calls are framed with.
    """
    before, tag, answer = right.partition("</think>") if reward.think else ("", "", right)
    lead, bare = before + tag, answer.strip()
    tagged = reward.answer_tags == "answer"
    inner = bare.removeprefix("<answer>").removesuffix("</answer>").strip() if tagged else bare

    def put(answer: str) -> str:
        return (f"{lead}\n\n" if lead else "") + (f"<answer>{answer}</answer>" if tagged else answer)

    texts = {name: put(write_calls(calls, frame)) for name, calls in altered_calls(example)}
    if not as_calls(example.answers):
        texts["[] instead of words" if example.response else "words instead of []"] = put(
            "[]" if example.response else "No tool fits this."
        )
    if reward.think:
        texts |= {"another chain of thought": f"<think>Hm.</think>\n\n{bare}", "no <think> block": bare}
    else:
        texts["a <think> block before it"] = f"<think>Hm.</think>\n\n{bare}"
    if tagged:
        texts["no <answer> tags"] = f"{lead}\n\n{inner}".lstrip()
    if calls := as_calls(example.answers):
        form = next((name for name, known in FRAMES.items() if known == frame), "python" if frame is None else "")
        other = OTHER_FORM.get(form)
        kind = "a Python list" if other is None else "a JSON list"
        texts[f"the calls as {kind}"] = put(write_calls(calls, other))
    texts |= {"text after it": f"{put(inner)}\n\nDone.", "in a code fence": put(f"```\n{inner}\n```")}
    return {name: text for name, text in texts.items() if text != right}


def altered_calls(example: Example) -> Iterator[tuple[str, list[Call]]]:
    """Alterations of the row's calls, each of the first call that it can be done to, by what was done."""
    calls, tools = as_calls(example.answers), as_tools(example.tools)
    if not calls:
        if tools:
            yield "a call where none fits", [Call(tools[0]["name"], {})]
        return
    place = next((i for i, call in enumerate(calls) if call.arguments), None)
    if place is not None:
        for done, arguments in altered_arguments(calls[place].arguments):
            yield done, [*calls[:place], replace(calls[place], arguments=arguments), *calls[place + 1 :]]
    others = [tool["name"] for tool in tools if tool["name"] != calls[0].name]
    yield "another function", [replace(calls[0], name=(others or [f"{calls[0].name}_2"])[0]), *calls[1:]]
    if len(calls) > 1:
        yield "the last call left out", calls[:-1]
        yield "calls in another order", calls[::-1]
    else:
        yield "the call twice", calls * 2
    yield "no call", []


def altered_arguments(arguments: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Alterations of the arguments of a call that has some, by what was done."""
    name, value = next(iter(arguments.items()))
    yield f"another value of {name}", arguments | {name: other_value(value)}
    numbers = [n for n, v in arguments.items() if isinstance(v, int | float) and not isinstance(v, bool)]
    for number in numbers[:1]:
        yield f"{number} as text", arguments | {number: str(arguments[number])}
    yield f"{name} left out", {n: v for n, v in arguments.items() if n != name}
    yield "an argument too many", arguments | {f"{max(arguments, key=len)}_2": True}  # a name longer than any
    if len(arguments) > 1:
        yield "arguments in another order", dict(reversed(arguments.items()))


def other_value(value: Any) -> Any:
    """A value of the same kind that is not this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if value + 1 != value else 0
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, list):
        return value[:-1] if value else ["x"]
    return {} if value else "x"

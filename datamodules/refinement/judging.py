"""Questions to judges, verdicts read from their replies, and votes of several judges.

A judge gets a question and gives back text: `<think>why</think><judge>True|False</judge>`, with
`<NewFC>[corrected calls]</NewFC>` where it was asked for a correction (FunReason, arXiv 2505.20192, figures 7-11). The
text is data: of all it says, only the judgement, the fault (one of those offered) and the correction are taken.
"""

import asyncio
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal, Protocol

from datamodules.example import Example
from datamodules.refinement.prompts import messages

Vote = Literal["unanimous", "majority", "mean"]
MAX_REPLY = 262_144  # characters
MAX_WORDS = 2_000  # characters of a reply that are kept
FAULTS = {"call": ("function", "parameter")}
"""What a judge may name as the fault; at all other stages there is one, of the stage's own name."""

ENDED = (None, "stop", "eos", "eos_token", "stop_sequence")
"""`finish_reason` of a reply that the model ended: "stop" of OpenAI, vLLM, llama.cpp and Ollama, the others of Together
and early TGI. Some servers give none (early TabbyAPI): the verdict's place must then show whether a reply is whole."""
_LAST_TAG = re.compile(r"</(?:judge|NewFC|fault|tool)\s*>\W*\Z", re.IGNORECASE)
_JUDGE = re.compile(r"<judge>\s*(true|false|0(?:\.\d+)?|1(?:\.0+)?)\s*</judge>", re.IGNORECASE | re.ASCII)


class Unanswered(Exception):
    """A judge has not answered a question, though it answers others."""


class Unfinished(Unanswered):
    """A reply did not end by itself: it may be cut anywhere, also in a thought."""


class JudgesLost(RuntimeError):
    """The judges cannot be asked anything any more; the run has to end."""


@dataclass(frozen=True)
class Question:
    """One question to a judge.

    Attributes:
        stage: What it is about; a key of `prompts.ASK`, or "write_cot".
        example: The row.
        finding: What a parser or the schema has already found wrong; "" if nothing.
        attempt: 0, or 1 where the first reply could not be read.
    """

    stage: str
    example: Example
    finding: str = ""
    attempt: int = 0

    @property
    def messages(self) -> list[dict[str, str]]:
        """The question as chat turns."""
        return messages(self.stage, self.example, self.finding)

    def seed(self, base: int | None) -> int:
        """The seed of a sampled reply, one of its own for each question, so that a repeated run gets the same.

        Args:
            base: The judge's.
        """
        asked = f"{base}\0{self.example.id}\0{self.stage}\0{self.finding}\0{self.attempt}"
        return zlib.crc32(asked.encode())


class Judge(Protocol):
    """Protocol of a judge, which answers questions: rules, a model behind servers, a model in this process."""

    async def __call__(self, question: Question) -> str:
        """The judge's reply.

        Raises:
            Unfinished: If a reply was begun and not ended.
            Unanswered: If this question has no answer.
            JudgesLost: If no question will have one any more.
        """
        ...

    async def close(self) -> None:
        """Release what the judge holds; there will be no more questions."""
        ...


@dataclass(frozen=True)
class Verdict:
    """The verdict of one stage on a row.

    Attributes:
        stage: The stage.
        passed: None where no judgement could be had.
        fault: What is wrong: the stage's name, or more precisely "function", "parameter" or "type"; "" if passed or
            undecided.
        reason: A sentence of ours.
        words: What the judges wrote.
        correction: The answer as it should be, where the judges say no and give one.
        replies: How many replies were read.
        needs_tool: Whether the request needs a tool, where that was asked and the judges agree.
    """

    stage: str
    passed: bool | None
    fault: str = ""
    reason: str = ""
    words: str = ""
    correction: str = ""
    replies: int = 0
    needs_tool: bool | None = None


@dataclass(frozen=True)
class Outcome:
    """The decision on a row, with the verdicts that led to it.

    Attributes:
        example: The row as it is kept, or as it was read where it is not.
        verdicts: In the order in which they were given; the last one decides.
        content: The row as it was read, where it could not be brought into the form of an example.
    """

    example: Example
    verdicts: tuple[Verdict, ...]
    content: Any = None

    @property
    def kept(self) -> bool:
        """Whether the row is part of the refined set."""
        return self.verdicts[-1].passed is True


@dataclass(frozen=True)
class Reply:
    """A reply taken apart; `score` is in [0, 1], or None where the text gives none."""

    score: float | None
    words: str
    fault: str = ""
    correction: str = ""
    needs_tool: bool | None = None


def finished_reply(text: str, finish_reason: Any) -> str:
    """The text of a reply that ended by itself; one that was cut, filtered or turned into a tool call did not.

    Args:
        text: The reply.
        finish_reason: Why it ended, in the words of the server or engine; see `ENDED`.

    Raises:
        Unfinished: It did not end by itself.
    """
    if finish_reason not in ENDED:
        raise Unfinished(f"the reply did not end by itself (finish_reason {ascii(finish_reason)[:40]}): {text[:200]}")
    return text


def read_reply(text: str) -> Reply:
    """Takes a reply apart; whatever the text, it never raises.

    Only what follows the last `</think>` counts, and it must hold exactly one judgement: True, False, or a number from
    0 to 1. Thoughts that were begun and do not end hold none: they may quote the row. A text without
    `</think>` may be such thoughts: it must end with a tag that was asked for.
    """
    if len(text) > MAX_REPLY:
        return Reply(None, f"a reply of {len(text):,} characters: {text[:200]}")
    thought, ended, rest = text.rpartition("</think>")
    words = (thought.replace("<think>", "").strip() or rest.strip())[:MAX_WORDS]
    judged = _JUDGE.findall(rest)
    complete = ended or _LAST_TAG.search(rest)
    if not complete or "<think>" in rest or len(judged) != 1 or rest.lower().count("<judge>") != 1:
        return Reply(None, words)
    score = {"true": 1.0, "false": 0.0}.get(judged[0].lower())
    needs_tool = {"true": True, "false": False}.get(_tagged(rest, "tool").lower())
    return Reply(
        float(judged[0]) if score is None else score, words, _tagged(rest, "fault"), _tagged(rest, "NewFC"), needs_tool
    )


def _tagged(text: str, tag: str) -> str:
    """What stands between a pair of tags, "" unless there is exactly one such pair."""
    if text.count(f"<{tag}>") != 1 or text.count(f"</{tag}>") != 1:
        return ""
    return text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0].strip()


_RULES: dict[str, Callable[[Sequence[float], float], bool]] = {
    "unanimous": lambda scores, tau: all(score >= tau for score in scores),
    "majority": lambda scores, tau: 2 * sum(score >= tau for score in scores) > len(scores),
    "mean": lambda scores, tau: fmean(scores) >= tau,
}


def vote(scores: Sequence[float | None], rule: Vote, tau: float) -> bool | None:
    """The judgement of several judges, or None where it hangs on those who gave none.

    Args:
        scores: From 0 to 1; None for a judge without judgement.
        rule: "unanimous" (every score reaches tau), "majority" (more than half do), or "mean" (their mean does).
        tau: The threshold (arXiv 2505.20192v3: 0.5).
    """
    lowest, highest = (
        _RULES[rule]([unknown if score is None else score for score in scores], tau) for unknown in (0.0, 1.0)
    )
    return lowest if lowest == highest else None


class Panel:
    """Judges who decide together.

    Args:
        judges: One or more.
        rule: How their scores are counted; see `vote`.
        tau: The score from which a judgement is a yes.
    """

    def __init__(self, judges: Sequence[Judge], rule: Vote = "unanimous", tau: float = 0.5) -> None:
        if not judges:
            raise ValueError("judges is empty; give at least one")
        if rule not in _RULES or not 0 < tau <= 1:
            rules = ", ".join(_RULES)
            raise ValueError(f"vote must be one of {rules}, and tau above 0 and at most 1, not {rule} and {tau}")
        self.judges = list(judges)
        self.rule: Vote = rule
        self.tau = tau

    async def ask(self, question: Question) -> Verdict:
        """Put a question to every judge; one whose reply cannot be read is asked once more."""
        first, *others = (_ask(judge, question) for judge in self.judges)
        answers = [await first] if not others else await asyncio.gather(first, *others)
        replies = [answer[-1] for answer in answers]
        passed = vote([reply.score for reply in replies], self.rule, self.tau)
        against = [reply for reply in replies if reply.score is not None and reply.score < self.tau]
        allowed = FAULTS.get(question.stage, (question.stage,))
        named = next((reply.fault for reply in against if reply.fault in allowed), allowed[-1])
        reason = "the judge says no" if len(replies) == 1 else f"{len(against)} of {len(replies)} judges say no"
        return Verdict(
            stage=question.stage,
            passed=passed,
            fault=named if passed is False else "",
            reason="no judgement could be had" if passed is None else "" if passed else reason,
            words="\n---\n".join(reply.words for reply in replies),
            correction=next((reply.correction for reply in against if reply.correction), "") if passed is False else "",
            replies=sum(map(len, answers)),
            needs_tool=replies[0].needs_tool if len({reply.needs_tool for reply in replies}) == 1 else None,
        )

    async def close(self) -> None:
        """Release what the judges hold."""
        for judge in self.judges:
            await judge.close()


async def _ask(judge: Judge, question: Question) -> list[Reply]:
    """A judge's replies: one, or two where the first could not be read."""
    replies: list[Reply] = []
    while len(replies) < 2 and (not replies or replies[-1].score is None):
        try:
            replies.append(read_reply(await judge(replace(question, attempt=len(replies)))))
        except Unfinished as error:
            replies.append(Reply(None, str(error)))
        except Unanswered as error:
            return [*replies, Reply(None, str(error))]
    return replies

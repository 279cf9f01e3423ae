"""Dry run of a refinement: the first prompts, and an estimate of the questions and tokens of all rows."""

import asyncio

from datamodules.example import BadRow, Example
from datamodules.refinement.judging import Panel, Question
from datamodules.refinement.run import Recipe, Rows
from datamodules.rows import check_request, unchecked_example

SHOWN = 3
CHARACTERS_PER_TOKEN = 3.5  # of English and JSON, roughly


class _Listener:
    """Finds no fault with anything, and keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Question] = []

    async def __call__(self, question: Question) -> str:
        self.asked.append(question)
        return "<think>-</think><judge>True</judge>"

    async def close(self) -> None:
        """Do nothing: there is nothing to release."""


def dry_run(rows: Rows, recipe: Recipe, judge: Panel) -> str:
    """The prompts of the first rows, and an estimate for all of them.

    Args:
        rows: Numbers and rows as they were read.
        recipe: What would be done with a row.
        judge: Who would be asked.
    """
    return asyncio.run(_dry_run(rows, recipe, judge))


async def _dry_run(rows: Rows, recipe: Recipe, judge: Panel) -> str:
    total, good, asked, characters, shown = 0, 0, 0, 0, []
    for number, raw in rows:
        total += 1
        try:
            example = unchecked_example(raw)
            check_request(example)
        except BadRow as error:
            shown += [f"row {number} would be rejected: {error}"] if total <= SHOWN else []
            continue
        good += 1
        prompts = await _prompts(example, recipe, judge)
        asked += sum(map(len, prompts))
        characters += sum(len(text) for heard in prompts for _, text in heard)
        if total <= SHOWN:
            shown += [f"row {number}, {stage}\n\n{text}" for stage, text in max(prompts, key=len)]
    estimate = (
        f"{total:,} rows, {total - good:,} of them unreadable; {len(judge.judges)} judge(s). About {asked:,} questions "
        f"with {characters / CHARACTERS_PER_TOKEN:,.0f} prompt tokens in all ({CHARACTERS_PER_TOKEN} characters to a "
        "token), and as many replies, if no judge finds a fault. Each regenerated answer adds up to three questions; "
        "rejected rows save some. Nothing was asked or written."
    )
    return "\n\n".join([*shown, estimate])


async def _prompts(example: Example, recipe: Recipe, judge: Panel) -> list[list[tuple[str, str]]]:
    """What each judge would be asked about a row: stages and prompts."""
    listeners = [_Listener() for _ in judge.judges]
    await recipe(example, Panel(listeners, judge.rule, judge.tau))
    return [
        [(q.stage, "\n\n".join(turn["content"] for turn in q.messages)) for q in listener.asked]
        for listener in listeners
    ]

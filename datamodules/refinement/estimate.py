"""What a refinement would ask and what that would cost, without asking."""

from datamodules.readers import BadRow
from datamodules.refinement.judging import Panel, Question
from datamodules.refinement.run import Rows
from datamodules.rows import Example, unchecked_example

STAGES = ("query", "cot", "call")
"""What a judge is asked about a row that has no fault: the parser decides the other two stages."""

SHOWN = 3
CHARACTERS_PER_TOKEN = 3.5  # of English and JSON, roughly


def dry_run(rows: Rows, judge: Panel) -> str:
    """The prompts of the first rows, and an estimate for all of them.

    Args:
        rows: Numbers and rows as they were read.
        judge: Who would be asked.
    """
    total, good, characters, shown = 0, 0, 0, []
    for number, raw in rows:
        total += 1
        try:
            example = unchecked_example(raw)
        except BadRow as error:
            shown += [f"row {number} would be rejected: {error}"] if total <= SHOWN else []
            continue
        prompts = _prompts(example)
        good += 1
        characters += sum(map(len, prompts.values()))
        if total <= SHOWN:
            shown += [f"row {number}, {stage}\n\n{text}" for stage, text in prompts.items()]
    judges, asked = len(judge.judges), good * len(STAGES) * len(judge.judges)
    tokens = characters * judges / CHARACTERS_PER_TOKEN
    estimate = (
        f"{total:,} rows, {total - good:,} of them unreadable; {judges} judge(s). About {asked:,} questions with "
        f"{tokens:,.0f} prompt tokens in all ({CHARACTERS_PER_TOKEN} characters to a token), and as many replies. "
        "Each regenerated answer adds up to three questions; rejected rows save some. Nothing was asked or written."
    )
    return "\n\n".join([*shown, estimate])


def _prompts(example: Example) -> dict[str, str]:
    questions = {stage: Question(stage, example).messages for stage in STAGES}
    return {stage: "\n\n".join(turn["content"] for turn in turns) for stage, turns in questions.items()}

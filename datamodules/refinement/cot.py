"""Chains of thought for rows that have none, written by a teacher (FunReason, arXiv 2505.20192: QwQ-32B's own ones)."""

from dataclasses import replace

from datamodules.example import Example
from datamodules.refinement.judging import MAX_WORDS, Outcome, Panel, Question, Unanswered, Unfinished, Verdict
from rewards.parser import split_completion


async def write_cot(example: Example, judge: Panel, regenerations: int = 3) -> Outcome:
    """Give a row the reasoning of the first judge, who answers the request as the model that is trained will have to.

    Whether it leads to the row's answer is not looked at here, but by the refinement after it.

    Args:
        example: The row; one that has a chain of thought is kept as it is.
        judge: Of whom the first is the teacher.
        regenerations: How often the teacher is asked again for a completion with a think block.

    Returns:
        The row with its chain of thought.
    """
    if example.cot:
        return Outcome(example, (Verdict("write_cot", True, reason="the row has a chain of thought"),))
    text = error = ""
    for attempt in range(1 + regenerations):
        try:
            text = await judge.judges[0](Question("write_cot", example, attempt=attempt))
        except Unfinished as cut:
            error = str(cut)
            continue
        except Unanswered as refusal:
            return Outcome(example, (Verdict("write_cot", None, reason=str(refusal), replies=attempt),))
        cot, _, error = split_completion(text)
        if error is None:
            return Outcome(replace(example, cot=cot), (Verdict("write_cot", True, replies=attempt + 1),))
    verdict = Verdict("write_cot", None, "", f"no chain of thought: {error}", text[:MAX_WORDS], "", 1 + regenerations)
    return Outcome(example, (verdict,))

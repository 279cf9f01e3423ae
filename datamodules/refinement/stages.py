"""Function Call Data Refinement (FunReason, arXiv 2505.20192, its data figure): five checks of a row.

`fcdr` is the figure. Each stage is a function of a row and the judges. What a parser or the schema can decide is
decided by them, and the judges are asked what needs judgement: whether an answer that cannot be read was meant as a
call, whether the tools can meet the request, whether the chain of thought leads to the answer, whether functions and
values are the ones asked for, and for corrections.

Two departures. A regenerated answer is checked again from stage 3 on, not from the stage that refused it, so that the
chain of thought of a kept row leads to the answer it is kept with. And an answer `[]`, xLAM's way to say that no tool
fits, counts as a statement.
"""

from dataclasses import replace

from datamodules.example import BadRow, Example
from datamodules.refinement.judging import Outcome, Panel, Question, Verdict
from datamodules.refinement.prompts import parse_answer
from datamodules.refinement.schema import find_misfit
from datamodules.rows import check_example
from rewards import as_tools, dump_calls


async def fcdr(example: Example, judge: Panel, regenerations: int = 3) -> Outcome:
    """Refine one row.

    Args:
        example: The row; its answer may be any text.
        judge: Who is asked.
        regenerations: Corrections of the answer that are tried before the row is dropped. The paper does not say how
            many; FunRL's 3.

    Returns:
        The row as it is kept, or as it was, with what each stage said.
    """
    verdicts = [await response_stage(example, judge)]
    if verdicts[-1].passed is False:
        return keep(as_statement(example), verdicts)
    if verdicts[-1].passed:
        verdicts.append(await query_stage(example, judge))
    if not verdicts[-1].passed:
        return Outcome(example, tuple(verdicts))
    answered = example
    for _ in range(1 + regenerations):
        for stage in (cot_stage, call_stage, format_stage):
            verdicts.append(await stage(answered, judge))
            if not verdicts[-1].passed:
                break
        else:
            return keep(answered, verdicts)
        if not verdicts[-1].correction:
            break
        answered = replace(answered, answers=verdicts[-1].correction)
    return Outcome(example, tuple(verdicts))


async def response_stage(example: Example, judge: Panel) -> Verdict:
    """Stage 1, Response Identification: is the answer a function call? A statement is saved as it is."""
    calls, _ = parse_answer(example.answers)
    if calls is not None:
        return Verdict("response", bool(calls), reason="" if calls else "the answer holds no call")
    verdict = await judge.ask(Question("response", example))
    return replace(verdict, fault="", correction="") if verdict.passed is False else verdict


async def query_stage(example: Example, judge: Panel) -> Verdict:
    """Stage 2, Query and Tool Identification: can these tools meet this request?"""
    return replace(await judge.ask(Question("query", example)), correction="")


async def cot_stage(example: Example, judge: Panel) -> Verdict:
    """Stage 3, CoT Identification: does the chain of thought lead to the answer?"""
    if not example.cot:
        return Verdict("cot", False, "cot", "there is no chain of thought; configs/cot.yaml writes them")
    return replace(await judge.ask(Question("cot", example)), correction="")


async def call_stage(example: Example, judge: Panel) -> Verdict:
    """Stage 4, Function and Parameter Identification: are functions and values right, and do they fit the schema?"""
    calls, _ = parse_answer(example.answers)
    misfit = find_misfit(calls or [], as_tools(example.tools))
    verdict = await judge.ask(Question("call", example, misfit.reason if misfit else ""))
    return replace(verdict, passed=False, fault=misfit.fault, reason=misfit.reason) if misfit else verdict


async def format_stage(example: Example, judge: Panel) -> Verdict:
    """Stage 5, Format Identification: can the answer be read? If not, a judge is asked to write it properly."""
    calls, error = parse_answer(example.answers)
    if calls:
        return Verdict("format", True)
    verdict = await judge.ask(Question("format", example, error or "it holds no call"))
    return replace(verdict, passed=False, fault="format", reason=error or "the answer holds no call")


def as_statement(example: Example) -> Example:
    """A row whose answer is plain text, which is moved to where the schema has it."""
    calls, _ = parse_answer(example.answers)
    return example if calls is not None else replace(example, answers="[]", response=example.answers)


def keep(example: Example, verdicts: list[Verdict]) -> Outcome:
    """The outcome of a row that has passed: its calls as JSON, and a last check that training will take it."""
    calls, _ = parse_answer(example.answers)
    example = replace(example, answers=dump_calls(calls or []))
    try:
        check_example(example)
    except BadRow as error:
        return Outcome(example, (*verdicts, Verdict("row", False, error.column, error.reason)))
    return Outcome(example, (*verdicts, Verdict("row", True)))

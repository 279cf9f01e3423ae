"""FunRL's preparation of data (arXiv 2508.05118v4, 5.1): evaluation and correction by a judge, then an AST check.

Departures: besides what the paper drops, the AST check drops calls that do not fit the schema; and whether a request
needs a tool, which the paper does not define, is what the judges say in the evaluation.
"""

from dataclasses import replace

from datamodules.example import Example
from datamodules.refinement.judging import Outcome, Panel, Question, Verdict
from datamodules.refinement.schema import find_misfit
from datamodules.refinement.stages import as_statement, keep
from rewards import as_tools, parse_calls


async def funrl(example: Example, judge: Panel, regenerations: int = 3) -> Outcome:
    """Prepare one row.

    Args:
        example: The row; its answer may be any text.
        judge: Who is asked.
        regenerations: Corrections of the answer that are tried before the row is dropped.

    Returns:
        The row as it is kept, or as it was, with what each stage said.
    """
    verdicts, answered = [await evaluation_stage(example, judge)], example
    while verdicts[-1].passed is False and verdicts[-1].correction and len(verdicts) <= regenerations:
        answered = replace(answered, answers=verdicts[-1].correction, response="")
        verdicts.append(await evaluation_stage(answered, judge))
    if verdicts[-1].passed:
        verdicts.append(ast_stage(answered, verdicts[-1].needs_tool))
    return keep(as_statement(answered), verdicts) if verdicts[-1].passed else Outcome(example, tuple(verdicts))


async def evaluation_stage(example: Example, judge: Panel) -> Verdict:
    """Is the answer to this request with these tools right? If not, what would be?"""
    return await judge.ask(Question("evaluate", example))


def ast_stage(example: Example, needs_tool: bool | None) -> Verdict:
    """Is the answer a call if and only if a tool is needed, and does it fit the schema?"""
    calls, _ = parse_calls(example.answers)
    if needs_tool is None:
        return Verdict("ast", None, reason="the judges do not say whether a tool is needed")
    if needs_tool != bool(calls):
        reason = "a tool is needed and the answer is no call" if needs_tool else "no tool fits and the answer is a call"
        return Verdict("ast", False, "ast", reason)
    misfit = find_misfit(calls or [], as_tools(example.tools))
    return Verdict("ast", False, misfit.fault, misfit.reason) if misfit else Verdict("ast", True)

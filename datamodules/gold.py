"""Gold answers that no run can reward: the tokenizer does not return them unchanged, or the reward refuses them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from heapq import merge
from typing import Any

import pyarrow.compute as pc
from transformers import PreTrainedTokenizerFast

from datamodules.chat.form import PAPER, ChatForm
from datamodules.chat.segments import target_text
from datamodules.encoding import BadRows, EncodedRows
from datamodules.example import BadRow, Example
from datamodules.xlam import bad_row
from rewards import FunctionCallReward


def check_gold(
    rows: EncodedRows,
    path: str,
    rewards: Sequence[FunctionCallReward],
    learnt: bool,
    form: ChatForm = PAPER,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> EncodedRows:
    """Score the gold answers with the rewards of the run, as the tokenizer returns them once they are encoded.

    Of rows in the Python form only those are scored that answer with text or whose text the tokenizer changes: the
    others have passed the same rules already (`rows.check_example`).

    Args:
        rows: The rows.
        path: Where they are from, for the report.
        rewards: Those of the run; a row is good if any of them accepts its gold answer.
        learnt: Whether these rewards are all that the run learns from, so that a row that earns none is bad.
        form: How requests are put and answered.
        tokenizer: The tokenizer whose template writes calls, where the form says so.

    Returns:
        The rows without bad ones, which are reported: those whose answer the tokenizer changes into one that earns
        nothing and, if `learnt`, those that earn nothing anyhow. If not, the latter stay and are counted.
    """
    table = rows.table.data
    scored = pc.not_equal(table.column("answers"), "")  # the others are only to be predicted
    if form.answer_form == "python":
        suspects = pc.or_(pc.is_valid(table.column("returned")), pc.not_equal(table.column("response"), ""))
        scored = pc.and_(scored, suspects)
    places = pc.indices_nonzero(scored).to_pylist()
    bad: dict[int, BadRow] = {}
    unrewarded = 0
    for place, example, row in zip(places, rows.examples(places), rows.table.select(places), strict=True):
        gold = target_text(example, form, tokenizer)
        returned = gold if row["returned"] is None else row["returned"]
        if _accepted(example, returned, rewards):
            continue
        if _accepted(example, gold, rewards):
            reason = (
                f"this model's tokenizer returns the gold answer changed, and then it earns no reward: {returned[-80:]}"
            )
        elif learnt:
            rule = rewards[0].no_call
            hint = " (text accepts words)" if rule == "empty" and example.response else ""
            reason = f"as gold answer it earns no reward under model.reward.no_call {rule}{hint}: {gold[-80:]}"
        else:
            unrewarded += 1
            continue
        column = "response" if example.response and gold.endswith(example.response) else "answers"
        bad[place] = BadRow(column, reason)
    if bad:
        kept = [place for place in range(len(rows.table)) if place not in bad]
        all_bad = BadRows(len(rows.bad) + len(bad), partial(_in_order, rows, path, bad))
        rows = replace(rows, table=rows.table.select(kept), bad=all_bad)
    return replace(rows, unrewarded=unrewarded)


def _in_order(rows: EncodedRows, path: str, found: dict[int, BadRow]) -> Iterator[dict[str, Any]]:
    """The bad rows that were known and those found, by place among the good ones, in the order of the source."""
    ours = (
        bad_row(path, rows.table[place]["row"], error, asdict(rows.examples([place])[0]))
        for place, error in sorted(found.items())
    )
    return merge(rows.bad, ours, key=lambda row: row["row"])


def framed(reward: FunctionCallReward, example: Example, target: str) -> str:
    """A target in the form that a reward asks for.

    With a thought in front, a dash where the row has none, or without any; and with or without answer tags.
    """
    split = reward.think and example.cot
    thought, answer = target.split("</think>", 1) if split else ("", target)
    thought = f"{thought or '<think>-'}</think>\n\n" if reward.think else ""
    if reward.answer_tags == "answer":
        answer = f"<answer>{answer.strip()}</answer>"
    return thought + answer.lstrip()


def _accepted(example: Example, target: str, rewards: Sequence[FunctionCallReward]) -> bool:
    """Whether any of the rewards accepts a target, in the form that it asks for."""
    results = (reward(framed(reward, example, target), example.tools, example.answers) for reward in rewards)
    return any(result.parts["exact_match"] == 1 for result in results)

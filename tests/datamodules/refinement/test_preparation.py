import json
from dataclasses import replace

import pytest

from datamodules.example import Example
from datamodules.refinement import Panel, RuleJudge, funrl, write_cot
from datamodules.refinement.judging import Unanswered, Unfinished
from datamodules.rows import unchecked_example
from datamodules.toolbox.rows import make_corpus

TOOLS = json.dumps([{"name": "f", "description": "F", "parameters": {"a": {"type": "int"}}}])
ROW = Example("1", "Do f of 1", TOOLS, '[{"name": "f", "arguments": {"a": 1}}]')
RIGHT, WRONG = "<judge>True</judge>", "<judge>False</judge>"
NEEDED, NOT_NEEDED = "<tool>True</tool>", "<tool>False</tool>"


@pytest.mark.parametrize(
    "answers, reply, kept, fault",
    [
        (ROW.answers, RIGHT + NEEDED, True, ""),
        (ROW.answers, RIGHT + NOT_NEEDED, False, "ast"),  # no tool fits, but the answer is a call
        ("I did it.", RIGHT + NEEDED, False, "ast"),  # a tool is needed, but the answer is text
        ("I cannot.", RIGHT + NOT_NEEDED, True, ""),
        ("[]", RIGHT + NOT_NEEDED, True, ""),
        ("[f(a='1')]", RIGHT + NEEDED, False, "type"),
        ("[g()]", RIGHT + NEEDED, False, "function"),
        (ROW.answers, RIGHT, False, ""),  # does not say whether a tool is needed
        (ROW.answers, WRONG + NEEDED, False, "evaluate"),
        (ROW.answers, "hm", False, "evaluate"),
    ],
)
def test_evaluation_and_ast(answers, reply, kept, fault, scripted, run):
    outcome = run(funrl(replace(ROW, answers=answers), Panel([scripted(evaluate=reply)])))
    assert outcome.kept == kept and (outcome.kept or outcome.verdicts[-1].fault in (fault, ""))


def test_corrections_are_checked_again_and_bounded(scripted, run):
    wrong = f"{WRONG}{NEEDED}<NewFC>[f(a=1)]</NewFC>"
    judge = scripted(evaluate=[wrong, RIGHT + NEEDED])
    outcome = run(funrl(replace(ROW, answers="[f(a=2)]"), Panel([judge])))
    assert outcome.kept and outcome.example == ROW and len(judge.asked) == 2
    refused = replace(ROW, answers="[]", response="I cannot.")  # which is no part of a row that calls
    outcome = run(funrl(refused, Panel([scripted(evaluate=[wrong, RIGHT + NEEDED])])))
    assert outcome.kept and outcome.example == ROW
    judge, given = scripted(evaluate=wrong), replace(ROW, answers="[f(a=2)]")
    outcome = run(funrl(given, Panel([judge])))
    assert not outcome.kept and len(judge.asked) == 1 + 3  # more than three regenerations: dropped
    assert outcome.example == given


def test_the_corpus_is_prepared_by_rules(run):
    rows = [unchecked_example(row) for row in make_corpus("train", 150, 4)]
    assert all(run(funrl(row, Panel([RuleJudge()]))).kept for row in rows)
    swapped = [replace(row, answers="[]") for row in rows if row.answers != "[]"]
    assert not any(run(funrl(row, Panel([RuleJudge()]))).kept for row in swapped)


def test_a_teacher_writes_the_chain_of_thought(scripted, run):
    teacher = scripted(write_cot=["no thought", "<think>f, a is 1</think>\n\n[f(a=1)]"])
    outcome = run(write_cot(ROW, Panel([teacher])))
    assert outcome.kept and outcome.example == replace(ROW, cot="f, a is 1") and outcome.verdicts[0].replies == 2
    system, user = teacher.asked[0].messages
    assert user["content"] == ROW.query and '"name":"f"' in system["content"]  # as the model is trained to be asked
    assert [question.attempt for question in teacher.asked] == [0, 1]


def test_a_chain_of_thought_that_is_cut_is_asked_for_again(scripted, run):
    teacher = scripted(write_cot=[Unfinished("cut"), "<think>f</think>\n\n[f(a=1)]"])
    outcome = run(write_cot(ROW, Panel([teacher])))
    assert outcome.kept and outcome.verdicts[0].replies == 2
    outcome = run(write_cot(ROW, Panel([scripted(write_cot=Unfinished("cut"))]), regenerations=1))
    assert outcome.verdicts[0].passed is None and outcome.verdicts[0].reason == "no chain of thought: cut"


def test_rows_with_one_keep_theirs_and_a_silent_teacher_rejects(scripted, run):
    row = replace(ROW, cot="mine", answers="[broken(")
    teacher = scripted(write_cot=Unanswered("refused"))
    assert run(write_cot(row, Panel([teacher]))).example == row and not teacher.asked
    assert run(write_cot(ROW, Panel([teacher]))).verdicts[0].passed is None
    outcome = run(write_cot(ROW, Panel([scripted(write_cot="no")]), regenerations=1))
    assert not outcome.kept and "does not start with <think>" in outcome.verdicts[0].reason


def test_rules_fill_in_for_a_teacher(run):
    row = unchecked_example(make_corpus("train", 1, 5)[0])
    outcome = run(write_cot(replace(row, cot=""), Panel([RuleJudge()])))
    assert outcome.kept and "Offered: " in outcome.example.cot

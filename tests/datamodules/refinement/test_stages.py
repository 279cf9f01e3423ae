import json
from dataclasses import replace

import pytest

from datamodules.example import Example
from datamodules.refinement import Panel, fcdr
from rewards import as_calls

PARAMETERS = {"a": {"type": "int"}, "b": {"type": "str", "default": ""}}
TOOLS = json.dumps([{"name": "f", "description": "F", "parameters": PARAMETERS}])
ROW = Example("1", "Do f of 1", TOOLS, '[{"name": "f", "arguments": {"a": 1}}]', cot="f it is, a is 1")
NO = "<judge>False</judge>"


def corrected(text):
    return f"{NO}<NewFC>{text}</NewFC>"


def stages(outcome):
    return [(verdict.stage, verdict.passed) for verdict in outcome.verdicts]


def test_a_good_row_is_asked_about_three_times_and_kept(scripted, run):
    judge = scripted()
    outcome = run(fcdr(ROW, Panel([judge])))
    assert judge.stages == ["query", "cot", "call"]  # parser and schema decide the rest
    assert stages(outcome) == [(s, True) for s in ("response", "query", "cot", "call", "format", "row")]
    assert outcome.kept and outcome.example == ROW


def test_a_statement_is_saved_as_it_is(scripted, run):
    judge = scripted(response=NO)
    outcome = run(fcdr(replace(ROW, answers="I cannot do that."), Panel([judge])))
    assert outcome.kept and (outcome.example.answers, outcome.example.response) == ("[]", "I cannot do that.")
    assert judge.stages == ["response"] and outcome.verdicts[0].fault == ""  # it is none


def test_no_call_is_a_statement_that_no_judge_is_asked_about(scripted, run):
    judge = scripted()
    outcome = run(fcdr(replace(ROW, answers="[]"), Panel([judge])))
    assert outcome.kept and outcome.example.answers == "[]" and not judge.asked


@pytest.mark.parametrize("stage, asked", [("query", ["query"]), ("cot", ["query", "cot"])])
def test_stages_2_and_3_drop(scripted, run, stage, asked):
    judge = scripted(**{stage: corrected("[f(a=1)]")})  # a correction that was not asked for changes nothing
    outcome = run(fcdr(ROW, Panel([judge])))
    assert not outcome.kept and outcome.verdicts[-1].fault == stage and judge.stages == asked


def test_stage_4_regenerates_and_checks_again_from_stage_3_on(scripted, run):
    judge = scripted(call=[corrected("[f(a=2)]"), "<judge>True</judge>"])
    outcome = run(fcdr(ROW, Panel([judge])))
    assert judge.stages == ["query", "cot", "call", "cot", "call"]
    assert outcome.kept and as_calls(outcome.example.answers)[0].arguments == {"a": 2}


def test_a_regenerated_answer_to_which_the_chain_of_thought_does_not_lead_is_dropped(scripted, run):
    judge = scripted(call=corrected("[f(a=2)]"), cot=["<judge>True</judge>", NO])
    outcome = run(fcdr(ROW, Panel([judge])))
    assert not outcome.kept and outcome.verdicts[-1].stage == "cot" and outcome.example == ROW


@pytest.mark.parametrize("regenerations", [0, 2])
def test_regenerations_are_bounded(scripted, run, regenerations):
    judge = scripted(call=corrected("[f(a=2)]"))
    outcome = run(fcdr(ROW, Panel([judge]), regenerations))
    assert not outcome.kept and judge.stages.count("call") == 1 + regenerations


def test_the_schema_is_believed_over_the_judge(scripted, run):
    row = replace(ROW, answers='[{"name": "f", "arguments": {"a": "1"}}]')
    judge = scripted(call=["<judge>True</judge><NewFC>[f(a=1)]</NewFC>"])
    outcome = run(fcdr(row, Panel([judge])))
    verdict = outcome.verdicts[-1]
    assert not outcome.kept and verdict.fault == "type"
    assert verdict.reason == "'a' of 'f' is declared 'int' and given '1'"
    assert judge.asked[-1].finding == verdict.reason and verdict.reason in judge.asked[-1].messages[0]["content"]
    for silent_or_against in ("hm", f"{NO}<fault>function</fault>"):
        verdict = run(fcdr(row, Panel([scripted(call=silent_or_against)]))).verdicts[-1]
        assert (verdict.passed, verdict.fault) == (False, "type")
    mended = run(fcdr(row, Panel([scripted(call=[corrected("[f(a=1)]"), "<judge>True</judge>"])])))
    assert mended.kept and mended.example == ROW


def test_stage_5_is_decided_by_the_parser_and_mended_by_a_judge(scripted, run):
    judge = scripted(format=["<judge>True</judge>", corrected("[f(a=1)]")])
    row = replace(ROW, answers="[f(a=1)")
    outcome = run(fcdr(row, Panel([judge])))
    assert outcome.verdicts[-1].stage == "format" and not outcome.kept  # True, and no correction
    outcome = run(fcdr(row, Panel([scripted(format=corrected("[f(a=1)]"))])))
    assert outcome.kept and outcome.example == ROW
    assert not run(fcdr(row, Panel([scripted(format=corrected("[]"))]))).kept  # a correction that calls nothing


def test_no_judgement_rejects(scripted, run):
    outcome = run(fcdr(ROW, Panel([scripted(cot="hm")])))
    assert not outcome.kept and outcome.verdicts[-1].passed is None
    judges = [scripted(), scripted(call="hm"), against := scripted(call=corrected("[f(a=2)]"))]
    outcome = run(fcdr(ROW, Panel(judges, "majority")))  # one for, one against: the second decides, and says nothing
    assert not outcome.kept and outcome.verdicts[-1].passed is None and against.stages.count("call") == 1
    outcome = run(fcdr(replace(ROW, answers="f of one"), Panel([scripted(response="hm")])))
    assert not outcome.kept and stages(outcome) == [("response", None)]


def test_what_training_would_refuse_is_not_kept(scripted, run):
    for answer in ("Say [f(a=1)]", '[{"name": "f", "arguments": {"a": 1}, "note": "x"}]'):
        outcome = run(fcdr(replace(ROW, answers=answer, cot=""), Panel([scripted(response=NO)])))
        assert not outcome.kept and outcome.verdicts[-1].reason.startswith("looks like a call, where no tool is called")
    assert run(fcdr(replace(ROW, answers="I would say f of 1.", cot=""), Panel([scripted(response=NO)]))).kept
    outcome = run(fcdr(replace(ROW, cot=""), Panel([scripted()])))
    assert (outcome.kept, outcome.verdicts[-1].stage, outcome.verdicts[-1].replies) == (False, "cot", 0)

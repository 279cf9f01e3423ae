import json
from dataclasses import replace

import pytest

from datamodules.example import Example
from datamodules.refinement import RuleJudge
from datamodules.refinement.judging import Question, read_reply

PARAMETERS = {"street": {"type": "str"}}


def offer(*tools):
    return json.dumps([{"name": n, "description": d, "parameters": p} for n, d, p in tools])


def row(query, tools, *calls):
    answers = json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls])
    return Example("1", query, tools, answers, cot="so be it")


def words(run, stage, example):
    return read_reply(run(RuleJudge()(Question(stage, example)))).words


@pytest.mark.parametrize("number", range(8))  # of names: whatever order a set has them in, it is wrong for some
def test_the_function_that_is_not_asked_for_is_named(number, run):
    payslip, parking, workdays = f"get_payslip_{number}", f"find_parking_{number}", f"count_workdays_{number}"
    tools = offer((payslip, "Get the payslip.", {}), (parking, "Find parking.", PARAMETERS))
    wrong = {"street": "14 Ashton Street"}
    example = row("Get the payslip, and count the working days", tools, (payslip, {}), (parking, wrong))
    assert words(run, "call", example) == f"The request does not ask for {parking!r}."
    # A tool that is not called fits better: of the one that is asked for that is true as well, but nothing is wrong
    # with it. Get, payslip: 2 words; count, working, days: 3.
    example = replace(example, tools=offer(*map(tuple_of, json.loads(tools)), (workdays, "Count working days.", {})))
    assert words(run, "call", example) == f"The request does not ask for {parking!r}."


def tuple_of(tool):
    return tool["name"], tool["description"], tool["parameters"]


def test_a_function_that_fits_worse_than_one_not_called(run):
    # "the" and "for" do not count: play, music: 2 words of 3; play, music, rain: all 3.
    tools = offer(("play_music", "Play music for parties.", {}), ("play_rain", "Play music for rain.", {}))
    example = row("Play music for the rain", tools, ("play_music", {}))
    expected = "The request fits 'play_rain', which is not called, better than 'play_music'."
    assert words(run, "call", example) == expected


def test_a_value_in_another_type(run):
    tools = offer(("set_alarm", "Set an alarm.", {"hour": {"type": "int"}}))
    example = row("Set an alarm for 7", tools, ("set_alarm", {"hour": "7"}))
    expected = "A value is not written in its declared type: 'hour' of 'set_alarm' is declared 'int' and given '7'."
    assert words(run, "call", example) == expected


def test_what_cannot_be_read_is_not_said_to_be_readable(run):
    example = replace(row("Set an alarm", offer(("set_alarm", "Set an alarm.", {}))), answers="[set_alarm")
    assert words(run, "format", example) == "No calls can be read."

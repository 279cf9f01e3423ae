import json
from dataclasses import asdict

import pytest

from datamodules.example import Example
from lightning_modules.play.opened import open_rows, reference_of
from lightning_modules.rollout.rollout import Rollout
from rewards import FunctionCallReward

TOOLS, CALLS = '[{"name": "f", "description": "", "parameters": {}}]', '[{"name": "f", "arguments": {}}]'


def rollout(query, answers, completion):
    result = FunctionCallReward()(completion, TOOLS, answers)
    return Rollout(Example("1", query, TOOLS, answers), completion, result.parsed, result, 9, 5, "stop")


def test_samples_of_a_run_are_opened_with_what_was_answered(tmp_path):
    samples = [rollout("Do f.", CALLS, "<think>ok</think>\n\n[f()]"), rollout("Rain?", "[]", "no")]
    file = tmp_path / "samples.jsonl"
    rows = [json.dumps({"step": step} | sample.as_row()) for step in (10, 20) for sample in samples]
    file.write_text("\n".join(rows))
    opened, bad = open_rows(str(file))
    assert bad == 0 and [row.example.query for row in opened] == ["Do f.", "Rain?"] * 2
    assert opened[2].recorded == {"step": 20, "completion": samples[0].text, "score": 1.0} and opened[2].number == 3
    assert json.loads(opened[0].example.answers) == json.loads(CALLS) and opened[1].example.answers == "[]"
    assert [reference_of(row.example) for row in opened[:2]] == ["[f()]", "[]"]


def test_rows_of_any_form_are_opened_and_bad_ones_counted(tmp_path):
    file = tmp_path / "rows.jsonl"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    chat = {"messages": [{"role": "user", "content": "Do f."}], "tools": [tool]}
    xlam = asdict(Example("1", "Do it.", TOOLS, CALLS))
    file.write_text("\n".join([json.dumps(chat), "{", json.dumps(xlam)]))
    opened, bad = open_rows(str(file))
    assert [(row.number, row.example.query, row.recorded) for row in opened] == [(1, "Do f.", {}), (3, "Do it.", {})]
    assert bad == 1 and reference_of(opened[0].example) == ""
    assert len(open_rows("toolbox:heldout:20", most=7)[0]) == 7
    file.write_text("{}\n{}\n")
    with pytest.raises(ValueError, match="none of the first 2 rows can be used; row 1"):
        open_rows(str(file))

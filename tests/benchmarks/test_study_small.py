"""The small scale of the study: its rows and its list of runs."""

import json
import random
import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are run from the repository and not installed
from benchmarks.study_papers import CLAIMS
from benchmarks.study_small import LOOPS, REINFORCED, SUPERVISED, lengthened, made_rows, made_up, runs
from rewards import FunctionCallReward


def test_every_arm_of_a_claim_is_run_and_every_start_before_what_starts_from_it():
    planned = runs(False, [1, 2])
    keys = [(run.arm, run.seed) for run in planned]
    assert len(keys) == len(set(keys)) == 1 + 2 * (len(SUPERVISED) + len(REINFORCED) + len(LOOPS))
    assert {arm for claim in CLAIMS if claim.scale == "small" for arm in claim.weights} <= {arm for arm, _ in keys}
    for run in planned:
        assert run.after is None or keys.index((run.after, run.seed)) < keys.index((run.arm, run.seed))


def test_rows_are_those_of_their_seed_and_their_answers_are_right():
    rows = made_rows("mixed", 12, seed=3)
    assert rows == made_rows("mixed", 12, seed=3) != made_rows("mixed", 12, seed=4)
    reward = FunctionCallReward()
    for row in rows:
        calls = ", ".join(
            f"{c['name']}({', '.join(f'{k}={v!r}' for k, v in c['arguments'].items())})"
            for c in json.loads(row["answers"])
        )
        completion = f"<think>{row['cot']}</think>\n\n[{calls}]"
        assert reward(completion, row["tools"], row["answers"]).score == 1


def test_made_up_functions_have_something_that_a_request_must_give():
    for function in islice(made_up(random.Random(0)), 20):
        assert any(p.default is None and p.kind != "flag" for p in function.parameters)


def test_a_long_chain_of_thought_goes_through_the_tools_first():
    tools = [{"name": "f", "description": "Do it.", "parameters": {"a": {}, "b": {}}}]
    row = {"tools": json.dumps(tools), "cot": "Needed is f.", "answers": "[]"}
    assert lengthened(row) == row | {"cot": "f: Do it. It takes a, b.\nNeeded is f."}

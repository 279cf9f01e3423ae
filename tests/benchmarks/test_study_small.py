"""The small scale of the study: its rows and its list of runs."""

import json
import random
import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are run from the repository and not installed
from benchmarks.study_papers import CLAIMS
from benchmarks.study_small import (
    ANSWER_TOKENS,
    BASE,
    CONTINUED,
    LONG_ANSWER_TOKENS,
    LOOPS,
    REINFORCED,
    SUPERVISED,
    TEST_ROWS,
    runs,
)
from benchmarks.study_small_rows import lengthened, made_rows, made_up
from datamodules.chat.tokenizer import load_tokenizer
from datamodules.toolbox.rows import make_corpus
from rewards import FunctionCallReward, as_calls, render_calls


def rendered(row):
    return render_calls(as_calls(row["answers"]))


def test_every_arm_of_a_claim_is_run_and_every_start_before_what_starts_from_it():
    planned = runs(False, [1, 2])
    keys = [(run.arm, run.seed) for run in planned]
    assert len(keys) == len(set(keys)) == 1 + 2 * sum(map(len, (SUPERVISED, CONTINUED, REINFORCED, LOOPS)))
    assert {arm for claim in CLAIMS if claim.scale == "small" for arm in claim.weights} <= {arm for arm, _ in keys}
    for run in planned:
        assert run.after is None or keys.index((run.after, run.seed)) < keys.index((run.arm, run.seed))


def test_rows_are_those_of_their_seed_and_their_answers_are_right():
    rows = made_rows("mixed", 12, seed=3)
    assert rows == made_rows("mixed", 12, seed=3) != made_rows("mixed", 12, seed=4)
    reward = FunctionCallReward()
    for row in rows:
        completion = f"<think>{row['cot']}</think>\n\n{rendered(row)}"
        assert reward(completion, row["tools"], row["answers"]).score == 1


def test_made_up_functions_have_something_that_a_request_must_give():
    for function in islice(made_up(random.Random(0)), 20):
        assert any(p.default is None and p.kind != "flag" for p in function.parameters)


def test_a_long_chain_of_thought_goes_through_the_tools_first():
    parameters = {"a": {"type": "int", "description": "The a."}, "b": {"type": "str", "description": "The b."}}
    tools = [{"name": "f", "description": "Do it.", "parameters": parameters}]
    row = {"tools": json.dumps(tools), "cot": "Needed is f.", "answers": "[]"}
    assert lengthened(row) == row | {"cot": "f: Do it.\na is int: The a.\nb is str: The b.\nNeeded is f."}


def test_right_answers_to_rows_of_the_tests_have_room():
    tokenizer = load_tokenizer(str(BASE))
    for split, count in TEST_ROWS.items():
        rows = make_corpus(split, count, 1)
        for limit, kind in ((ANSWER_TOKENS, rows), (LONG_ANSWER_TOKENS, map(lengthened, rows))):
            texts = [f"<think>{row['cot']}</think>\n\n{rendered(row)}" for row in kind]
            assert max(len(ids) for ids in tokenizer(texts)["input_ids"]) < limit  # and the end token

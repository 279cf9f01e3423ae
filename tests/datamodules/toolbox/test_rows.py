import json
import subprocess
import sys
from collections import Counter

import pytest

from datamodules.toolbox.catalogue import FUNCTIONS, parse_catalogue
from datamodules.toolbox.rows import SPLITS, make_corpus, promise, request_text
from datamodules.toolbox.values import BANKS, sample_value
from rewards import FunctionCallReward, as_calls, category_of, render_calls

TYPES = {"str": str, "int": int, "float": float, "bool": bool, "List[str]": list, "List[int]": list, "Dict": dict}


def values_of(rows):
    """Every argument value of a type that is never shared, as text."""
    for row in rows:
        tools = {tool["name"]: tool["parameters"] for tool in json.loads(row["tools"])}
        for call in as_calls(row["answers"]):
            for name, value in call.arguments.items():
                schema = tools[call.name][name]
                enumeration = ": " in schema["description"]
                if schema["type"].startswith("str") and not enumeration:
                    yield call.name, name, value


def test_the_catalogue_is_as_large_as_it_says():
    assert len({function.name for function in FUNCTIONS}) == 240
    assert len({function.domain for function in FUNCTIONS}) == 24
    assert sum(function.unseen for function in FUNCTIONS) == 24
    kinds = {parameter.type for function in FUNCTIONS for parameter in function.parameters}
    assert kinds >= {name for name in TYPES if name != "bool"} | {"bool, optional"}


def test_a_catalogue_line_is_read_as_written():
    (function,) = parse_catalogue("# travel\nrent | rent a car | days:int(1,30)=3 for {} days | owner:person by {}")
    assert function.tool() == {
        "name": "rent",
        "description": "Rent a car.",
        "parameters": {
            "days": {"description": "The days, 1 to 30.", "type": "int, optional", "default": 3},
            "owner": {"description": "The owner, a person.", "type": "str"},
        },
    }


def test_a_bad_catalogue_line_is_named():
    with pytest.raises(ValueError, match="'days-int for'"):
        parse_catalogue("# travel\nrent | rent a car | days-int for")


def test_a_request_says_every_argument():
    (function,) = parse_catalogue(
        "# x\nplan | plan a route | stops:list(city) through {} | tolls:flag=False with tolls"
    )
    import random

    text = request_text(function, {"stops": ["Ashford", "Elmby", "Dunton"], "tolls": True}, random.Random(0))
    assert text == "plan a route through Ashford, Elmby and Dunton with tolls"


@pytest.mark.parametrize("split", SPLITS)
def test_every_row_answers_its_query(split):
    rows = make_corpus(split, 500, seed=3)
    assert len({row["id"] for row in rows}) == 500
    reward = FunctionCallReward()
    for row in rows:
        calls = as_calls(row["answers"])
        completion = f"<think>{row['cot']}</think>\n\n{render_calls(calls)}"
        assert reward(completion, row["tools"], row["answers"]).score == 1.0
        assert all(f"\n{call.name}: " in row["cot"] for call in calls)
        offered = {tool["name"]: tool["parameters"] for tool in json.loads(row["tools"])}
        for call in calls:
            required = {name for name, schema in offered[call.name].items() if "optional" not in schema["type"]}
            assert required <= set(call.arguments) <= set(offered[call.name])
            for name, value in call.arguments.items():
                assert type(value) is TYPES[offered[call.name][name]["type"].removesuffix(", optional")]
                assert f"{name}={value!r}" in row["cot"]


def test_all_categories_occur_and_are_what_they_say():
    rows = make_corpus("train", 2000, seed=0)
    counts = Counter(row["category"] for row in rows)
    assert set(counts) == {"simple", "multiple", "parallel", "parallel_multiple", "irrelevance"}
    assert min(counts.values()) > 120
    for row in rows:
        calls = as_calls(row["answers"])
        if row["category"] == "parallel":
            assert len(calls) > 1 and len({call.name for call in calls}) == 1
        elif row["category"] == "parallel_multiple":
            assert len({call.name for call in calls}) == len(calls) > 1
        else:
            assert category_of(row["answers"], row["tools"]) == row["category"]


def test_splits_share_no_open_value_and_no_query():
    train, heldout = make_corpus("train", 4000, seed=0), make_corpus("heldout", 1000, seed=0)
    assert not set(values_of(train)) & set(values_of(heldout))
    assert not {row["query"] for row in train} & {row["query"] for row in heldout}
    assert not {row["query"].split()[0] for row in train} & {row["query"].split()[0] for row in heldout}


def test_unseen_functions_are_never_offered_in_training():
    unseen = {function.name for function in FUNCTIONS if function.unseen}
    offered = {tool["name"] for row in make_corpus("train", 3000, seed=1) for tool in json.loads(row["tools"])}
    assert not offered & unseen and len(offered) == 216
    assert {tool["name"] for row in make_corpus("unseen", 400, seed=1) for tool in json.loads(row["tools"])} == unseen


def test_every_kind_can_be_drawn_for_either_share():
    import random

    rng = random.Random(0)
    kinds = {(p.kind, p.options) for function in FUNCTIONS for p in function.parameters}
    for kind, options in kinds:
        for held_out in (False, True):
            sample_value(kind, options, rng, held_out)
    assert all(len(words) >= 7 for words in BANKS.values())


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="no split 'dev': choose one of train, habits, hard, heldout, unseen"):
        make_corpus("dev", 1, seed=0)


def test_the_command_writes_the_same_rows_in_every_process(tmp_path):
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for hash_seed, file in enumerate(files):
        command = [sys.executable, "-m", "datamodules.toolbox", "--seed", "5", "--rows", "40", "--out", str(file)]
        done = subprocess.run(
            command, env={"PYTHONHASHSEED": str(hash_seed), "PATH": ""}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith(str(file))
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [json.loads(line) for line in files[0].read_text().splitlines()] == make_corpus("heldout", 40, seed=5)


def test_habits_promise_some_of_their_calls_and_hard_rows_offer_or_ask_for_several():
    rows = make_corpus("habits", 1000, seed=3)
    promised = [row for row in rows if row.get("response")]
    assert all(row["answers"] == "[]" and row["cot"].startswith("Soon. ") for row in promised)
    assert not any(row["cot"].startswith("Soon. ") for row in rows if row not in promised)
    assert 260 < len(promised) < 342  # 0.35 of the 860 that have calls: 301 expected, standard deviation 14
    for row in make_corpus("hard", 200, seed=3):
        assert row["category"] != "simple"
        assert len(json.loads(row["tools"])) > 1 or row["category"] in ("parallel", "irrelevance")


def test_a_promise_names_each_function_once_and_calls_none():
    calls = [{"name": name, "arguments": {"a": 1}} for name in ("f", "g", "f")]
    row = {"id": "1", "cot": "Needed is f, g, f.", "answers": json.dumps(calls)}
    assert promise(row) == {
        "id": "1",
        "cot": "Soon. Needed is f, g, f.",
        "answers": "[]",
        "response": "I will call f and g.",
    }
    nothing = {"id": "2", "cot": "None of them does this.", "answers": "[]"}
    assert promise(nothing) == nothing

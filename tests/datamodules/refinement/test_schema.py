import json
from collections import Counter

import pytest

from datamodules.readers import read_rows
from datamodules.refinement.schema import cast_to_types, find_misfit, parameters
from rewards import Call

TYPES = {"str": "", "int": 0, "float": 0.0, "bool": True, "List[int]": [1], "Dict[str, float]": {"a": 1.0}}


def tool(**types):
    return {"name": "f", "parameters": {name: {"type": text} for name, text in types.items()}}


@pytest.mark.parametrize(
    "declared, value, fits",
    [
        *(
            (text, value, a == b)
            for a, text in enumerate(TYPES)
            for b, value in enumerate(TYPES.values())
            if (a, b) != (2, 1)
        ),
        ("float", 3, True),  # an integer may stand for a float
        ("int", True, False),
        ("int, optional", 3, True),
        ("Optional[int]", None, True),
        ("int", None, False),
        ("int, optional", None, True),
        ("Union[int, str]", "a", True),
        ("int | str", 1.5, False),
        ("List[Union[int, float]]", [1, 1.5], True),
        ("List[Union[int, float]]", ["1"], False),
        ("List[List[int]]", [[1], [2]], True),
        ("List[List[int]]", [["a"]], False),
        ("Tuple[float, float]", [1.0, "a"], True),  # the items of tuples are not looked at
        ("Dict[str, int]", {"a": "b"}, False),
        ("set", [1], True),
        ("datetime", 5, True),  # not understood
        ("any", {"a": 1}, True),
        ("int, default=100", 3, True),
    ],
)
def test_types(declared, value, fits):
    misfit = find_misfit([Call("f", {"a": value})], [tool(a=declared)])
    assert (misfit is None) == fits
    assert fits or misfit.fault == "type"


def test_names():
    tools = [tool(a="int", b="int, optional")]
    assert find_misfit([Call("g", {})], tools).fault == "function"
    assert find_misfit([Call("f", {})], tools).reason == "'f' is not given its required parameter 'a'"
    assert find_misfit([Call("f", {"a": 1, "c": 1})], tools).reason == "'f' has no parameter 'c'"
    assert find_misfit([Call("f", {"a": 1})], tools) is None


def test_json_schema():
    declared = {"properties": {"a": {"type": "array", "items": {"type": "number"}}, "b": {"type": ["string", "null"]}}}
    schema = {"name": "f", "parameters": {"type": "object", **declared, "required": ["a"]}}
    assert parameters(schema)[1] == ["a"]
    assert find_misfit([Call("f", {"a": [1, 2.5], "b": None})], [schema]) is None
    assert find_misfit([Call("f", {"a": ["x"]})], [schema]).fault == "type"
    assert find_misfit([Call("f", {"b": "x"})], [schema]).fault == "parameter"


@pytest.mark.parametrize(
    "declared, value, cast",
    [
        ("int", "3", 3),
        ("int", "3.5", "3.5"),  # would lose something
        ("int", 3.0, 3),
        ("int", "three", "three"),
        ("float", "-2.5", -2.5),
        ("bool", "True", True),
        ("str", 12, "12"),
        ("str", True, True),
        ("List[int]", "1, 2", [1, 2]),
        ("List[int]", ["1", 2], [1, 2]),
        ("List[str]", "Paris, Rome", ["Paris", "Rome"]),
        ("Dict", "x", "x"),
    ],
)
def test_cast(declared, value, cast):
    result = cast_to_types([Call("f", {"a": value})], [tool(a=declared)])[0].arguments["a"]
    assert (result, type(result)) == (cast, type(cast))


def test_contradictions_of_the_real_rows_are_found(shared_data):
    """Against an oracle that knows only the plain types, on the calls that can be read."""
    plain = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict}
    ours, oracle = Counter(), Counter()
    for number, line in read_rows(str(shared_data / "toolrl_r1_cot.jsonl")):
        row = json.loads(line)
        tools = {t["name"]: t for t in json.loads(row["tools"])}
        for call in json.loads(row["answers"]):
            misfit = find_misfit([Call(**call)], list(tools.values()))
            ours[number] += misfit is not None
            oracle[number] += call["name"] not in tools
            if call["name"] in tools:
                declared = tools[call["name"]]["parameters"]
                known = {k: plain.get(str(v["type"]).split(",")[0].split("[")[0].lower()) for k, v in declared.items()}
                oracle[number] += any(
                    isinstance(v, bool) != (known[k] is bool) or not isinstance(v, known[k])
                    for k, v in call["arguments"].items()
                    if known.get(k) and v is not None
                )
    assert (sum(map(bool, ours.values())), sum(map(bool, oracle.values()))) == (
        35,
        28,
    )  # the others in lists, or in names
    assert all(ours[number] for number, wrong in oracle.items() if wrong)


def test_contradictions_of_single_arguments_of_the_real_rows(shared_data):
    """Against an oracle of the plain types, which knows nothing of lists of a type, tuples and callables."""
    plain = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict}
    counts = Counter()
    for _, line in read_rows(str(shared_data / "toolrl_r1_cot.jsonl")):
        row = json.loads(line)
        tools = {tool["name"]: tool for tool in json.loads(row["tools"])}
        for call in json.loads(row["answers"]):
            misfit = find_misfit([Call(**call)], list(tools.values()))
            counts["not offered"] += misfit is not None and misfit.fault == "function"
            declared = tools[call["name"]]["parameters"] if call["name"] in tools else {}
            for name, value in call["arguments"].items():
                if name in declared:
                    counts["typed"] += 1
                    tool = {"name": "f", "parameters": {name: declared[name]}}
                    found = find_misfit([Call("f", {name: value})], [tool]) is not None
                    known = plain.get(str(declared[name]["type"]).split(",")[0].split("[")[0].lower())
                    same = value is None or not known or isinstance(value, known)
                    same = same and isinstance(value, bool) <= (known in (bool, None))  # a bool is no int
                    counts["found"] += found
                    counts["wrong"] += not same
                    assert found or same, (call["name"], name)
    assert counts == {"typed": 676, "found": 66, "wrong": 57, "not offered": 2}

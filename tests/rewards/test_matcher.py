"""Which calls count as equal: names, types, values, number and order."""

import json

import pytest

from rewards import Call, MatchResult, category_of, differences, match_calls


def matched(predicted, expected, declared="Any"):
    tools = [{"name": "f", "parameters": {"a": {"type": declared}}}]
    return match_calls([Call("f", {"a": predicted})], [Call("f", {"a": expected})], tools).matched


EQUAL = [
    (1, 1),
    (1.0, 1.0),
    (1e3, 1000.0),
    (-0.0, 0.0),
    (True, True),
    (None, None),
    ("", ""),
    ("é", "é"),
    ([], []),
    ((1, 2), [1, 2]),
    ([1, (2,)], [1, [2]]),
    ({}, {}),
    ({"x": 1, "y": [2.0]}, {"y": [2.0], "x": 1}),
    (10**300, 10**300),
]
DIFFERENT = [
    (1, 2),
    (1, 1.0),
    (1, True),
    (0, False),
    (1.0, True),
    (0.0, False),
    (0, None),
    (False, None),
    ("", None),
    ("None", None),
    ("null", None),
    ([], None),
    ({}, None),
    ([], {}),
    ([], ""),
    ("1", 1),
    ("1.0", 1.0),
    ("True", True),
    ("true", True),
    ("[1]", [1]),
    ("a", "A"),
    ("a", "a "),
    ("a", " a"),
    ("a", "a\n"),
    ("New York, NY", "New York NY"),
    ("1.5", "15"),
    ("it's", 'it"s'),
    ("\u00e9", "e\u0301"),  # one letter composed (NFC), the same decomposed (NFD)
    ("\ufb01", "fi"),
    ("x", ["x"]),
    ([1], 1),
    ([1], [True]),
    ([1], [1.0]),
    ([1, 2], [2, 1]),
    ([1], [1, 1]),
    ([1, 1], [1]),
    ([[1]], [1]),
    ([[]], []),
    ([None], []),
    ({"x": 1}, {"x": True}),
    ({"x": 1}, {"x": 1.0}),
    ({"x": 1}, {"X": 1}),
    ({"x": 1}, {"x": 1, "y": None}),
    ({"x": 1, "y": 2}, {"x": 1}),
    ({"x": {"y": 1}}, {"x": {"y": 2}}),
    ({"x": 1}, [["x", 1]]),
    ({"0": 1}, [1]),
    ([{"x": [0]}], [{"x": [False]}]),
    (0.1 + 0.2, 0.3),
    (2**53, 2**53 + 1),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
@pytest.mark.parametrize("declared", ["Any", "float"])
def test_equal_values(one, other, declared):
    assert matched(one, other, declared)
    assert matched(other, one, declared)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
@pytest.mark.parametrize("declared", ["int", "str", "bool", "Any"])
def test_different_values(one, other, declared):
    assert not matched(one, other, declared)
    assert not matched(other, one, declared)


FLOAT_TYPES = [
    ("float", 5, 5.0),
    ("Float", 5, 5.0),
    ("float, optional", 5, 5.0),
    ("float, default=1.0", 5, 5.0),
    ("float (optional)", 5, 5.0),
    (" float ", 5, 5.0),
    ("number", 5, 5.0),
    ("double", 5, 5.0),
    ("Optional[float]", 5, 5.0),
    ("Union[int, float]", 5, 5.0),
    ("Union[str, float], optional", 5, 5.0),
    ("float | None", 5, 5.0),
    ("List[float]", [1, 2.0], [1.0, 2]),
    ("List[float], optional", [1], [1.0]),
    ("list[float]", [1], [1.0]),
    ("List[Union[int, float]]", [1], [1.0]),
    ("List[List[float]]", [[1], []], [[1.0], []]),
    ("Optional[List[float]], optional", [1], [1.0]),
    ("Tuple[float, float]", [1, 2], [1.0, 2.0]),
    ("Tuple[float, ...]", [1, 2, 3], [1.0, 2.0, 3.0]),
    ("Tuple[str, float]", ["x", 2], ["x", 2.0]),
    ("Dict[str, float]", {"x": 1}, {"x": 1.0}),
    ("Dict[str, List[float]]", {"x": [1]}, {"x": [1.0]}),
    ("List[Dict[str, float]]", [{"x": 1}], [{"x": 1.0}]),
    ("List[Tuple[str, float]]", [["x", 1]], [["x", 1.0]]),
]
INT_TYPES = [
    ("int", 5, 5.0),
    ("int, optional", 5, 5.0),
    ("str", 5, 5.0),
    ("", 5, 5.0),
    ("int, float", 5, 5.0),  # the first comma outside brackets ends the type
    ("List[float]", 5, 5.0),
    ("float", [5], [5.0]),
    ("List[int]", [5], [5.0]),
    ("List", [5], [5.0]),
    ("List[List[float]]", [5], [5.0]),
    ("Tuple[int, float]", [1, 2], [1.0, 2]),
    ("Dict[str, float]", [1], [{"x": 1.0}]),
    ("Dict[float, str]", {"x": 1}, {"x": 1.0}),
    ("Dict", {"x": 1}, {"x": 1.0}),
    ("floating", 5, 5.0),
    ("List[float", 5, 5.0),
    ("]float[", 5, 5.0),
    ("[" * 5000, 5, 5.0),
    ("List[" * 5000 + "float", 5, 5.0),
    ("float", True, 1.0),
    ("float", False, 0),
    ("float", "5", 5.0),
    ("float", 5, 5.1),
    ("float", 2**53 + 1, float(2**53)),  # compared exactly, not after rounding to a float
    ("List[float]", [True], [1.0]),
    ("Dict[str, float]", {"x": True}, {"x": 1}),
]


@pytest.mark.parametrize(("declared", "one", "other"), FLOAT_TYPES)
def test_integers_stand_for_floats_where_the_tool_declares_floats(declared, one, other):
    assert matched(one, other, declared)
    assert matched(other, one, declared)


@pytest.mark.parametrize(("declared", "one", "other"), INT_TYPES, ids=lambda value: repr(value)[:40])
def test_and_nowhere_else(declared, one, other):
    assert not matched(one, other, declared)
    assert not matched(other, one, declared)


NUMBER = {"type": "number"}


@pytest.mark.parametrize(
    ("schema", "leaves"),
    [
        (NUMBER, 0),
        ({"type": ["number", "null"]}, 0),
        ({"anyOf": [{"type": "string"}, NUMBER]}, 0),
        ({"type": "array", "items": NUMBER}, 1),
        ({"type": "array", "items": {"type": "float"}}, 1),
        ({"type": "array", "items": {"type": "array", "items": NUMBER}}, 2),
    ],
)
def test_json_schema_types(schema, leaves):
    def wrap(value, times):
        return wrap([value], times - 1) if times else value

    for parameters in (
        {"type": "object", "properties": {"a": schema}, "required": ["a"]},
        {"type": "dict", "properties": {"a": schema}},
        {"properties": {"a": schema}},
        {"a": schema},
    ):
        tools = [{"name": "f", "parameters": parameters}]
        for wrapped in range(3):
            verdict = match_calls(
                [Call("f", {"a": wrap(5, wrapped)})], [Call("f", {"a": wrap(5.0, wrapped)})], json.dumps(tools)
            )
            assert verdict.matched == (wrapped == leaves)


def test_nested_properties():
    point = {"type": "object", "properties": {"x": NUMBER, "n": {"type": "integer"}}}
    tools = [{"name": "f", "parameters": {"type": "object", "properties": {"a": point}}}]
    gold = [{"name": "f", "arguments": {"a": {"x": 1.0, "n": 1}}}]
    assert match_calls([Call("f", {"a": {"x": 1, "n": 1}})], gold, tools).matched
    assert not match_calls([Call("f", {"a": {"x": 1, "n": 1.0}})], gold, tools).matched


def object_of(**properties):
    return {"type": "object", "properties": properties}


POINT = {"type": "object", "properties": {"x": NUMBER, "n": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("parameters", "one", "other"),
    [
        (object_of(a={"$ref": "#/$defs/P"}) | {"$defs": {"P": NUMBER}}, 1, 1.0),
        (object_of(a={"$ref": "#/definitions/a~1b"}) | {"definitions": {"a/b": NUMBER}}, 1, 1.0),
        (
            object_of(a={"type": "array", "items": {"$ref": "#/$defs/P"}}) | {"$defs": {"P": POINT}},
            [{"x": 1}],
            [{"x": 1.0}],
        ),
        ({"$ref": "#/$defs/All", "$defs": {"All": object_of(a=NUMBER)}}, 1, 1.0),
        ({"a": {"allOf": [{"$ref": "#/a/of"}], "of": NUMBER}}, 1, 1.0),
        (object_of(a={"oneOf": [{"anyOf": [{"type": "null"}, NUMBER]}, {"type": "string"}]}), 1, 1.0),
        (object_of(a={"prefixItems": [{"type": "string"}, NUMBER]}), ["x", 1], ["x", 1.0]),
        (object_of(a={"items": [{"type": "string"}, NUMBER]}), ["x", 1], ["x", 1.0]),
        ({"type": "object", "additionalProperties": NUMBER}, 1, 1.0),
        (
            object_of(a={"children": {}, **object_of(v=NUMBER, of={"$ref": "#/properties/a"})}),
            {"of": {"v": 1}},
            {"of": {"v": 1.0}},
        ),
        (object_of(a=NUMBER, odd=None), 1, 1.0),
        (object_of(a=NUMBER, odd=True, text="string", many=[1]) | {"required": True}, 1, 1.0),
        ({"type": None, "properties": {"a": NUMBER, "odd": None}}, 1, 1.0),
    ],
)
def test_floats_are_found_through_references_and_beside_odd_nodes(parameters, one, other):
    tools = [{"name": "f", "parameters": parameters}]
    assert match_calls([Call("f", {"a": one})], [Call("f", {"a": other})], json.dumps(tools)).matched


@pytest.mark.parametrize(
    ("schema", "one", "other"),
    [
        ({"$ref": "#/$defs/Q"}, 1, 1.0),  # not there
        ({"$ref": "https://example.org/P"}, 1, 1.0),
        ({"$ref": ["#/$defs/P"]}, 1, 1.0),
        ({"$ref": "#/properties/a"}, 1, 1.0),  # itself
        ({"$ref": "#/$defs/P"}, {"n": 1}, {"n": 1.0}),
        ({"prefixItems": [NUMBER, {"type": "integer"}]}, [1, 1], [1, 1.0]),
        ({"anyOf": NUMBER}, [1], [1.0]),
    ],
)
def test_references_loosen_nothing_else(schema, one, other):
    tools = [{"name": "f", "parameters": object_of(a=schema, b=NUMBER) | {"$defs": {"P": POINT}}}]
    assert not match_calls([Call("f", {"a": one})], [Call("f", {"a": other})], tools).matched
    assert match_calls([Call("f", {"b": 1})], [Call("f", {"b": 1.0})], tools).matched


def test_references_may_lead_out_of_the_parameters_into_their_tool():
    tools = [{"name": "f", "parameters": object_of(a={"$ref": "#/$defs/P"}), "$defs": {"P": NUMBER}}]
    assert match_calls([Call("f", {"a": 1})], [Call("f", {"a": 1.0})], tools).matched


def test_a_schema_that_refers_to_itself_many_times_over():
    tree = object_of(v=NUMBER, **{f"c{n}": {"$ref": "#/properties/a"} for n in range(20)})
    tools = [{"name": "f", "parameters": object_of(a=tree, b=NUMBER)}]
    assert match_calls([Call("f", {"a": {"v": 1}, "b": 2})], [Call("f", {"a": {"v": 1.0}, "b": 2.0})], tools).matched


def test_a_flat_parameter_may_be_called_properties_or_type():
    tools = [{"name": "f", "parameters": {"properties": {"type": "float"}, "type": {"type": "float"}}}]
    gold = [{"name": "f", "arguments": {"properties": 1.0, "type": 2.0}}]
    assert match_calls([Call("f", {"properties": 1, "type": 2})], gold, tools).matched


def test_leniency_belongs_to_one_parameter_of_one_tool():
    tools = [
        {"name": "f", "parameters": {"a": {"type": "float"}, "b": {"type": "int"}}},
        {"name": "g", "parameters": {"a": {"type": "int"}}},
    ]
    for name, argument, expected in (("f", "a", True), ("f", "b", False), ("g", "a", False), ("h", "a", False)):
        assert match_calls([Call(name, {argument: 1})], [Call(name, {argument: 1.0})], tools).matched is expected


@pytest.mark.parametrize(
    "parameters",
    [None, [], "float", 3, {}, {"a": None}, {"a": 3}, {"a": {"type": None}}, {"a": {"type": {"x": 1}}}, {"a": []}],
)
def test_odd_schemas_are_merely_silent(parameters):
    tools = [{"name": "f", "parameters": parameters}]
    assert match_calls([Call("f", {"a": 1})], [Call("f", {"a": 1})], tools).matched
    assert not match_calls([Call("f", {"a": 1})], [Call("f", {"a": 1.0})], tools).matched


A, B, C = ({"name": "f", "arguments": {"a": n}} for n in (1, 2, 3))
G = {"name": "g", "arguments": {"a": 1}}


@pytest.mark.parametrize(
    ("predicted", "expected", "reason"),
    [
        ([], [], ""),
        ([A], [A], ""),
        ([A, B, C], [C, A, B], ""),
        ([A, A, B], [A, B, A], ""),
        ([G, A], [A, G], ""),
        ([A], [], "1 calls instead of 0"),
        ([], [A], "0 calls instead of 1"),
        ([A, A], [A], "2 calls instead of 1"),
        ([A, B], [A, B, C], "2 calls instead of 3"),
        ([A, A, B], [A, B, B], "an argument differs in value or type"),
        ([A, B], [A, C], "an argument differs in value or type"),
        ([G], [A], "the function names differ"),
        ([A, G], [A, A], "the function names differ"),
        ([{"name": "F", "arguments": {"a": 1}}], [A], "the function names differ"),
        ([{"name": "f ", "arguments": {"a": 1}}], [A], "the function names differ"),
        ([{"name": "f", "arguments": {}}], [A], "the argument names differ"),
        ([{"name": "f", "arguments": {"a": 1, "b": 2}}], [A], "the argument names differ"),
        ([{"name": "f", "arguments": {"A": 1}}], [A], "the argument names differ"),
        (None, [A], "calls must be a list of name/arguments objects, not NoneType"),
        ([A], "[", "not readable JSON: Expecting value: line 1 column 2 (char 1)"),
    ],
)
def test_calls_pair_one_to_one_in_any_order(predicted, expected, reason):
    assert match_calls(predicted, expected, []) == MatchResult(not reason, reason)


def test_int_and_float_pair_across_parallel_calls():
    tools = [{"name": "f", "parameters": {"a": {"type": "float"}}}]
    predicted = [Call("f", {"a": value}) for value in (1, 1.0, 2)]
    assert match_calls(predicted, [Call("f", {"a": value}) for value in (2.0, 1, 1)], tools).matched
    assert not match_calls(predicted, [Call("f", {"a": value}) for value in (2.0, 2, 1)], tools).matched


def test_a_thousand_calls():
    calls = [Call("f", {"a": n}) for n in range(1000)]
    assert match_calls(calls[::-1], calls, []).matched
    assert not match_calls([*calls[1:], calls[1]], calls, []).matched


def test_category_of():
    one, two = [{"name": "f"}], [{"name": "f"}, {"name": "g"}]
    assert category_of([], one) == category_of("[]", two) == "irrelevance"
    assert (category_of([A], one), category_of([A], json.dumps(two))) == ("simple", "multiple")
    assert (category_of([A, B], one), category_of([A, B], two)) == ("parallel", "parallel")
    assert category_of([A, G], two) == "parallel_multiple"


@pytest.mark.parametrize(
    ("predicted", "expected", "found"),
    [
        ([Call("f", {"a": 1}), Call("g", {})], [Call("g", {}), Call("f", {"a": 1.0})], []),  # `a` is a float
        ([Call("f", {"a": 2, "x": 1})], [Call("f", {"a": 1, "b": 1})],
         ["f: b is missing", "f: a is 2, not 1", "f: x is one too many"]),
        ([Call("f", {"b": True}), Call("f", {"b": 1})], [Call("f", {"b": 1}), Call("f", {"b": "1"})],
         ["f: b is True, not '1'"]),  # the call that is right is no other's pair, though Python has True == 1
        ([Call("f", {"b": 1})], [Call("f", {"b": 1}), Call("f", {"b": True})], ["f is not called"]),
        ([Call("g", {})], [Call("f", {}), Call("f", {})], ["f is not called"] * 2 + ["g is called, and should not be"]),
        (None, [], ["calls must be a list of name/arguments objects, not NoneType"]),
    ],
)  # fmt: skip
def test_differences_name_what_is_wrong(predicted, expected, found):
    tools = [{"name": "f", "parameters": {"a": {"type": "float"}}}]
    assert differences(predicted, expected, tools) == found
    assert match_calls(predicted, expected, tools).matched is not bool(found)

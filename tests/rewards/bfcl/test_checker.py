"""The rules of BFCL one by one, each on a call made for it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Call, FunctionCallReward, decode_bfcl, match_bfcl
from rewards.bfcl.java import MAX_COLLECTION, java_value
from rewards.bfcl.javascript import javascript_value


def function(name="f", required=(), **types):
    """A description; a type `array:float` is an array of floats."""
    properties = {}
    for parameter, kind in types.items():
        kind, _, items = kind.partition(":")
        properties[parameter] = {"type": kind} | ({"items": {"type": items}} if items else {})
    return {"name": name, "parameters": {"type": "dict", "properties": properties, "required": list(required)}}


def verdict(value, accepted, kind, language="python"):
    """Whether `f(a=value)` is right where the values `accepted` are."""
    return match_bfcl(
        [{"f": {"a": value}}], [{"f": {"a": accepted}}], [function(a=kind)], "simple", language=language
    ).matched


@pytest.mark.parametrize(
    "kind, value, accepted, right",
    [
        ("integer", 3, [3], True),
        ("integer", 3.0, [3], False),
        ("integer", True, [1], False),
        ("integer", "3", [3], False),
        ("integer", "n", ["n"], True),  # the name of a variable: the accepted value is a text
        ("integer", "N", ["n"], False),  # which is compared as it is
        ("string", "new york", [5, "New York"], False),  # as where the first accepted value is no text
        ("float", 3, [3.0], True),
        ("float", 3.5, [3.5, 4.5], True),
        ("float", True, [1.0], False),
        ("boolean", True, [True], True),
        ("boolean", 1, [True], False),
        ("boolean", "true", [True], False),
        ("any", 5, [5], True),  # a variable again: `any` is declared as text
        ("any", "Five", ["five"], True),
        ("string", None, ["x", None], False),
        ("string", "new-york, ny", ["New York, NY"], True),
        ("string", "it's", ['IT"S'], True),
        ("string", "1.5", ["15"], True),
        ("string", "cafe\u0301", ["caf\u00e9"], False),
        ("string", "", ["", "x"], True),
        ("array:float", [1.0, 2.5], [[1.0, 2.5]], True),
        ("array:float", [1, 2.5], [[1.0, 2.5]], False),
        ("array:integer", (1, 2), [[1, 2]], False),
        ("tuple:integer", (1, 2), [[1, 2]], True),
        ("tuple:integer", [1, 2], [[1, 2]], True),
        ("array:string", ["A b", "c"], [["ab", "C"]], True),
        ("array:string", ["c", "ab"], [["ab", "c"]], False),
        ("array:string", [], ["", ["x"]], True),
        ("array:integer", [1.0], [[1]], False),
        ("array:integer", [1.0], [[1], ""], True),  # where it may be absent, items of any type pass, and 1.0 equals 1
        ("array:array", [["A"]], [[["a"]]], False),  # lists in lists are compared as they are
        ("dict", {"k": "A-b"}, [{"k": ["ab"]}], True),
        ("dict", {"k": 1}, [{"k": [True]}], True),
        ("dict", {"k": {"n": "A"}}, [{"k": [{"n": "a"}]}], False),
        ("dict", {}, [{"k": [1, ""]}], True),
        ("dict", {}, [{"k": [1]}], False),
        ("dict", {"k": 1, "x": 2}, [{"k": [1]}], False),
        ("dict", {"k": 2}, [{"k": [1]}, {"k": [2]}], True),
        ("array:dict", [{"k": 1}, {"k": 2}], [[{"k": [1]}, {"k": [2]}]], True),
        ("array:dict", [{"k": 2}, {"k": 1}], [[{"k": [1]}, {"k": [2]}]], False),
        ("array:dict", [{"k": 1}], [[{"k": [1]}, {"k": [2]}]], False),
        ("array:dict", [{"k": 1}], [[{"k": [1]}, {"k": [2]}], [{"k": [1]}]], True),
        ("array:dict", [5], ["", [{"k": [1]}]], False),  # the official checker raises AttributeError
    ],
)
def test_python_values(kind, value, accepted, right):
    assert verdict(value, accepted, kind) is right


@pytest.mark.parametrize(
    "arguments, right",
    [
        ({"a": 1}, True),
        ({"a": 1, "b": 2}, True),
        ({"b": 2}, False),  # a is required
        ({"a": 1, "c": 3}, False),  # c is declared, but not among the accepted arguments
        ({"a": 1, "d": 3}, False),  # d is not declared
        ({"a": 1, None: 2}, False),
        ({"a": 1, "b": ""}, False),  # "" says that b may be absent; here it is given, as a text
    ],
)
def test_arguments_given_and_missing(arguments, right):
    described = function(required=["a"], a="integer", b="integer", c="integer")
    answers = [{"f": {"a": [1], "b": [2, ""], "d": ["", 3]}}]
    assert match_bfcl([{"f": arguments}], answers, [described], "simple").matched is right


def test_an_argument_that_need_not_be_required_but_must_be_given():
    answers = [{"f": {"a": [1]}}]
    result = match_bfcl([{"f": {}}], answers, [function(a="integer")], "simple")
    assert (result.matched, result.reason) == (False, "the argument 'a' is missing")


def test_names_are_compared_as_they_are():
    described, answers = [function("a.f", x="integer")], [{"a.f": {"x": [1]}}]
    names = ["a.f", "a_f", "f", "A.f", "a.f "]
    assert [match_bfcl([{name: {"x": 1}}], answers, described, "simple").matched for name in names] == [True] + 4 * [
        False
    ]


def test_a_simple_call_is_held_against_the_only_function_even_if_the_answer_misnames_it():
    answers = [{"other": {"x": [1]}}]
    assert match_bfcl([{"f": {"x": 1}}], answers, [function("f", x="integer")], "simple").matched


def test_multiple_looks_up_the_expected_function():
    described = [function("g", x="string"), function("f", x="integer")]
    answers = [{"f": {"x": [1]}}]
    assert match_bfcl([{"f": {"x": 1}}], answers, described, "live_multiple").matched
    assert not match_bfcl([{"g": {"x": "1"}}], answers, described, "multiple").matched
    assert not match_bfcl([{"f": {"x": 1}}] * 2, answers, described, "multiple").matched


def test_parallel_calls_come_in_any_order_and_number_the_same():
    described, answers = [function(x="integer")], [{"f": {"x": [1]}}, {"f": {"x": [2]}}]
    one, two = {"f": {"x": 1}}, {"f": {"x": 2}}
    given = [[one, two], [two, one], [one, one], [one], [one, two, two], []]
    assert [match_bfcl(calls, answers, described, "parallel").matched for calls in given] == [True] * 2 + [False] * 4


def test_parallel_never_takes_a_call_back():
    # The first answer accepts 1 and 2 and takes the first call, 2, so that nothing is left for the second answer.
    described, answers = [function(x="integer")], [{"f": {"x": [1, 2]}}, {"f": {"x": [2]}}]
    one, two = {"f": {"x": 1}}, {"f": {"x": 2}}
    assert match_bfcl([one, two], answers, described, "parallel_multiple").matched
    assert not match_bfcl([two, one], answers, described, "parallel_multiple").matched


@pytest.mark.parametrize(
    "predicted, called",
    [("[g(x=1)]", True), ("[]", False), ("no tool fits", False), ([{"g": {}}], True), ([], False), (None, False),
     ([{}], False), ("g", False), ("[g(x=1), 2]", False)],
)  # fmt: skip
def test_relevance_asks_only_whether_there_is_a_call(predicted, called):
    assert match_bfcl(predicted, None, [function()], "live_relevance").matched is called
    assert match_bfcl(predicted, None, [function()], "live_irrelevance").matched is not called


def test_calls_may_be_given_in_any_form():
    described, answers = [function("m.f", x="array:integer")], [{"m.f": {"x": [[1]]}}]
    forms = [
        [{"m.f": {"x": [1]}}],
        [{"name": "m.f", "arguments": {"x": [1]}}],
        [Call("m.f", {"x": [1]})],
        (Call("m.f", {"x": [1]}),),
        "[m.f(x=[1])]",
        "```m.f(x=[1])```",
    ]
    assert all(match_bfcl(form, answers, described, "simple").matched for form in forms)


@pytest.mark.parametrize("predicted", [None, 5, {}, {"f": {"x": 1}}, [["f"]], [{"f": [1]}], [{"f": {}, "g": {}}]])
def test_what_is_no_list_of_calls_is_wrong(predicted):
    result = match_bfcl(predicted, [{"f": {"x": [1, ""]}}], [function(x="integer")], "simple")
    assert (result.matched, result.reason) == (False, "the answer is not a list of calls")


def test_misuse_is_an_error():
    with pytest.raises(ValueError, match="language must be one of python, java, javascript, not 'c'"):
        match_bfcl([], [], [], "simple", language="C")
    with pytest.raises(ValueError, match="java text has to be decoded"):
        match_bfcl("f(a=1)", [], [], "java", language="java")


@pytest.mark.parametrize(
    "kind, items, text, value",
    [
        ("integer", None, "-12", -12),
        ("integer", None, "12L", "12L"),
        ("long", None, "123L", 123),
        ("long", None, "123", "123"),
        ("float", None, "3.14f", 3.14),
        ("double", None, "1e3", 1000.0),
        ("boolean", None, "true", True),
        ("boolean", None, "True", "True"),
        ("char", None, "'a'", "'a'"),
        ("Array", "integer", "new int[]{1, 2}", [1, 2]),
        ("Array", "String", 'new String[]{"a"}', ['"a"']),  # with its quotes, unlike in an ArrayList
        ("ArrayList", "String", 'new ArrayList<>(Arrays.asList("a", "b"))', ["a", "b"]),
        ("ArrayList", "long", "new ArrayList<Long>() {{ add(1L); add(2L); }}", [1, 2]),
        ("ArrayList", "any", "new ArrayList<>()", []),
        ("ArrayList", "any", "[1]", "[1]"),
        ("HashMap", None, 'new HashMap<String, Object>() {{ put("a", 1); put("b", true); }}', {"a": 1, "b": True}),
        ("HashMap", None, "new HashMap<>()", {}),
    ],
)
def test_java_literals(kind, items, text, value):
    assert repr(java_value(text, kind, items)) == repr(value)


@pytest.mark.parametrize(
    "kind, items, text, value",
    [
        ("String", None, "'a'", "a"),
        ("integer", None, "12", 12),
        ("Bigint", None, "12n", 12),
        ("float", None, "12", 12.0),
        ("Boolean", None, "false", False),
        ("array", "float", "[1, 2.5]", [1.0, 2.5]),
        ("array", "String", "['a', \"b\"]", ["a", "b"]),
        ("array", None, "new Array(1, true)", [1, True]),
        ("array", "float", "[[1, 2], [3]]", [[1, 2], [3]]),
        ("array", "String", "[]", []),
        ("dict", None, "{a: 1, 'b': [1, 2], c: \"x\"}", {"a": 1, "b": [1, 2], "c": "x"}),
        ("dict", None, "{}", {}),
        ("dict", None, "x", "x"),
    ],
)
def test_javascript_literals(kind, items, text, value):
    assert repr(javascript_value(text, kind, items)) == repr(value)


def test_java_and_javascript_arguments_must_be_texts():
    assert verdict("12L", [12], "long", "java")
    assert not verdict(12, [12], "long", "java")
    assert verdict("12n", [12], "Bigint", "JavaScript")
    assert not verdict(12, [12], "Bigint", "javascript")


def test_huge_collections_stay_text():
    # Without the bound, expressions such as the official one for rows take time exponential in their number.
    rows = "[" + "[1], " * (MAX_COLLECTION // 5) + "x]"
    assert javascript_value(rows, "array", "float") == rows
    assert java_value("new int[]{" + "1," * MAX_COLLECTION + "}", "Array", "integer").startswith("new")
    assert javascript_value("[" + "[1], " * 60 + "x]", "array", "String")[0] == "[1"  # where the official one hangs


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("f"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["f", "a", "k"]) | st.none(), inner),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(anything, st.sampled_from(["simple", "multiple", "parallel", "irrelevance"]), st.booleans())
def test_no_prediction_raises(predicted, category, in_java):
    described = function(a="array:dict", b="dict", c="float", required=["a"])
    if in_java:
        described = function(a="ArrayList:long", b="HashMap", c="Set", required=["a"])
        predicted = None if isinstance(predicted, str) else predicted
    answers = [{"f": {"a": ["", [{"k": [1]}]], "b": [{"k": ["x", ""]}], "c": [1.5, ""]}}]
    match_bfcl(predicted, answers, [described], category, "java" if in_java else "python")


CALL = "f(a=5.0, s='New York', l=[1.0, 2.5])"


@pytest.mark.parametrize(
    "answer, paid, right",
    [
        (f"[{CALL}]", True, True),
        (f"[{CALL}]".replace("5.0", "5"), True, True),
        (f"[{CALL}]".replace("New York", "new-york"), False, True),
        (f"```[{CALL}]```", False, True),
        (f"[{CALL}]".replace("])", "], o=3)"), False, True),  # the default of an optional argument
        (f"[ {CALL}]", True, False),  # what is left of it without brackets begins with a blank
        (f"[\n  {CALL}\n]", True, False),
        (f"[{CALL}]".replace("[1.0, 2.5]", "(1.0, 2.5)"), True, False),
        (f"[{CALL}]".replace("[1.0", "[1"), True, False),
        (f"[{CALL}]".replace("5.0", "+5.0"), True, False),  # read as -5.0
        ('[{"name": "f", "arguments": {"a": 5.0, "s": "New York", "l": [1.0, 2.5]}}]', True, False),
    ],
)
def test_where_the_reward_of_training_is_another_rule(official, answer, paid, right):
    """As docs/bfcl.md says; the official decoder and checker agree with ours about each."""
    functions = [function(required=["a"], a="float", s="string", l="array:float", o="integer")]
    accepted = [{"f": {"a": [5.0], "s": ["New York"], "l": [[1.0, 2.5]], "o": ["", 3]}}]
    gold = [Call("f", {"a": 5.0, "s": "New York", "l": [1.0, 2.5]})]
    reward = FunctionCallReward()
    reward.think, reward.form = False, "python"
    assert (reward(answer, functions, gold).score == 1) is paid
    assert match_bfcl(decode_bfcl(answer)[0], accepted, functions, "simple").matched is right
    try:
        calls = official.decode(answer)
    except Exception:
        calls = None
    told = official.is_calls(calls) and official.check(functions, calls, accepted, "Python", "simple")
    assert bool(told) is right

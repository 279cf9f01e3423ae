"""Reading answers as calls, for BFCL: what is forgiven, and what is never done."""

import pytest

from rewards import decode_bfcl
from rewards.parser import MAX_ANSWER


@pytest.mark.parametrize(
    "text, arguments",
    [
        ("[f(a=1, b='x', c=[True, None], d={'k': 2.5})]", {"a": 1, "b": "x", "c": [True, None], "d": {"k": 2.5}}),
        ("f(a=(1, 2))", {"a": (1, 2)}),
        ("```\nf(a=1)\n```", {"a": 1}),
        ("[f(5, a=1)]", {"a": 1}),
        ("[f(a=Paris, b=true)]", {"a": "Paris", "b": "true"}),
        ("[f(a=g(1), b=g(x=1))]", {"a": "g(1)", "b": {"g": {"x": 1}}}),
        ("[f(a=-5, b=+5, c=~5)]", {"a": -5, "b": -5, "c": -5}),
        ("[f(**{'a': 1})]", {None: {"a": 1}}),
        ("[f(a=rows[0])]", {"a": "rows[0]"}),
        ("[f(a=2 * (3 + 4), b=10 / 4)]", {"a": 14, "b": 2.5}),
        ("[f(a=7 // 2, b=7 % 4, c=1 - -1, d='x' + 'y')]", {"a": 3, "b": 3, "c": 2, "d": "xy"}),
    ],
)
def test_what_an_answer_means(text, arguments):
    assert decode_bfcl(text) == ([{"f": arguments}], None)


def test_names():
    assert decode_bfcl("[a.b.f(), g()]")[0] == [{"a.b.f": {}}, {"g": {}}]
    assert decode_bfcl("[f()(a=1)]")[0] == [{"": {"a": 1}}]


@pytest.mark.parametrize(
    "text", ["", "no tool fits", "[1]", "[f]", "[f(a=1), 2]", "[f(a=b.c)]", "[f(a=1", "[f(a=-2**2)]"]
)
def test_what_is_no_list_of_calls(text):
    calls, error = decode_bfcl(text)
    assert calls is None and error.startswith("the answer cannot be read as calls: ")


def test_an_answer_without_a_call_is_told_in_words():
    assert decode_bfcl("[]") == (None, "the answer cannot be read as calls: there is none")


def test_versions_differ_in_the_brackets_they_forgive():
    assert decode_bfcl("[]", version=3)[0] is None
    assert decode_bfcl("[]", version=4)[0] == []
    assert decode_bfcl("[[f(a=1)]]", version=3)[0] == [{"f": {"a": 1}}]
    assert decode_bfcl("[[f(a=1)]]", version=4)[0] is None


@pytest.mark.parametrize(
    "value",
    [
        "__import__('os').mkdir('{folder}') + 1",
        "(lambda: open('{folder}', 'w'))() + 1",
        "[].append(1) or 1 + print('{folder}')",
        "0 * len('abc') + 7",
        'f\'{{open("{folder}", "w")}}\'',
    ],
)
def test_nothing_is_evaluated(value, tmp_path, capsys):
    folder = tmp_path / "made"
    calls, error = decode_bfcl(f"[f(a={value.format(folder=folder)})]")
    assert calls is None and error
    assert not folder.exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "value",
    ["9**9**9**9", "2 ** 100000", "'x' * 10**9", "10**10**10", "1 / 0", "1e308 * 10 ** 400", "(" * 5000,
     "-" * 20000 + "1", "1+" * 100000 + "1", "a" + ".a" * 50000, "[" * 1000 + "]" * 1000, "'\ud800'", "'\x00'",
     "9" * 6000],
)  # fmt: skip
def test_hostile_values_end_quickly(value):
    calls, error = decode_bfcl(f"[f(a={value})]")
    assert calls is None and error


def test_a_huge_answer_is_not_read():
    assert decode_bfcl("f()," * MAX_ANSWER)[1] == f"the answer is longer than {MAX_ANSWER} characters"

"""The reward end to end: scores, parts, options, unusable references."""

import json
import re
from pathlib import Path

import pytest

from rewards import Call, FunctionCallReward
from rewards.parser import MAX_ANSWER

EXAMPLES = Path(__file__).parents[3] / "shared" / "data" / "reward_examples.jsonl"
TOOLS = [
    {"name": "get_weather", "parameters": {"city": {"type": "str"}, "days": {"type": "int, optional", "default": 1}}},
    {"name": "spotify.play", "parameters": {"artist": {"type": "str"}, "minutes": {"type": "float"}}},
]
PARIS = {"name": "get_weather", "arguments": {"city": "Paris"}}
ABBA = {"name": "spotify.play", "arguments": {"artist": "ABBA", "minutes": 20.0}}
PARTS = ["format", "parse", "name", "arg_names", "arg_values", "exact_match", "error"]
reward = FunctionCallReward()


def score(answer, gold, **options):
    return FunctionCallReward(**options)(f"<think>why</think>\n\n{answer}", TOOLS, gold).score


def test_shared_examples():
    if not EXAMPLES.exists():
        pytest.skip(f"{EXAMPLES} is absent")
    for line in EXAMPLES.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert reward(row["completion"], row["tools"], row["ground_truth"]).score == row["expect_reward"], row["case"]
        texts = json.dumps(row["tools"]), json.dumps(row["ground_truth"])
        assert reward(row["completion"], *texts).score == row["expect_reward"], row["case"]


@pytest.mark.parametrize(
    "answer",
    [
        "[get_weather(city='Paris'), spotify.play(artist='ABBA', minutes=20.0)]",
        "[spotify.play(minutes=20, artist=\"ABBA\"),\n get_weather(city='Paris')]",
        json.dumps([ABBA, PARIS]),
        json.dumps([PARIS, ABBA], indent=2),
        f"<tool_call>{json.dumps(PARIS)}</tool_call>\n<tool_call>{json.dumps(ABBA)}</tool_call>",
    ],
)
def test_right_in_every_form(answer):
    assert score(answer, [PARIS, ABBA]) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "[]",
        "[get_weather(city='Paris')]",
        "[get_weather(city='Paris'), get_weather(city='Paris')]",
        "[get_weather(city='Paris'), spotify.play(artist='ABBA', minutes=20.0), get_weather(city='Paris')]",
        "[get_weather(city='Paris'), spotify.play(artist='ABBA', minutes='20.0')]",
        "[get_weather(city='Paris'), spotify.play(artist='ABBA', minutes=20.5)]",
        "[get_weather(city='Paris'), spotify.play(artist='abba', minutes=20.0)]",
        "[get_weather(city='Paris'), spotify.play(artist='ABBA')]",
        "[get_weather(city='Paris'), spotify.play('ABBA', 20.0)]",
        "[get_weather(city='Paris', days=1), spotify.play(artist='ABBA', minutes=20.0)]",  # the default, spelt out
        "[get_weather(city='Paris', unit=None), spotify.play(artist='ABBA', minutes=20.0)]",
        "[get_weather(town='Paris'), spotify.play(artist='ABBA', minutes=20.0)]",
        "[get_weather(city='ABBA'), spotify.play(artist='Paris', minutes=20.0)]",
        "[getWeather(city='Paris'), spotify.play(artist='ABBA', minutes=20.0)]",
        "[get_weather(city='Paris'), spotify_play(artist='ABBA', minutes=20.0)]",
        "[get_weather(city='Paris'), play(artist='ABBA', minutes=20.0)]",
        "[tools.get_weather(city='Paris'), spotify.play(artist='ABBA', minutes=20.0)]",
        "[get_weather(city='Paris'), delete_all()]",
        "get_weather(city='Paris'), spotify.play(artist='ABBA', minutes=20.0)",
    ],
)
def test_wrong(answer):
    assert score(answer, [PARIS, ABBA]) == 0.0


def test_the_reference_is_followed_where_it_contradicts_the_tools():
    odd = [{"name": "unknown", "arguments": {"x": "1"}}, {"name": "get_weather", "arguments": {"city": 7, "unit": "C"}}]
    assert score("[unknown(x='1'), get_weather(city=7, unit='C')]", odd) == 1.0
    assert score("[unknown(x=1), get_weather(city=7, unit='C')]", odd) == 0.0
    assert score("[unknown(x='1'), get_weather(city='7', unit='C')]", odd) == 0.0
    assert score(
        "[spotify.play(artist='x', minutes=20.0)]", '[{"name":"spotify.play","arguments":{"artist":"x","minutes":20}}]'
    )


def parts(completion, gold=(PARIS,), **options):
    result = FunctionCallReward(**options)(completion, TOOLS, list(gold))
    assert list(result.parts) == PARTS
    return "".join(str(int(value)) for value in result.parts.values()), result.score


@pytest.mark.parametrize(
    ("completion", "expected", "total"),
    [  # format, parse, name, arg_names, arg_values, exact_match, error
        ("<think>x</think>[get_weather(city='Paris')]", "1111110", 1.0),
        ("<think>x</think>[get_weather(city='Rome')]", "1111000", 0.0),
        ("<think>x</think>[get_weather(town='Paris')]", "1110000", 0.0),
        ("<think>x</think>[weather(city='Paris')]", "1100000", 0.0),
        ("<think>x</think>[get_weather(city='Paris'), get_weather(city='Paris')]", "1100000", 0.0),
        ("<think>x</think>[]", "1100000", 0.0),
        ("<think>x</think>It rains.", "1000000", 0.0),
        ("<think>x</think>", "1000000", 0.0),
        ("[get_weather(city='Paris')]", "0111100", 0.0),
        ("x</think>[get_weather(city='Paris')]", "0111100", 0.0),
        ("<think></think>[get_weather(city='Rome')]", "0111000", 0.0),
        ("<think>x<think></think>[get_weather(town='Paris')]", "0110000", 0.0),
        ("<think>[get_weather(city='Paris')]", "0000000", 0.0),
        ("", "0000000", 0.0),
        (None, "0000001", 0.0),
    ],
)
def test_parts(completion, expected, total):
    assert parts(completion) == (expected, total)


def test_parts_pair_calls_as_well_as_they_can():
    gold = [PARIS, {"name": "get_weather", "arguments": {"city": "Rome", "days": 2}}]
    # the argument names are right only if the first call is paired with the second reference
    right_names = "<think>x</think>[get_weather(city='Oslo', days=3), get_weather(city='Bonn')]"
    assert parts(right_names, gold) == ("1111000", 0.0)
    assert parts("<think>x</think>[get_weather(city='Paris'), get_weather(city='Rome')]", gold) == ("1110000", 0.0)


@pytest.mark.parametrize(
    ("answer", "empty", "text"),
    [
        ("[]", "1111110", "1111110"),
        (" [ ] ", "1111110", "1111110"),
        ("No tool fits.", "1000000", "1011110"),
        ("I would call [get_weather(city='Paris')]", "1000000", "1011110"),
        ("[get_weather(city=x)]", "1000000", "1011110"),
        ("[get_weather(city='Paris')]", "1100000", "1100000"),
        ("get_weather()", "1100000", "1100000"),
        (json.dumps(PARIS), "1100000", "1100000"),
        (f"<tool_call>{json.dumps(PARIS)}</tool_call>", "1100000", "1100000"),
        ("", "1000000", "1000000"),
        ("x" * (MAX_ANSWER + 1), "1000000", "1000000"),  # nobody looked whether it is a call
    ],
)
def test_no_call(answer, empty, text):
    completion = f"<think>why</think>{answer}"
    assert parts(completion, []) == (empty, float(empty[5]))
    assert parts(completion, [], no_call="text") == (text, float(text[5]))
    assert parts(f"<think></think>{answer}", [], no_call="text")[1] == 0.0


def test_no_call_says_nothing_about_rows_with_calls():
    assert score("No tool fits.", [PARIS], no_call="text") == 0.0
    assert score("[get_weather(city='Paris')]", [PARIS], no_call="text") == 1.0


def test_answer_tags():
    call = "[get_weather(city='Paris')]"
    assert score(f"<answer>{call}</answer>", [PARIS]) == 0.0
    assert score(f"<answer>{call}</answer>", [PARIS], answer_tags="answer") == 1.0
    assert score(call, [PARIS], answer_tags="answer") == 0.0
    assert parts(f"<think>x</think>{call}", answer_tags="answer") == ("0111100", 0.0)
    assert score("<answer>No tool.</answer>", [], answer_tags="answer", no_call="text") == 1.0
    assert score("No tool.", [], answer_tags="answer", no_call="text") == 0.0


def test_what_is_parsed_is_what_the_form_of_the_prompts_asks_for():
    without_thought = FunctionCallReward()
    without_thought.think = False
    assert without_thought.parse("[f(a=1)]").calls == [Call("f", {"a": 1})]
    assert reward.parse("[f(a=1)]").calls is None
    assert reward("[f(a=1)]", [], [Call("f", {"a": 1})]).parsed.calls is None  # though it was read, for its parts


def test_format_bonus():
    assert score("[get_weather(city='Paris')]", [PARIS], format_bonus=0.5) == 1.5
    assert score("[]", [PARIS], format_bonus=0.5) == 0.5
    assert FunctionCallReward(format_bonus=0.5)("[]", TOOLS, []).score == 0.0


@pytest.mark.parametrize(("tools", "answers"), [
    (TOOLS, "["), (TOOLS, "{}"), (TOOLS, "5"), (TOOLS, None), (TOOLS, [1]), (TOOLS, [{"name": "f"}]),
    (TOOLS, [{"name": 1, "arguments": {}}]), (TOOLS, [{"name": "f", "arguments": "{}"}]),
    (TOOLS, [Call("f", {"a": float("nan")})]), (TOOLS, '[{"name": "f", "arguments": {"a": NaN}}]'),
    (TOOLS, '[{"name": "f", "arguments": {"a": 1, "a": 1}}]'), (TOOLS, "[" * 100_000), (TOOLS, "9" * 5000),
    (None, []), ("[", "[]"), ("{}", "[]"), ([1], []), ([{}], []), ("[" * 100_000, "[]"), ('[{"name": 1}]', "[]"),
])  # fmt: skip
def test_an_unusable_reference_scores_zero_and_says_so(tools, answers):
    for completion in ("<think>x</think>[]", "", "[["):
        result = reward(completion, tools, answers)
        assert result.score == 0.0
        assert result.parts == dict.fromkeys(PARTS, 0.0) | {"error": 1.0}


def test_a_cyclic_reference_is_unusable():
    loop = []
    loop.append(loop)
    assert reward("<think>x</think>[]", TOOLS, [Call("f", {"a": loop})]).parts["error"] == 1.0


def test_repeated_scoring_gives_fresh_results():
    texts = json.dumps(TOOLS), json.dumps([PARIS])
    first = reward("<think>x</think>[get_weather(city='Paris')]", *texts)
    first.parts.clear()
    assert reward("<think>x</think>[get_weather(city='Paris')]", *texts).parts["exact_match"] == 1.0


@pytest.mark.parametrize("options", [{"answer_tags": "tool_call"}, {"no_call": "any"}])
def test_unknown_options(options):
    [(key, value)] = options.items()
    with pytest.raises(ValueError, match=re.escape(f"{key} must be ") + f".*{value}"):
        FunctionCallReward(**options)

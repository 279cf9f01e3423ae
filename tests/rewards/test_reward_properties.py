"""Properties over generated calls and texts, with Python's own parser as the second opinion."""

import ast
import copy
import json
import keyword
import subprocess
import sys

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rewards import Call, FunctionCallReward, match_calls, parse_calls, parse_completion, render_calls
from rewards.calls import as_calls

reward = FunctionCallReward()
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(
        ["'\"\\", "</think>", "<think>", "</tool_call>", "\\x3c", "\\</think>", "\x00", "\n\r\u2028", "#"]
    )
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
names = (
    st.text(max_size=8)
    | st.from_regex(r"[a-z_]\w{0,5}(\.[a-z]\w{0,5}){0,2}", fullmatch=True)
    | st.sampled_from(
        [
            *keyword.kwlist,
            "r",
            "u",
            "match",
            "a..b",
            "a.",
            "\ufb01nd",
            "K\u0131",
            "f g",
            "·",
            "a·b",
            "℘",
            "ª",
            "a\uff11",
        ]
    )
)
calls_of = st.lists(st.builds(Call, names, st.dictionaries(names, values, max_size=3)), max_size=3)


def written(calls):
    return f"<think>why</think>\n\n{render_calls(calls)}"


@settings(max_examples=400, deadline=None)
@given(calls_of)
def test_written_calls_are_read_back_and_score_one(calls):
    parsed = parse_completion(written(calls))
    assert parsed.error is None
    assert repr(parsed.calls) == repr(calls)
    assert reward(written(calls), [], calls).score == 1.0
    gold = json.dumps([{"name": call.name, "arguments": call.arguments} for call in calls])
    assert match_calls(parse_calls(gold)[0], gold, "[]").matched


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(categories=["Cs", "Ll"]), max_size=4), st.sampled_from(["f", "f g"]))
def test_surrogates_survive_or_are_refused(text, name):
    try:
        rendered = render_calls([Call(name, {"a": text})])
    except ValueError:
        return
    assert parse_calls(rendered)[0] == [Call(name, {"a": text})]


def mutations(value):
    """Values that differ from `value` in value or type at one place, without being equal under any declared type."""
    if isinstance(value, bool):
        return [not value, int(value), str(value), None, [value]]
    if isinstance(value, int):
        return [value + 1, str(value), [value], {"x": value}, None, *([bool(value)] if value in (0, 1) else [])]
    if isinstance(value, float):
        return [value * 2 + 1 if abs(value) < 1e300 else 0.5, repr(value), None]
    if isinstance(value, str):
        return [value + " ", value + "x", " " + value, None, [value], {value: value}]
    if value is None:
        return ["None", False, 0, "", [], {}]
    if isinstance(value, list):
        inner = [[*value[:i], new, *value[i + 1 :]] for i, old in enumerate(value) for new in mutations(old)]
        return [[*value, None], [value], None, {}, *([value[1:]] if value else [""]), *inner]
    inner = [value | {key: new} for key, old in value.items() for new in mutations(old)]
    shorter = [{k: v for k, v in value.items() if k != key} for key in value]
    return [value | {"".join(value) + "+": None}, [], None, *shorter, *inner]


@settings(max_examples=200, deadline=None)
@given(calls_of, st.data(), st.sampled_from(["int", "float", "List[float]", "Dict[str, float]", "str"]))
def test_any_change_to_the_calls_is_rejected(calls, data, declared):
    tools = [{"name": c.name, "parameters": {k: {"type": declared} for k in c.arguments}} for c in calls]
    changed = [[*calls, Call("f", {})], [*calls, *calls[:1]] if calls else [Call("", {})]]
    for index, call in enumerate(calls):
        before, after = calls[:index], calls[index + 1 :]
        changed.append([*before, *after])
        changed.append([*before, Call(call.name + "x", call.arguments), *after])
        changed += [
            [*before, Call(call.name, new), *after] for new in mutations(call.arguments) if isinstance(new, dict)
        ]
    predicted = data.draw(st.sampled_from(changed))
    assert not match_calls(predicted, calls, tools).matched
    assert not match_calls(calls, predicted, tools).matched
    assert reward(written(predicted), tools, calls).score == 0.0


@settings(max_examples=200, deadline=None)
@given(calls_of, st.randoms())
def test_order_of_calls_and_arguments_is_free(calls, random):
    shuffled = [Call(c.name, dict(random.sample(list(c.arguments.items()), len(c.arguments)))) for c in calls]
    random.shuffle(shuffled)
    assert reward(written(shuffled), [], calls).score == 1.0


FRAGMENTS = r"""
' " \ \' ''' r' u" b' f' [ ] { } ( ) , : = . + - ~ * ** # ; 1 01 1_0 1e9 1e999 0x1 2j .5 1. True None f f(a=1) f(a= a=
lambda if not 'x' \N{DIGIT_ONE} \x4 \u00e9 \400 <think> </think> <tool_call> </tool_call> <answer> </answer> NaN null
true "name" "arguments" {"name":"f","arguments":{}} <|im_end|> é
"""
fragments = st.sampled_from([*FRAGMENTS.split(), '"' * 3, "\n", "\r\n", "\t", " ", "\x00", "\ud800", "\ufb01"])
texts = st.text(alphabet=st.characters()) | st.lists(fragments, max_size=30).map("".join)


@settings(max_examples=1000, deadline=None)
@given(texts, st.sampled_from(["none", "answer"]), st.sampled_from(["empty", "text"]))
def test_no_text_raises(text, answer_tags, no_call):
    judge = FunctionCallReward(answer_tags=answer_tags, no_call=no_call)
    for completion in (text, f"<think>x</think>{text}", f"<think>x</think><answer>{text}</answer>"):
        for gold in ("[]", '[{"name": "f", "arguments": {"a": 1}}]', text):
            result = judge(completion, "[]", gold)
            assert result.score in (0.0, 1.0)
            assert set(result.parts.values()) <= {0.0, 1.0}
        parsed = parse_completion(completion, answer_tags)
        assert repr(result.parsed) == repr(parsed)  # what the judge has read is not read again
        assert (parsed.calls is None) == (parsed.error is not None)


def by_ast(text):
    """What Python's own parser makes of an answer, or None: the independent oracle."""
    try:
        node = ast.parse(text, mode="eval").body
        found = []
        for call in node.elts if isinstance(node, ast.List) else [node]:
            assert isinstance(call, ast.Call) and not call.args
            given_names = [argument.arg for argument in call.keywords]
            assert all(given_names) and len(set(given_names)) == len(given_names)  # None stands for **
            name = ast.unparse(call.func)
            assert all(part.isidentifier() and not keyword.iskeyword(part) for part in name.split("."))
            found.append((name, {argument.arg: ast.literal_eval(argument.value) for argument in call.keywords}))
        return repr(as_calls([Call(*pair) for pair in found]))
    except (SyntaxError, ValueError, TypeError, AssertionError):
        return None


PIECES = r"""
[ ] ( ) { } , : = . + - f g( a= b= =1 1 -2 0x1f 1_0 01 1e5 1. .5 5. 1e999 'x' "y" 'é' r'\d' u'z' '\d' '''t''' '\x41'
'\u00e9' '\101' '\N{DASH}' '' "" '''''' True False None if b'x' f'x' {'k':1} {'k':[]} (1,) () [1,2]
"""
pieces = st.sampled_from([*PIECES.split(), r"'\N{EM DASH}'", "\n"])


@pytest.mark.filterwarnings("ignore:invalid escape:DeprecationWarning", "ignore:invalid escape:SyntaxWarning")
@settings(max_examples=3000, deadline=None)
@given(
    st.lists(pieces, min_size=1, max_size=8).map(" ".join), st.sampled_from(["%s", "[f(a=%s)]", "[f(%s)]", "f(a=[%s])"])
)
def test_agrees_with_pythons_own_parser(text, form):
    text = (form % text).strip()
    assume(not text.startswith(("{", "[{", "[ {", "(")))  # JSON, and redundant brackets around a call
    ours = parse_calls(text)[0]
    if ours is None:
        theirs = by_ast(text)
        assert theirs is None or "( f" in text or "( g" in text  # (f)(a=1): brackets around a name
    else:
        assert repr(ours) == by_ast(text)


WATCH = """
import sys
from rewards import FunctionCallReward, parse_completion, render_calls, match_calls
import unicodedata
reward, answers = FunctionCallReward(), sys.stdin.read().split("\\x1e")
tools, gold = '[{"name": "f"}]', '[{"name": "f", "arguments": {"a": 1}}]'
reward("<think>x</think>[f(a='\\\\N{DASH}')]", tools, gold)  # whatever is loaded once is loaded now
events = []
sys.addaudithook(lambda event, arguments: events.append(event))
for answer in answers:
    for text in (answer, "<think>x</think>" + answer):
        reward(text, tools, gold)
        parse_completion(text)
found = sorted(set(events))
print("seen:", *found)
"""
ATTACKS = [
    "[f(a=__import__('os').system('touch pwned'))]",
    "[f(a=open('pwned', 'w'))]",
    "[f(a=eval('1'))]",
    "[exec(a='import os')]",
    "[f(a=(lambda: print(1))())]",
    "[f(a=[print(x) for x in [1]])]",
    "[f(a=f'{__import__(\"os\").getcwd()}')]",
    "[f(a=0*len('abc')+1)]",
    "[f(a=9**9**9**9)]",
    "[f(a=().__class__.__base__.__subclasses__())]",
    "[f(a={'__class__': 1})]",
    "[f(__class__=1)]",
    "[os.system(command='touch pwned')]",
    "# -*- coding: rot13 -*-\n[f(a=1)]",
    '{"__reduce__": "os.system"}',
    '[{"name": "os.system", "arguments": {"command": "touch pwned"}}]',
    '{"py/object": "os.system", "name": "f", "arguments": {}}',
    "[f(a=1)]",
    r"[f(a='\N{EM DASH}\x41')]",
]


def test_no_input_executes_anything(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WATCH],
        input="\x1e".join(ATTACKS),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "seen:", done.stdout + done.stderr
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())


def test_results_do_not_share_what_they_hold():
    gold = [{"name": "f", "arguments": {"a": [1]}}]
    kept = copy.deepcopy(gold)
    text = json.dumps(gold)
    parse_calls(text)[0][0].arguments["a"].append(2)
    as_calls(gold)[0].arguments["a"].append(2)
    assert gold == kept
    assert reward(f"<think>x</think>{text}", [], gold).score == 1.0

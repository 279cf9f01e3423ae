"""The Python form of an answer: what it may say, and everything that it may not."""

import pytest

from rewards import Call, parse_calls

PYTHON = {
    "[]": [],
    "[ \n ]": [],
    "f(a=1)": [("f", {"a": 1})],
    "f (a = 1)": [("f", {"a": 1})],
    "[f(a=1),]": [("f", {"a": 1})],
    "[f(a=1,)]": [("f", {"a": 1})],
    "[\n  f(\n    a=1,\n  ),\n\tg(),\n]": [("f", {"a": 1}), ("g", {})],
    "[f(), f()]": [("f", {}), ("f", {})],
    "[a.b.c(x=None)]": [("a.b.c", {"x": None})],
    "[a . b(x=True)]": [("a.b", {"x": True})],
    "[f(a=-1, b=+2, c=- 3, d=-1.5e-3)]": [("f", {"a": -1, "b": 2, "c": -3, "d": -0.0015})],
    "[f(a=0x1F, b=1_000, c=.5, d=2., e=1e3, g=0b11, h=0o17)]": [
        ("f", {"a": 31, "b": 1000, "c": 0.5, "d": 2.0, "e": 1000.0, "g": 3, "h": 15})
    ],
    "[f(a=(1, 2), b=(1,), c=(1), d=(), e=[[], [()]])]": [
        ("f", {"a": [1, 2], "b": [1], "c": 1, "d": [], "e": [[], [[]]]})
    ],
    "[f(a={'k': [1.0, {'n': None}], \"m\": {}})]": [("f", {"a": {"k": [1.0, {"n": None}], "m": {}}})],
    r"""[f(a='it\'s', b="\x41\u00e9\U0001F600\101\N{DASH}"[0])]""": None,
    r"""[f(a='it\'s', b="\x41\u00e9\U0001F600\101\N{EM DASH}\n")]""": [("f", {"a": "it's", "b": "Aé😀A—\n"})],
    r"[f(a='\d', b=r'\d', c=R'\'', d=u'x')]": [("f", {"a": "\\d", "b": "\\d", "c": "\\'", "d": "x"})],
    "[f(a='''x\r\n'y'\"''', b=\"\"\"z\"\"\", c='''''', d='')]": [("f", {"a": "x\n'y'\"", "b": "z", "c": "", "d": ""})],
    "[f(a='x' \"y\"\n 'z')]": [("f", {"a": "xyz"})],
    "[f(a=')]', b='[{\"#', c='</tool_call>')]": [("f", {"a": ")]", "b": '[{"#', "c": "</tool_call>"})],
    "[größe(länge=1, 数=2, match=3, type=4)]": [("größe", {"länge": 1, "数": 2, "match": 3, "type": 4})],
    "[\ufb01nd()]": [("\ufb01nd", {})],  # Python itself would read the ligature as "find"
    "[f(a='" + "x" * 16000 + "')]": [("f", {"a": "x" * 16000})],
}


@pytest.mark.parametrize(("text", "expected"), PYTHON.items(), ids=lambda value: repr(value)[:60])
def test_python_form(text, expected):
    calls, _ = parse_calls(text)
    assert calls == (None if expected is None else [Call(*pair) for pair in expected])
    if calls:
        assert repr(calls) == repr([Call(*pair) for pair in expected])  # == alone takes True for 1


NOT_CALLS = """
hello
I would call [f(a=1)]
[f(a=1)] is the call
[f(a=1)].
[f(a=1)];
f(a=1);
[f(a=1)] # comment
f(a=1) # comment
[f(a=1)][f(a=1)]
[f(a=1)] [g(b=2)]
[f(a=1)], [g(b=2)]
[f(a=1)] + [g(b=2)]
[[f(a=1)]]
([f(a=1)])
(f(a=1))
(f(a=1), g(b=2))
{f(a=1)}
f(a=1), g(b=2)
f(a=1) g(b=2)
[f(a=1) g(b=2)]
[,]
[f(a=1),,]
[, f(a=1)]
[f(a=1)
f(a=1)]
[f(a=1]
[f a=1]
[f]
f
[1]
['f(a=1)']
"[f(a=1)]"
'f(a=1)'
[f(1)]
[f(a)]
[f('a')]
[f(1, a=1)]
[f(a=1, 2)]
[f(*[1])]
[f(**{'a': 1})]
[f(a=1, **{})]
[f(a=1, a=1)]
[f(a=1, a=2)]
[f(a==1)]
[f(a:=1)]
[(x := f(a=1))]
[f(a=1 b=2)]
[f(,)]
[f(a=1,,b=2)]
[f(a=)]
[f(=1)]
[f(a: 1)]
[f('a'=1)]
[f("a": 1)]
[f(a.b=1)]
[f(a-b=1)]
[f(from=1)]
[f(None=1)]
[f(True=1)]
[class(a=1)]
[None(a=1)]
[a.if(b=1)]
[1f(a=1)]
[.f(a=1)]
[f.(a=1)]
[f..g(a=1)]
[f-g(a=1)]
[Get League(a=1)]
['f'(a=1)]
[f()(a=1)]
[f(a=1)()]
[f().g(a=1)]
[f[0](a=1)]
[f['g'](a=1)]
[(f)(a=1)]
[f(a=1).g]
[f(a=1)[0]]
[print(f(a=1))]
[f(a=g(b=1))]
[f(a=g())]
[f(a=x)]
[f(a=x.y)]
[f(a=true)]
[f(a=false)]
[f(a=null)]
[f(a=nan)]
[f(a=inf)]
[f(a=Paris)]
[f(a=float('nan'))]
[f(a=1e999)]
[f(a=-1e999)]
[f(a=1+1)]
[f(a=2-1)]
[f(a=2**3)]
[f(a=9**9**9**9)]
[f(a='x'*2)]
[f(a='x'+'y')]
[f(a='%s' % 'x')]
[f(a=~5)]
[f(a=--5)]
[f(a=+-5)]
[f(a=-(5))]
[f(a=-True)]
[f(a=+'5')]
[f(a=-'5')]
[f(a=-[1])]
[f(a=not True)]
[f(a=1 if True else 2)]
[f(a=1 or 2)]
[f(a=1 < 2)]
[f(a=5j)]
[f(a=1+2j)]
[f(a=1J)]
[f(a=...)]
[f(a=Ellipsis)]
[f(a=b'x')]
[f(a=rb'x')]
[f(a=f'x')]
[f(a=f'{1}')]
[f(a=F'{__import__("os").getcwd()}')]
[f(a='x' f'y')]
[f(a='x' b'y')]
[f(a=ur'x')]
[f(a=`x`)]
[f(a=$x)]
[f(a=x!)]
[f(a=1?)]
[f(a=@x)]
[f(a={1, 2})]
[f(a={1})]
[f(a={'x'})]
[f(a=set())]
[f(a={1: 2})]
[f(a={True: 2})]
[f(a={None: 2})]
[f(a={x: 2})]
[f(a={'x': 1, 'x': 1})]
[f(a={'x': 1, 'x': 2})]
[f(a={**{}})]
[f(a={'x'})]
[f(a={'x':})]
[f(a={'x' 1})]
[f(a={,})]
[f(a=[,])]
[f(a=[1 2])]
[f(a=[1,,2])]
[f(a=(,))]
[f(a=(1 2))]
[f(a=[1)]
[f(a=(1]])]
[f(a=[*[1]])]
[f(a=[x for x in [1]])]
[f(a=(x for x in [1]))]
[f(a={x: 1 for x in [1]})]
[f(a=i) for i in [5]]
[f(a=lambda: 5)]
[f(a=(lambda: 5)())]
[f(a=(yield))]
[f(a=await x)]
[f(a=[1][0])]
[f(a='x'[0])]
[f(a='x'.upper())]
[f(a=(1).real)]
[f(a=1 .real)]
[f(a=01)]
[f(a=1__0)]
[f(a=1_)]
[f(a=0x)]
[f(a=0xg)]
[f(a=0b2)]
[f(a=1e)]
[f(a=1.2.3)]
[f(a=1abc)]
[f(a=1if 1else 2)]
[f(a=0x1p3)]
[f(a=٣)]
[f(a='x)]
[f(a="x')]
[f(a='''x'')]
[f(a='x\\')]
[f(a='\\x4')]
[f(a='\\u12')]
[f(a='\\U00110000')]
[f(a='\\N{NO SUCH NAME}')]
[f(a='\\N')]
[f(a='\\N{LATIN SMALL LETTER R WITH TILDE}')]
[f(a=«x»)]
[f(a=“x”)]
[f(a=1)]<|im_end|>
[f(a=1)]</s>
[f(a=1)]<|endoftext|>
[f(a=1)]<|im_end|>\\n<|im_start|>assistant
[f(a=1)] Done.
[f(a=1)] {"name": "f", "arguments": {"a": 1}}
[f(a=1)] <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>
```[f(a=1)]```
`[f(a=1)]`
<answer>[f(a=1)]</answer>
<tools>[f(a=1)]</tools>
call: [f(a=1)]
x = [f(a=1)]
return f(a=1)
await f(a=1)
import os
lambda: f(a=1)
[lambda: f(a=1)]
[await f(a=1)]
[*f(a=1)]
[not f(a=1)]
[-f(a=1)]
[f(a=1) if True else g()]
[f(a=1), 1]
[f(a=1), None]
[f(a=1), []]
[f(a=1), ...]
...
None
True
42
null
{}
[{}]
[{"name": "f"}]
[[]]
()
""".strip().splitlines()


@pytest.mark.parametrize("text", NOT_CALLS)
def test_everything_else_is_no_call(text):
    calls, error = parse_calls(text)
    assert calls is None
    assert error and len(error) < 300


@pytest.mark.parametrize(
    "text",
    [
        "[f(a=1)]\n[g(b=2)]",
        "f(a=1)\ng(b=2)",
        "f\n(a=1)",
        "[f(a=1, # city\n b=2)]",
        "# call\n[f(a=1)]",
        "[f(a=1)]\n# done",
        "[f(a=1, \\\n b=2)]",
        "f(\\\na=1)",
        "```python\n[f(a=1)]\n```",
        "```json\n[]\n```",
        "[f(a='x\ny')]",
        "[f(a=1)]\x00",
        "[f(a='\x00')]",
        "[f(a='\ud800')]",
        '{"name": "f\ud800", "arguments": {}}',
        "[f(a=1)\x0b]",
        "[f(a=\u00a01)]",
        "\ufeff[f(a=1)]",
        "[f(a\u200b=1)]",
        "[f(a=1)]\u200b",
        "[f(a=1)]\n\nThis is right.",
    ],
)
def test_several_lines_and_odd_characters(text):
    assert parse_calls(text)[0] is None


def test_prints_no_syntax_warning(recwarn):
    assert parse_calls(r"[f(a='\d\400', b=1)]")[0]
    parse_calls("[f(a=1if 1else 2)]")
    assert not recwarn.list

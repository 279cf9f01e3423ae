"""Literals and whole answers read as the official converters and decoder read them."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rewards import decode_bfcl
from rewards.bfcl.java import java_value
from rewards.bfcl.javascript import javascript_value

FORMS = [
    "{}",
    "[[{}]]",
    "[{}]",
    "new Array([{}], [{}])",
    "{{{}}}",
    "new int[]{{{}}}",
    'put("{}", {})',
    "new ArrayList<>(Arrays.asList({}))",
    "new ArrayList<>() {{{{ add({}); }}}}",
    "new HashMap<>() {{{{ put({}); {} }}}}",
]
KINDS = {
    "java": "Array:String Array:any ArrayList:char ArrayList:long ArrayList:any HashMap long float double boolean char",
    "javascript": "array:String array:float array:integer dict String Bigint float Boolean integer",
}
literals = st.text(alphabet="[]{}(),:;\"' \n\t\\newArrayListHashMaptrue019.-fLx<>", max_size=24)


@settings(max_examples=1500, deadline=None)
@given(
    st.builds(str.format, st.sampled_from(FORMS), literals, literals),
    st.sampled_from([(language, kind) for language, kinds in KINDS.items() for kind in kinds.split()]),
)
@example('[["a]"], [1], x]', ("javascript", "array:String"))
@example("[[[1],[2]],[[3]]]", ("javascript", "array:float"))
def test_literals_convert_as_officially(official, text, kind):
    language, (declared, _, items) = kind[0], kind[1].partition(":")
    convert = {"java": java_value, "javascript": javascript_value}[language]
    ours, theirs = (outcome(c, text, declared, items or None) for c in (convert, official.convert[language]))
    assert repr(ours) == repr(theirs)


def outcome(convert, *arguments):
    try:
        return convert(*arguments)
    except (ValueError, NotImplementedError) as error:
        return type(error)


TEXTS = """
[f(a=1)]
f(a=1)
[f(a=1), g.h(b='x')]
```[f(a=1)]```
'[f(a=1)]'
[[f(a=1)]]
f(a=1), g()
[]

[f(1, a=2)]
[f(a=1, a=2)]
[f(**{'a': 1})]
[f(a=Paris, b=true)]
[f(a=g(), b=g(x=1))]
[f(a=+5, b=~5)]
[f(a=not True)]
[f(a=2*3, b=10/4, c='a'+'b')]
[f(a=-2**2)]
[f(a=x[0], b=x[1:2])]
[f(a=...)]
[f()(a=1)]
[f(a=lambda: 1)]
[f(a=b.c)]
[f(a={1, 2})]
[f(a={**b})]
[f(a={[1]: 2})]
[f(a=f'{x}')]
[1]
[f]
{f(a=1), g(b=2)}
x[0].f(a=1)
[f(a=1)
f(a=1)]
[f(a='\\d')]
[\ufb01nd(a=1)]
[f(a=1/0)]
[f(a=b'x')]
[f(a=--5)]
[f(a=1j)]
I cannot help.
[f(a=[1, (2, 3)], b={'c': None})]
[f(a='\x00')]
[f(a='\ud800')]
[f(a=1 if b else 2)]
[f(a=*b)]
[f(a=1)](b=2)
[f(a=1)][
f(a=1)'
[f(a=0777)]
[f(a=1_000)]
[,]
"""


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("text", [*TEXTS.strip("\n").split("\n"), "```\n[f(a=1)]\n```", "[f(a=1),\n g(b=2)]"])
def test_python_text_decodes_as_officially(official, text):
    decodes_alike(official, text)


@settings(max_examples=1500, deadline=None)
@given(st.text(alphabet="[](){}f=ab12,.'\"`*+-~ \n", max_size=30))
def test_any_python_text_decodes_as_officially(official, text):
    if "*" not in text and "+" not in text:  # `eval` would know more than literals
        decodes_alike(official, text)


def decodes_alike(official, text):
    try:
        theirs = official.decode(text)
    except Exception:
        theirs = None
    ours, error = decode_bfcl(text)
    assert repr(ours) == repr(theirs)
    assert (ours is None) == (error is not None)

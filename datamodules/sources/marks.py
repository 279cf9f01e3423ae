# ruff: noqa: RUF001 (DeepSeek writes its marks with full-width bars)
"""The marks that known models put around their calls, and between the name of a call and its arguments.

Every expression takes time linear in the text: what repeats is possessive, or can begin at one place of a run only.
"""

import re
from collections.abc import Iterator, Mapping

from datamodules.sources.calls import CALL_LISTS, NAME_KEYS

_OPEN = """<tool_call> <tool_calls> <TOOLCALL> <functioncall> <function_call> <function_calls> <multiplefunctions>
    <start_function_call> <<function>> <|tool_call|> <|tool_calls|> <|tool_call_start|>
    <|python_tag|> <|python_start|> <|tool_calls_section_begin|> <|tool_call_begin|> <|START_ACTION|> <|action_start|>
    <|plugin|> <｜tool▁calls▁begin｜> <｜tool▁call▁begin｜> [TOOL_CALLS] [TOOL_CALL]""".split()
_CLOSE = """</tool_call> </tool_calls> </TOOLCALL> </functioncall> </function_call> </function_calls>
    </multiplefunctions> <end_function_call> <start_function_response> </function> </invoke>
    <|/tool_call|> <|/tool_calls|> <|tool_call_end|> <|python_end|> <|tool_calls_section_end|> <|END_ACTION|>
    <|action_end|> <｜tool▁call▁end｜> <｜tool▁calls▁end｜> [/TOOL_CALLS] [/TOOL_CALL]""".split()
_END = """<|im_end|> <|endoftext|> <|end_of_text|> <|eot|> <|eot_id|> <|eom_id|> <|end|> <|call|> <|return|>
    <end_of_turn> <|END_OF_TURN_TOKEN|> <｜end▁of▁sentence｜> <bot_end> </s>""".split()


def _any_of(marks: list[str]) -> str:
    return "|".join(map(re.escape, marks))


_NAMESPACE = r"(?:\w{1,32}:|｜DSML｜)"  # of names of tags: MiniMax's, Seed's, Claude's, DeepSeek's
_TO = r"(?:<\|start\|>\w++\s*+)?+(?:<\|channel\|>\w++\s*+)?+to=functions\."  # of gpt-oss
_ACTION = r"Action:(?![^\n]{0,256}+\n\s*+Action Input:)"  # calls after it, in whatever syntax
_ENDS_BACKWARDS = re.compile(rf"(?:\s*+(?:{_any_of([mark[::-1] for mark in _END])}))*+")
BETWEEN = re.compile(
    rf"(?:[\s,;]|```\w*+|functools(?=\[)|</?{_NAMESPACE}(?:tool_calls?|function_calls?|function|invoke)>"
    rf"|{_ACTION}|Observation:(?=\s*+\Z)|{_any_of(_OPEN + _CLOSE + _END)})++"
)
"""What may stand before, between and after calls."""
MARKS = re.compile(
    rf"{_any_of(_OPEN)}|functools\[|<function[= ]|<invoke name=|✿FUNCTION✿|{_TO}|call:[\w.-]+\{{"
    rf"|<{_NAMESPACE}(?:tool_calls?>|function_calls?>|invoke name=)"
    r"|<[|｜]?[\w:.-]{0,32}?(?:tool|function)[_▁-]?calls?[\w:.-]{0,32}[|｜]?>"
    r"|^Action:.*\n\s*Action Input:|^Action:\s*+(?:```\w*+\s*+)?+[\[{]",
    re.MULTILINE,
)
"""What begins calls and hardly stands elsewhere."""
_ARGUMENTS = r"(?i:input|args?|arguments|param(?:eter)?s?|kwargs)\W{0,3}[:=]"
SUSPECT = re.compile(rf"[\[({{<✿]|Action:|{_ARGUMENTS}")
"""No call is written without one of these."""
LINE = re.compile(r"^[ \t]*(?=\S)", re.MULTILINE)
_NAME = r"""[^\n<>\[\]{}()"'✿|]"""
BEFORE_OBJECT = re.compile(
    rf"✿FUNCTION✿:?\s*+(?P<a>{_NAME}++)\s*+✿ARGS✿:?\s*+"
    rf"|Action:\s*+(?P<b>{_NAME}++)\n\s*+Action Input:\s*+(?:```\w*+\s*+)?+"
    rf"|function<｜tool▁sep｜>(?P<c>(?:(?!```){_NAME})++)\s*+```(?:json)?+\s*+"
    rf"|(?P<d>{_NAME}++)<｜tool▁sep｜>\s*+"
    rf"|(?P<e>{_NAME}+?)(?<!\s)(?::\d++)?+\s*+<\|tool_call_argument_begin\|>\s*+"
    rf"|{_TO}(?P<f>[\w.-]++)[^{{}}]*?<\|message\|>\s*+"
    rf"|(?P<g>{_NAME}++)(?:\[CALL_ID\][\w-]++)?+\[ARGS\]\s*+"
    r"|call:(?P<h>[\w.-]++)(?=\{)"
    r"|<function(?:=|\s+name=)[\"']?+(?P<i>[^>\"']++)[\"']?+>\s*+(?=\{)"
)
"""A name, and what stands between it and an object of arguments."""
BEFORE_XML = re.compile(
    rf"<{_NAMESPACE}?(?:function(?:=|\s+name=)|invoke\s+name=)[\"']?+(?P<a>[^>\"']++)[\"']?+>(?=\s*+<)"
    rf"|(?P<b>{_NAME}++)(?=\s*+<arg_key>)|(?P<c>{_NAME}++)(?=\s*+</tool_call>)"
)
"""A name before arguments in XML, or none."""
PAIR = re.compile(r"\s*<arg_key>(?>(?P<key>.*?)</arg_key>)\s*+<arg_value>(?P<value>.*?)</arg_value>", re.DOTALL)
PARAMETER = re.compile(
    rf"""\s*<{_NAMESPACE}?parameter(?:=|\s+name=)["']?+(?P<key>[^>"']++)["']?+(?P<more>[^>]*+)>\n?+(?P<value>.*?)\n?</{_NAMESPACE}?parameter>""",
    re.DOTALL,
)
BRACKET = re.compile(r"\s*\(")
DOTTED_NAME = re.compile(r"[^\W\d][\w.-]*+(?=\s*+\()")
NAME_WITH_BLANKS = re.compile(r"""[^\W\d][^\[\](){},;=\n"'<>]*+(?=\s*+\()""")
ARGUMENT = re.compile(r"""(?P<quote>["']?)(?P<name>[^\s"'=,()\[\]{}]++)(?P=quote)\s*+=\s*+""")
_CALLED = re.compile(r"\(|\[(?!\d+\])|\{\s*(?:[\"'}]|\w+\s*:)|\s+\(\s*(?:\w+\s*=|\))")
"""What follows the name of a function where it is called, also in a sentence: `now (UTC)` and `now[1]` call nothing."""
_LABEL = re.compile(r"""[:=][ \t]*["'`*]*\Z""")
_LABELLED = re.compile(rf"""["'`*]*[ \t]*\n\W*+(?:[A-Za-z]+[ _])?{_ARGUMENTS}""")
"""What stands before and after a name on a line of its own, where its arguments follow on the next."""
_ACTING, _ACTED = re.compile(r"^Action:\s*\Z", re.MULTILINE), re.compile(r"\[|\s*?(?:\n|\Z)")
_IN_TAG = re.compile(r"\s+[\w:.-]+\s*=|\s*/?>")
_KEYS = "|".join(NAME_KEYS)
_NAMING = re.compile(rf"""(?:["'](?:{_KEYS})["']\s*:|\b(?:{_KEYS})\s*=)\s*["']\Z""")
"""What stands before a name in JSON, and in a tag."""
_NAMED = re.compile(r"""["']\s*:\s*\{""")
"""What follows a name that is a key."""
OBJECT = re.compile(rf"""\s*(?:\[\s*)?\{{\s*["'](?:{_KEYS}|{"|".join(CALL_LISTS)}|arguments|parameters|args)["']\s*:""")
"""How a JSON object begins that is a call."""
PYTHON = re.compile(r"\s*\[\s*[^\W\d][^\[\](){},;=\n\"']*\(")


def without_end_tokens(text: str) -> str:
    """The text without the tokens that end a turn, and without white space around it."""
    text = text.strip()
    ends = _ENDS_BACKWARDS.match(text[::-1])
    return text[: len(text) - ends.end()].rstrip() if ends else text


def is_called(text: str, start: int, end: int, closed: int) -> bool:
    """Whether what stands around the name of a tool on offer says that it is called.

    Args:
        text: The text.
        start: Where the name begins.
        end: Where it ends.
        closed: Where the last closing tag of that name begins; -1 where there is none.
    """
    before, last, after = text[max(0, start - 64) : start], text[start - 1 : start], text[end : end + 1]
    if last == "<" and _IN_TAG.match(text, end) and (after != ">" or closed > end):
        return True
    if last in ("'", '"') and last == after and (_NAMING.search(before) or _NAMED.match(text, end)):
        return True
    if re.match(r"[\w.\\]", last) and not before.endswith("functions."):
        return False
    labelled = _LABEL.search(before) and _LABELLED.match(text, end)
    acted = _ACTING.search(before) and _ACTED.match(text, end)
    return bool(_CALLED.match(text, end) or labelled or acted)


def blocks(text: str, opening: re.Pattern[str], closing: Mapping[str, str]) -> Iterator[tuple[str, int, int, int, int]]:
    """The blocks of a text that a mark opens and its counterpart closes, one after the other; none inside another.

    Args:
        text: The text.
        opening: Matches the marks that open a block.
        closing: What closes a block, by the text of the mark that opens it.

    Yields:
        The mark, where the block begins, where its content begins and ends, and where the block ends.
    """
    at, never = 0, set()  # marks that are not closed any more: each is looked for once, so the time is linear
    while found := opening.search(text, at):
        at, mark = found.end(), found[0]
        end = -1 if mark in never else text.find(closing[mark], at)
        if end < 0:
            never.add(mark)
            continue
        content, at = at, end + len(closing[mark])
        yield mark, found.start(), content, end, at


def tags(*names: str) -> tuple[re.Pattern[str], dict[str, str]]:
    """The arguments of `blocks` that find the blocks between these tags: opening pattern, closing tags."""
    closing = {f"<{name}>": f"</{name}>" for name in names}
    return re.compile(_any_of(list(closing))), closing

r"""Reads Python calls with literal arguments, `[f(a=1), g.h(b=['x'])]`, without handing the text to Python.

The language is what `ast.parse` accepts as a list of keyword-only calls (or one bare call) whose values
`ast.literal_eval` accepts, less comments, bytes, sets, complex numbers and line continuations. A reader of our own
takes time linear in the text, prints no SyntaxWarning, never recurses beyond MAX_DEPTH, keeps names as they are
written (Python would normalise them) and behaves alike in every version of Python.
"""

import keyword
import re
import unicodedata
from itertools import islice
from typing import Any

from rewards.calls import MAX_DEPTH, Call, read_float, read_int

MAX_TOKENS = 8_192  # names, numbers, strings and marks of one answer; a thousand small calls have 7,000

# A string, a number, a name, or any other single character. Linear on every input: quantifiers are possessive, and a
# quote that opens no string takes the rest of the text, so that no later quote searches it again.
_TOKEN = re.compile(
    r"""[ \t\f\r\n]*+(?:
    (?P<string>[rRuU]?(?:
        '''(?:[^'\\]|\\.|'(?!''))*+'''
      | \"""(?:[^"\\]|\\.|"(?!""))*+\"""
      | '(?!'')(?:[^'\\\r\n]|\\(?:\r\n|.))*+'
      | "(?!"")(?:[^"\\\r\n]|\\(?:\r\n|.))*+"
      | ''(?!') | ""(?!")))
  | (?P<number>\.?[0-9](?:[eE][+-](?=[0-9])|[0-9A-Za-z_.])*+)
  | (?P<name>[A-Za-z_\u0080-\U0010ffff][\w\u0080-\U0010ffff]*+)
  | (?P<unclosed>['"].*+)
  | (?P<mark>.))""",
    re.DOTALL | re.VERBOSE,
)
_ESCAPE = re.compile(
    r"\\(?:(?P<octal>[0-7]{1,3})|[xuU](?P<hex>(?<=x)[0-9a-fA-F]{2}|(?<=u)[0-9a-fA-F]{4}|(?<=U)[0-9a-fA-F]{8})"
    r"|N\{(?P<named>[^{}]+)\}|(?P<other>.))",
    re.DOTALL,
)
_SIMPLE = dict(zip("\n\\'\"abfnrtv", ["", "\\", "'", '"', "\a", "\b", "\f", "\n", "\r", "\t", "\v"], strict=True))
_CONSTANTS = {"True": True, "False": False, "None": None}
_CLOSING = {"[": "]", "(": ")"}


def read_python_calls(text: str) -> list[Call]:
    """Reads a list of calls, or one bare call.

    Args:
        text: The source, without outer whitespace.

    Returns:
        The calls in the order written.

    Raises:
        ValueError: The text is anything else.
    """
    return _Reader(text).calls()


class _Reader:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str) -> None:
        matches = islice(_TOKEN.finditer(text), MAX_TOKENS + 1)
        self.tokens = [(str(match.lastgroup), match[match.lastindex or 0]) for match in matches]
        if len(self.tokens) > MAX_TOKENS:
            raise ValueError(f"the calls have more than {MAX_TOKENS} tokens")
        self.tokens.append(("end", ""))
        self.at = 0
        self.text = text

    def calls(self) -> list[Call]:
        found = []
        if self.accept("["):
            while not self.accept("]"):
                found.append(self.call())
                self.separator("]")
        else:
            if re.search(r"[\r\n]", self.text.partition("(")[0]):
                raise ValueError("a bare call is broken over lines before its bracket")
            found.append(self.call())
        if self.tokens[self.at][0] != "end":
            raise ValueError(f"unexpected {self.shown()} after the calls")
        return found

    def call(self) -> Call:
        parts = [self.name()]
        while self.accept("."):
            parts.append(self.name())
        self.expect("(")
        arguments: dict[str, Any] = {}
        while not self.accept(")"):
            name = self.name()
            self.expect("=")
            if name in arguments:
                raise ValueError(f"argument '{name[:80]}' is given twice")
            arguments[name] = self.value(0)
            self.separator(")")
        return Call(".".join(parts), arguments)

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError(f"an argument nests deeper than {MAX_DEPTH}")
        kind, token = self.tokens[self.at]
        if kind == "string":
            return self.string()
        self.at += 1
        if kind == "number":
            return _number(token)
        if kind == "name" and token in _CONSTANTS:
            return _CONSTANTS[token]
        if token in ("+", "-") and self.tokens[self.at][0] == "number":
            number = _number(self.tokens[self.at][1])
            self.at += 1
            return -number if token == "-" else number
        if token in ("[", "("):
            return self.sequence(token, depth)
        if token == "{":
            return self.mapping(depth)
        self.at -= 1
        raise ValueError(f"{self.shown()} is not a literal value")

    def sequence(self, opening: str, depth: int) -> Any:
        items, comma = [], False
        while not self.accept(_CLOSING[opening]):
            items.append(self.value(depth + 1))
            comma = self.separator(_CLOSING[opening])
        # (1) is a number in brackets; (1,) and () are tuples, which stand for lists
        return items[0] if opening == "(" and len(items) == 1 and not comma else items

    def mapping(self, depth: int) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not self.accept("}"):
            if self.tokens[self.at][0] != "string":
                raise ValueError(f"{self.shown()} is not a string key of a dict")
            key = self.string()
            self.expect(":")
            if key in items:
                raise ValueError(f"key '{key[:80]}' is given twice")
            items[key] = self.value(depth + 1)
            self.separator("}")
        return items

    def string(self) -> str:
        pieces = []
        while self.tokens[self.at][0] == "string":  # adjacent literals are one string in Python
            pieces.append(_string(self.tokens[self.at][1]))
            self.at += 1
        return "".join(pieces)

    def name(self) -> str:
        kind, token = self.tokens[self.at]
        if kind != "name" or not token.isidentifier() or keyword.iskeyword(token):
            raise ValueError(f"{self.shown()} is not a name")
        self.at += 1
        return token

    def accept(self, mark: str) -> bool:
        if self.tokens[self.at] == ("mark", mark):
            self.at += 1
            return True
        return False

    def expect(self, mark: str) -> None:
        if not self.accept(mark):
            raise ValueError(f"{self.shown()} where '{mark}' belongs")

    def separator(self, closing: str) -> bool:
        """Takes a comma, if there is one; without it the closing bracket must come next."""
        comma = self.accept(",")
        if not comma and self.tokens[self.at] != ("mark", closing):
            raise ValueError(f"{self.shown()} where ',' or '{closing}' belongs")
        return comma

    def shown(self) -> str:
        return repr(self.tokens[self.at][1][:40]) if self.tokens[self.at][0] != "end" else "the end of the text"


def _number(token: str) -> int | float:
    if token[:2].lower() in ("0x", "0o", "0b") or not re.search("[.eE]", token):
        return read_int(token)
    return read_float(token)


def _string(token: str) -> str:
    raw = token[0] in "rR"
    body = token[token[0] in "rRuU" :]
    quotes = 3 if body[:3] in ("'''", '"""') else 1
    body = body[quotes:-quotes]
    if "\r" in body:
        body = body.replace("\r\n", "\n").replace("\r", "\n")  # Python reads every line ending as \n
    return body if raw or "\\" not in body else _ESCAPE.sub(_unescaped, body)


def _unescaped(match: re.Match[str]) -> str:
    if octal := match["octal"]:
        return chr(int(octal, 8))
    if code := match["hex"]:
        return chr(int(code, 16))  # ValueError above U+10FFFF
    if name := match["named"]:
        try:
            character = unicodedata.lookup(name)
        except KeyError:
            raise ValueError(f"no character is called {name[:40]!r}") from None
        if len(character) != 1:
            raise ValueError(f"{name[:40]!r} is more than one character")
        return character
    other = match["other"]
    if other in "xuUN":
        raise ValueError(f"a string holds an incomplete \\{other} escape")
    return _SIMPLE.get(other, "\\" + other)  # Python keeps the backslash of an escape it does not know

"""A report in sections, as text for a terminal and as a self-contained HTML page; text of rows is escaped in both."""

import html
from collections.abc import Sequence
from typing import NamedTuple

from datamodules.system.escaping import visible

ANSI = {"title": "1", "faint": "2", "prompt": "2", "cot": "36", "call": "32", "good": "32", "bad": "31"}
"""Kinds of text, and how a terminal shows them."""
STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; border-bottom: 1px solid #8886 }
pre { font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 }
.title { font-weight: 600 } .faint { opacity: .65 }
.prompt { background: #8882 } .cot { background: #09c3 } .call { background: #0a43 }
.good { color: #087f3f; font-weight: 600 } .bad { color: #c22; font-weight: 600 }
@media (prefers-color-scheme: dark) { .good { color: #4c8 } .bad { color: #f77 } }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


class Span(NamedTuple):
    """A piece of a line.

    Attributes:
        text: Any text; it may hold line feeds.
        kind: One of `ANSI`, or "".
    """

    text: str
    kind: str = ""


Line = Sequence[Span]


class Section(NamedTuple):
    """A title and the lines below it."""

    title: str
    lines: Sequence[Line]


def plain(text: str, kind: str = "") -> Line:
    """A line of one piece."""
    return (Span(text, kind),)


def as_text(sections: Sequence[Section], color: bool) -> str:
    """The sections for a terminal.

    Args:
        sections: What to show.
        color: Whether to write ANSI's colours; there is no other control character in the text.
    """
    blocks = []
    for section in sections:
        lines = ["".join(_ansi(span, color) for span in line) for line in section.lines]
        blocks.append("\n".join([_ansi(Span(section.title, "title"), color), *(f"  {line}" for line in lines)]))
    return "\n\n".join(blocks)


def as_html(title: str, sections: Sequence[Section]) -> str:
    """The sections as one page that loads nothing and runs nothing."""
    body = []
    for section in sections:
        lines = "\n".join("".join(map(_tagged, line)) for line in section.lines)
        body.append(f"<section>\n<h2>{_escaped(section.title)}</h2>\n<pre>{lines}</pre>\n</section>")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n'
        f"<title>{_escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{_escaped(title)}</h1>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _ansi(span: Span, color: bool) -> str:
    text = visible(span.text).replace("\n", "\n  ")
    return f"\x1b[{ANSI[span.kind]}m{text}\x1b[0m" if color and span.kind and text else text


def _tagged(span: Span) -> str:
    return f'<span class="{span.kind}">{_escaped(span.text)}</span>' if span.kind else _escaped(span.text)


def _escaped(text: str) -> str:
    return html.escape(visible(text))

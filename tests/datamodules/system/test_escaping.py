"""What a terminal and a renderer of Markdown are given of foreign text."""

import html

import markdown as markdown_package
import pytest

from datamodules.system.escaping import markdown_text, visible
from datamodules.system.sentences import sentence


def test_a_terminal_is_told_nothing():
    assert visible("a\x1b[2Jb\x9b\r\x07\u202e\ud800\tc\nd é 世") == "a\\x1b[2Jb\\x9b\\r\\x07\\u202e\\ud800\tc\nd é 世"
    assert sentence("rows\x1b]0;owned\x07.jsonl:\n  - none") == "rows\\x1b]0;owned\\x07.jsonl: none"


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script> <b onclick=x>",
        "![i](http://x/y.png) [l](javascript:alert(1)) [l]: http://x",
        "# head | pipe | ---",
        "**bold** _it_ ~~no~~ `code` ``` $x$ :tag: @who",
        "&lt;b&gt; \\` \\| <!-- x -->",
        "http://x.y www.x.y <http://x>",
    ],
)
def test_markdown_shows_the_text_as_it_is(text):
    page = markdown_package.markdown(f"- row: {markdown_text(text, 200)}", extensions=["tables", "fenced_code"])
    assert page.startswith("<ul>\n<li>row: ") and page.endswith("</li>\n</ul>")
    shown = page.removeprefix("<ul>\n<li>row: ").removesuffix("</li>\n</ul>")
    assert "<" not in shown and html.unescape(shown) == text
    written = markdown_text(text, 200)
    assert "://" not in written and "www." not in written  # what GitHub would make a link of


def test_a_long_text_is_cut_before_it_is_escaped():
    assert markdown_text("a||||", 3) == "a&#124;…"

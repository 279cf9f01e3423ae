"""The table of samples as TensorBoard renders it."""

import html
import re

import pytest
from tensorboard.plugin_util import markdown_to_safe_html

from lightning_modules.callbacks import escape_cell, markdown_table

NASTY = [
    "<script>alert(1)</script><b>bold</b>",
    "a | b | c",
    "**bold** _it_ `code` ~~no~~ # head",
    "[link](javascript:alert(1)) ![img](http://x/y.png)",
    "&lt;b&gt; &#124; &amp;",
    "back\\slash \\| pipe",
    "http://x.y/z www.x.y $x$ :tag: @who",
    "1. one * two - three + four",
    "<think>line\nline</think>\n\n[f(a='x|y')]",
]


@pytest.mark.parametrize("text", NASTY)
def test_text_comes_out_of_the_rendered_table_as_it_went_in(text):
    page = markdown_to_safe_html(markdown_table([{"completion": text, "score": "1"}], max_chars=200))
    first, second = re.findall(r"<td>(.*?)</td>", page, re.DOTALL)
    assert not re.sub("<br/?>", "", first).count("<")  # no tag but line feeds
    assert html.unescape(re.sub("<br ?/?>", "\n", first)) == text
    assert second == "1"


def test_long_cells_are_cut_before_they_are_escaped():
    assert escape_cell("a||||", 3) == "a&#124;…"


def test_a_cell_holds_no_control_characters():
    assert escape_cell("a\x1b[2Jb\r\nc\u202e", 100) == "a&#92;x1b&#91;2Jb<br>c&#92;u202e"


def test_header_and_rows():
    lines = markdown_table([{"id": "1", "query": "q"}, {"id": "2", "query": "r"}], 10).splitlines()
    assert lines == ["| id | query |", "| --- | --- |", "| 1 | q |", "| 2 | r |"]

"""The report of rows that would like to write it themselves."""

import markdown as markdown_package
import pytest

from datamodules.example import Example
from datamodules.refinement.judging import Outcome, Verdict
from datamodules.refinement.report import Examples, Tally, markdown


def report(text):
    tally, examples = Tally(), Examples()
    example = Example(text, text, "[]", "[]", cot=text, response=text)
    kept = Outcome(example, (Verdict("call", False, "call", text, text), Verdict("call", True)))
    for number, outcome in enumerate((kept, Outcome(example, (Verdict("cot", False, "cot", text, text),))), start=1):
        tally.add(outcome)
        examples.add(number, outcome)
    return markdown(tally.as_dict(), {}, examples)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script><img src=x onerror=alert(1)>",
        "![](http://evil/x.png) [click](http://evil) <http://evil>",
        "x\n\n## Refused by nobody\n\n| a | b |\n| --- | --- |\n| 1 | 2 |",
        "# head",
        "- one\n  - two\n> quoted\n***\n---\n===\n1. three",
        "`` ` `` ```\ncode\n``` </code></li></ul><h1>x</h1>",
        "a\x1b[2J\x1b]0;t\x07\u2028# x\u2029# y\r# z\x85# w",
    ],
)
def test_no_text_of_a_row_changes_the_report(text):
    plain, attacked = (markdown_package.markdown(report(t), extensions=["tables", "fenced_code"]) for t in ("p", text))

    def frame(page):
        return [part.partition(">")[0] for part in page.split("<")[1:]]

    assert frame(attacked) == frame(plain) and len(report(text).splitlines()) == len(report("p").splitlines())
    assert "\x1b" not in report(text) and "://" not in report(text)

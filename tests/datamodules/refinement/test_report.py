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


def test_stages_of_a_recipe_of_one_s_own_stand_before_the_last_check():
    tally, examples, example = Tally(), Examples(), Example("1", "q", "[]", "[]")
    call, short = Verdict("call", True), Verdict("short", False, "short", "too long")
    for number, verdicts in enumerate([(call, short), (call, Verdict("short", True), Verdict("row", True))], start=1):
        tally.add(outcome := Outcome(example, verdicts))
        examples.add(number, outcome)
    assert tally.as_dict()["stages"] == {
        "call": {"reached": 2, "passed": 2, "dropped": 0},
        "short": {"reached": 2, "passed": 1, "dropped": 1},
        "row": {"reached": 1, "passed": 1, "dropped": 0},
    }
    assert "## Refused by short\n\n- row 1 (1): q\n" in markdown(tally.as_dict(), {}, examples)

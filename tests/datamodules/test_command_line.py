"""The parser and the sentences that all commands share."""

import pytest

from datamodules.command_line import SentenceParser, refuse, sentence

NESTED = """Parser key "judges":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'list'>, <class 'NoneType'>]
  Errors:
    - Key 'tau' is not a number
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'tau': 'high'}"""


def test_a_sentence_keeps_the_cause():
    assert sentence(NESTED) == "Parser key \"judges\": Key 'tau' is not a number"
    assert sentence("plain") == "plain"
    assert sentence("Errors:\nSubtypes: x") == "Errors:\nSubtypes: x"  # better all of it than an empty line


def test_bad_options_end_with_exit_code_2_and_without_usage(capsys):
    parser = SentenceParser(prog="command")
    parser.add_argument("--rows", type=int)
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(["--rows=many"])
    tip, last = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 2 and tip.endswith("command --help")
    assert last.startswith("error: ") and "rows" in last and "many" in last


def test_refused_input_ends_with_exit_code_1():
    with pytest.raises(SystemExit) as exit_:
        refuse(ValueError("rows:\n  - too few"))
    assert exit_.value.code == "error: rows: too few"  # a text as the code is printed, and the process exits with 1

"""Both forms of the study's further pre-training say the same of the same functions."""

import ast
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are run from the repository and not installed
from benchmarks.study_pretraining import form_document


def test_code_can_be_parsed_and_prose_names_the_same_values_in_the_same_order():
    for index in range(30):
        code, prose = (form_document(index, 3, code) for code in (True, False))
        calls = [statement.value for statement in ast.parse(code[1]["content"]).body]
        lines = prose[1]["content"].splitlines()
        assert len(calls) == len(lines)
        for call, line in zip(calls, lines, strict=True):
            assert f"there was {call.func.id}." in line
            said = [f"The {word.arg} was {ast.literal_eval(word.value)}." for word in call.keywords]
            assert line.endswith(" ".join(said))


def test_code_shows_a_definition_of_every_function_and_the_values_that_it_goes_on_with():
    shown, said = (message["content"] for message in form_document(1, 3, code=True))
    for text in shown.splitlines():
        ast.parse(f"{text}\n    pass" if text.startswith("def ") else text)
    defined = {text.partition("(")[0].removeprefix("def ") for text in shown.splitlines() if text.startswith("def ")}
    assert {line.partition("(")[0] for line in said.splitlines()} <= defined

"""What parsers say of settings, in one sentence."""

import pytest

from datamodules.system.sentences import sentence

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


def test_a_value_in_the_place_of_several_settings_is_told_what_goes_there():
    said = """Parser key "model":
      Parser key "sampling":
      Unable to load config '3'
        Parser key "sampling":
        Unable to load config "3\""""
    wanted = (
        'Parser key "model": Parser key "sampling": takes several settings, key: value, or a YAML with them, and got 3'
    )
    assert sentence(said) == wanted


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("path", " Expected a <class 'str'>. Got value: ['a.jsonl', 'b.jsonl']"),
        (
            "val_path",
            """
    Does not validate against any of the Union subtypes
    Subtypes: [<class 'str'>, <class 'NoneType'>]
    Errors:
      - Expected a <class 'str'>
      - Expected a <class 'NoneType'>
    Given value type: <class 'list'>
    Given value: ['a.jsonl', 'b.jsonl']""",
        ),
    ],
)
def test_a_list_of_files_is_told_where_they_go(key, said):
    advice = "takes one file or folder, and got a list: put its files into a folder, and give that"
    assert (
        sentence(f'Parser key "data":\n  Parser key "{key}":{said}')
        == f'Parser key "data": Parser key "{key}": {advice}'
    )


def test_what_is_none_of_the_kinds_wanted_is_told_which_these_are():
    said = """Parser key "trainer.precision":
      Does not validate against any of the Union subtypes
      Subtypes: [typing.Literal[64, 32, 16], typing.Literal['16-true', 'bf16-mixed'], <class 'NoneType'>]
      Errors:
        - Expected a <class 'int'>
        - Expected a typing.Literal['16-true', 'bf16-mixed']
        - Expected a <class 'NoneType'>
      Given value type: <class 'str'>
      Given value: fp16"""
    wanted = "Parser key \"trainer.precision\": takes int, '16-true' or 'bf16-mixed', and got fp16"
    assert sentence(said) == wanted
    said = 'Parser key "model":\n  Parser key "rank": Expected a <class \'int\'>. Got value: abc'
    assert sentence(said) == 'Parser key "model": Parser key "rank": takes int, and got abc'


@pytest.mark.parametrize(
    ("said", "alike"),
    [
        (
            "Import path m.Mine does not implement protocol Generator",
            ", with methods annotated as those of Generator are, down to what they return",
        ),
        (
            """Expected a path but m.Mine either not accessible or invalid
        Import path does not correspond to a subclass of Generator
      Given value: m.Mine""",
            "",
        ),
    ],
)
def test_a_class_that_is_none_of_those_wanted_is_told_so(said, alike):
    keys = 'Parser key "model": Parser key "generator": '
    advice = f"m.Mine is no Generator: give the import path of one{alike}; --model.generator.help shows some"
    assert sentence(keys + said) == keys + advice


@pytest.mark.parametrize("other", ["Expected a <class 'collections.abc.Iterable'>", "Not a valid subclass of Logger"])
def test_a_class_that_cannot_be_made_is_told_why_and_not_what_else_could_stand_there(other):
    message = f"""Does not validate against any of the Union subtypes
Subtypes: [<class 'Logger'>, collections.abc.Iterable[Logger], <class 'bool'>]
Errors:
  - {other}
    Subclass types expect one of:
    - a dict with parameters accepted by the base class (implicit class_path)
  - Problem with given class_path 'WandbLogger':
      Requirement 'wandb' not met.
      Try to install it
  - Expected a <class 'bool'>
Given value type: <class 'list'>
Given value: [Namespace(class_path='WandbLogger')]"""
    assert sentence(message) == "Requirement 'wandb' not met. Try to install it"


def test_what_is_no_function_is_told_once_and_why():
    kind = "Type collections.abc.Callable[[str, str], typing.Any] expects a function or a callable class: "
    hull = f"{kind}Expected 'typing.Any' to be a class that instantiates into callable. Got value: Namespace(a=1)"
    said = f"""Parser key "function":
      - {kind}Option 'mst' is not accepted. Got value: Namespace(class_path='m.C', init_args=Namespace(mst=2))
      - {hull}"""
    assert sentence(said) == "Parser key \"function\": Option 'mst' is not accepted"
    said = f"""Parser key "rewards":
      - No module named 'm'
      - {kind}No module named 'm'
      Given value: m.f"""
    advice = "there is no module m: install it, or name its folder, as PYTHONPATH=. before the command"
    assert sentence(said) == f'Parser key "rewards": {advice}'
    said = """Parser key "model":
      Expected a path but m.Own either not accessible or invalid
      No module named 'm'
      Given value: m.Own"""
    assert sentence(said) == f'Parser key "model": {advice}'
    wanted = 'Parser key "f": takes the name of a function, or class_path and init_args in a YAML'
    assert sentence(f'Parser key "f":\n  - {hull}') == wanted


def test_a_long_message_is_cut():
    assert len(sentence("x" * 10_000)) < 1000

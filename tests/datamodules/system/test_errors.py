"""The sentences that all commands end with when something is wrong."""

import errno
import importlib
import os
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from datamodules.system import errors
from datamodules.system.errors import one_sentence, refuse, run_folder, sentence

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


def test_refused_input_ends_with_exit_code_1():
    with pytest.raises(SystemExit) as exit_:
        refuse(ValueError("rows:\n  - too few"))
    assert exit_.value.code == "error: rows: too few"  # a text as the code is printed, and the process exits with 1


def ended(error, args=(), folder=None):
    """What a command says whose body raises this."""
    with pytest.raises(SystemExit) as exit_, one_sentence(list(args)):
        if folder:
            run_folder.set(folder)
        raise error
    assert "\n" not in exit_.value.code
    return exit_.value.code


def test_what_the_project_says_itself_is_the_whole_sentence(monkeypatch):
    monkeypatch.setattr(errors, "SPEAK", (Path(__file__).parent,))
    assert ended(ValueError("data.path: x is\n  empty")) == "error: data.path: x is empty"
    assert ended(ExceptionGroup("unhandled", [ValueError("inner")])) == "error: inner"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("x"), ["KeyError: 'x'", f"(in {__file__}, line "]),
        (AssertionError(), ["error: AssertionError"]),
        (zipfile.BadZipFile("not a zip"), ["BadZipFile: not a zip"]),
        (Exception(), ["error: Exception"]),
    ],
    ids=["key", "assertion", "library", "empty"],
)
def test_what_says_too_little_names_its_kind_and_a_file_with_the_traceback(tmp_path, monkeypatch, error, words):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    said = ended(error)
    (file,) = tmp_path.iterdir()
    assert all(word in said for word in words) and said.endswith(f"(traceback: {file})")
    assert "in ended" in file.read_text() and type(error).__name__ in file.read_text()


def test_a_slip_is_one_of_the_program_where_that_raises_it_and_not_a_module_of_the_users(monkeypatch):
    assert "likely a bug" not in ended(KeyError("x"))
    monkeypatch.setattr(errors, "ROOT", Path(__file__).parent)
    monkeypatch.setattr(errors, "OURS", (Path(__file__).parent,))
    assert "KeyError: 'x' (in test_errors.py); this is likely a bug of the program" in ended(KeyError("x"))


def test_an_error_of_the_system_names_its_file_and_no_number(tmp_path):
    with pytest.raises(OSError) as caught:
        (tmp_path / "absent").read_text()
    assert ended(caught.value) == f"error: {tmp_path / 'absent'}: No such file or directory"


def test_a_disk_that_is_full_is_blamed_whatever_a_library_says(tmp_path):
    for error in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("unexpected pos 19392 vs 19286")):
        said = ended(error, folder=tmp_path)
        assert said.startswith(f"error: {tmp_path}: its disk is full")


def test_a_disk_that_is_full_holds_no_empty_traceback(tmp_path, monkeypatch):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir(), elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # files may be made, and nothing be written to them
    try:
        said = ended(KeyError("x"), folder=run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "traceback" not in said and [*run.iterdir(), *elsewhere.iterdir()] == []


def test_the_traceback_goes_to_the_run_folder_by_rank_and_to_the_screen_under_debug(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    outside = run_folder.get()
    said = ended(KeyError("x"), ["fit", "--debug"], tmp_path)
    assert said.endswith(f"(traceback: {tmp_path / 'traceback-3.txt'})")
    assert (tmp_path / "traceback-3.txt").read_text() in capsys.readouterr().err
    assert run_folder.get() == outside != tmp_path  # the next command has a folder of its own


@pytest.mark.parametrize("end", ["import sys; sys.exit(0)", "exit(3)", "raise SystemExit"])
def test_a_module_of_the_user_cannot_end_a_command_in_silence(tmp_path, monkeypatch, end):
    (tmp_path / "leaves_early.py").write_text(f"\n{end}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "leaves_early", raising=False)
    with pytest.raises(SystemExit) as exit_, one_sentence([]):
        importlib.import_module("leaves_early")
    said = exit_.value.code
    assert said.startswith(f"error: {tmp_path / 'leaves_early.py'}, line 2, ends the process") and "sys.exit" in said


def test_a_long_message_is_cut():
    assert len(sentence("x" * 10_000)) < 1000


def test_a_terminal_that_lacks_a_letter_ends_no_command():
    code = "from datamodules.system.errors import one_sentence\n"
    code += "with one_sentence([]):\n    print('weather in \u5317\u4eac')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout == b"weather in \\u5317\\u4eac\n"


def test_a_reader_that_has_left_is_no_error():
    """`funreason show … | head`: the rest has no reader, which is no fault of anybody's."""
    code = "from datamodules.system.errors import one_sentence\n"
    code += "with one_sentence([]):\n    print('x' * 10**6, flush=True)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(60) == 141 and process.stderr.read() == b""

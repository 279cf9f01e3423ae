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
from datamodules.system.errors import one_sentence, refuse, run_folder


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

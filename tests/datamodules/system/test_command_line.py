"""The parser that all commands share."""

import warnings

import pytest
from jsonargparse import _deprecated

from datamodules.system import command_line
from datamodules.system.command_line import SentenceParser, configs_first
from datamodules.system.errors import one_sentence


def test_bad_options_end_with_exit_code_2_and_without_usage(capsys):
    parser = SentenceParser(prog="command")
    parser.add_argument("--rows", type=int)
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(["--rows=many"])
    tip, last = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 2 and tip.endswith("command --help")
    assert last.startswith("error: ") and "rows" in last and "many" in last


def test_an_option_is_not_guessed_from_its_beginning(capsys):
    parser = SentenceParser(prog="command")
    parser.add_argument("--rows", type=int)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--row=1"])
    assert capsys.readouterr().err.endswith("--row=1\n") and parser.parse_args(["--rows=1"]).rows == 1


def test_debug_is_no_option_of_a_parser_and_shows_what_one_has_refused(capsys):
    parser = SentenceParser(prog="command")
    parser.add_argument("--rows", type=int)
    with pytest.raises(SystemExit), one_sentence(["--rows=many", "--debug"]) as words:
        parser.parse_args(words)
    assert "Traceback" in capsys.readouterr().err and words == ["--rows=many"]
    assert "--debug" in parser.format_help()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"rows: [1", ["c.yaml", "line 1"]),
        (b"\xff\xfe", ["c.yaml", "UTF-8"]),
        (b"- 1", ["c.yaml", "key: value"]),
        (b"x: " + b"[" * 3000, ["c.yaml", "deeply"]),
        (b"a: \x00", ["c.yaml", "not YAML"]),
        (b"a:\n- rows: 1\nb: *x\n", ["c.yaml", "not YAML"]),
        (b"rows: 1\nlist: [{x: &a {y: 1}, z: *a}]\nrows: 2\n", ["c.yaml, line 3", "rows is set twice"]),
        (b"a:\n- {x: 1, y: 2, x: 1}\n", ["c.yaml, line 2", "x is set twice"]),
        (b"rows: 1\na: {{ROWS}}\n", ["c.yaml, line 2", "a value with {{ }} is put in quotes"]),
        (b"a:\n  init_args:\n  - x: 1\n", ["c.yaml, line 2", "init_args is a list: give settings"]),
        (b"a:\n  class_path:\n  init_args:\n    x: 1\n", ["c.yaml, line 2", "class_path names no class"]),
    ],
)
def test_a_file_of_options_that_is_none_is_named(tmp_path, capsys, text, words):
    parser = SentenceParser(prog="command")
    parser.add_argument("--config", action="config")
    parser.add_argument("--rows", type=int)
    (tmp_path / "c.yaml").write_bytes(text)
    for args in ([f"--config={tmp_path / 'c.yaml'}"], ["--config", str(tmp_path / "c.yaml")]):
        with pytest.raises(SystemExit) as exit_:
            parser.parse_args(args)
        last = capsys.readouterr().err.splitlines()[-1]
        assert exit_.value.code == 2 and all(word in last for word in words), last


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        ("fit --a 1 --config c --b=2 -c d", "fit --config c -c d --a 1 --b=2"),
        ("--a -1 --config=c --a 2", "--config=c --a -1 --a 2"),
        ("fit --a 1 --model M --config c --data.class_path=D", "fit --model M --config c --a 1 --data.class_path=D"),
        ("fit --config c --model M", "fit --config c --model M"),
        ("ask run --a 1", "ask run --a 1"),
        ("fit --a 1 --config", "fit --config --a 1"),
    ],
)
def test_files_of_options_come_before_the_options_that_win_over_them(given, ordered):
    assert configs_first(given.split()) == ordered.split()


def test_an_option_wins_over_a_file_that_follows_it(tmp_path):
    parser = SentenceParser(prog="command")
    parser.add_argument("--config", action="config")
    parser.add_argument("--rows", type=int)
    (tmp_path / "c.yaml").write_text("rows: 1\n")
    assert parser.parse_args(["--rows=2", "--config", str(tmp_path / "c.yaml")]).rows == 2


@pytest.mark.parametrize("given", [["--config", ""], ["--config="], ["-c", "", "--rows=1"]])
def test_an_empty_name_of_a_file_of_options_is_told(capsys, given):
    parser = SentenceParser(prog="command")
    parser.add_argument("-c", "--config", action="config")
    parser.add_argument("--rows", type=int)
    with pytest.raises(SystemExit):
        parser.parse_args(given)
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --config names no file: give one")


def test_a_shipped_yaml_that_an_installation_lacks_is_said_to_be_in_the_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_line, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "shipped", lambda path: path)
    parser = SentenceParser(prog="command")
    parser.add_argument("--config", action="config")
    with pytest.raises(SystemExit):
        parser.parse_args(["--config", "configs/rl.yaml"])
    wanted = (
        "error: --config configs/rl.yaml lies in the checkout, and this installation was made without it: install by"
    )
    assert capsys.readouterr().err.splitlines()[-1].startswith(wanted)
    (tmp_path / "configs").mkdir()
    with pytest.raises(SystemExit):
        parser.parse_args(["--config", "configs/srml.yaml"])
    assert "checkout" not in capsys.readouterr().err


def test_no_command_ends_where_warnings_are_errors(monkeypatch):
    """`python -W error`: Lightning and the refinement call what jsonargparse is about to drop."""
    monkeypatch.setattr(_deprecated, "shown_deprecation_warnings", set())
    monkeypatch.delenv("JSONARGPARSE_DEPRECATION_WARNINGS", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parser = SentenceParser(prog="command")
        parser.instantiate_classes(parser.parse_args([]))

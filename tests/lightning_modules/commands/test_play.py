import os
import socket
import sys
from pathlib import Path

import pytest

from lightning_modules.cli import main
from lightning_modules.commands.play import PAGE, page_options, streamlit_arguments


@pytest.fixture
def started(monkeypatch):
    """What this process would have become."""
    calls = []
    monkeypatch.setattr(os, "execv", lambda *call: calls.append(call))
    return calls


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_the_page_is_served_on_the_loopback_and_tells_nobody(started, tiny_model_dir, capsys):
    port = free_port()
    main(["play", str(tiny_model_dir), "--data", "toolbox:heldout:5", "--port", str(port)])
    expected = streamlit_arguments([str(tiny_model_dir)], "toolbox:heldout:5", "127.0.0.1", port)
    assert started == [(sys.executable, [sys.executable, *expected])]
    assert {"--server.address=127.0.0.1", f"--server.port={port}", "--server.headless=true"} < set(expected)
    assert {"--browser.gatherUsageStats=false", "--logger.hideWelcomeMessage=true"} < set(expected)
    assert f"http://127.0.0.1:{port} " in capsys.readouterr().out


def test_the_page_is_handed_what_the_command_was_given():
    arguments = streamlit_arguments(["a/run", "b"], "rows.jsonl", "127.0.0.1", 1)
    mine = arguments[arguments.index("--") + 1 :]
    assert page_options(mine) == (["a/run", "b"], "rows.jsonl") and page_options(["a", "a"]) == (["a"], None)
    assert Path(PAGE).is_file() and arguments[arguments.index("--") - 1] == str(PAGE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/at/all"], "no folder nowhere/at/all"),
        (["MODEL", "--data", "no/rows.jsonl"], "no/rows.jsonl"),
        (["MODEL", "--port", "BUSY"], "): give another port"),
        (["MODEL", "--port", "99999"], "): give another port"),
    ],
)
def test_what_cannot_be_played_is_one_sentence(started, tiny_model_dir, words, message):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        given = {"MODEL": str(tiny_model_dir), "BUSY": str(busy.getsockname()[1])}
        with pytest.raises(SystemExit) as stop:
            main(["play", *(given.get(word, word) for word in words)])
    assert str(stop.value).startswith("error: ") and message in str(stop.value) and not started

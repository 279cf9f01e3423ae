import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from browser import browser

from lightning_modules.commands.play import streamlit_arguments

ROOT = Path(__file__).resolve().parents[3]
IDLE = "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState == 'notRunning'"
CLICK = "[...document.querySelectorAll('button')].find(b => b.innerText == '{}')?.click() || true"


@pytest.fixture
def served(tmp_path, tiny_model_dir):
    """The page of a run whose samples hold a hostile text, served on the loopback; and the server's output."""
    (tmp_path / "hf").symlink_to(tiny_model_dir)
    tools = json.dumps([{"name": "f", "description": "", "parameters": {}}])
    row = {"id": "1", "query": "<img src=x onerror='window.stolen=1'>", "tools": tools, "answers": "[]", "step": 3}
    row |= {"completion": "<script>window.stolen=1</script>", "score": 0.0, "cot": "", "finish_reason": "stop"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row) + "\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path / "server.log"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    with log.open("w") as out:
        command = [sys.executable, *streamlit_arguments([str(tmp_path)], None, "127.0.0.1", port)]
        server = subprocess.Popen(command, stdout=out, stderr=out, cwd=tmp_path, env=environment)
    try:
        end = time.monotonic() + 120
        while True:
            assert server.poll() is None and time.monotonic() < end, log.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health"):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", log
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_a_group_is_sampled_in_a_real_browser(served, tmp_path):
    url, log = served
    profile = tmp_path / "profile"
    profile.mkdir()
    with browser(profile, url) as page:
        page.wait("document.querySelector('textarea[aria-label=Query]')?.value")
        page.wait(IDLE)
        page.js(CLICK.format("Open"))  # the row of samples.jsonl
        page.wait("document.querySelector('textarea[aria-label=Query]').value.startsWith('<img')")
        assert page.wait("document.body.innerText.includes('window.stolen=1</script>')")
        page.write("textarea[aria-label=Query]", "Rain in Oslo?")
        page.write("input[aria-label='Most tokens']", "5")
        page.wait(IDLE)
        page.js(CLICK.format("Sample a group"))
        page.wait("document.querySelectorAll('.fr-card').length == 4")
        words = page.js("document.querySelector('.fr-card').innerText")
        assert "reward 0" in words and "A +0.000" in words and "not read as calls" in words
        shades = page.js(
            "[...document.querySelectorAll('.fr-t')].map(t => [getComputedStyle(t).backgroundColor, t.title])"
        )
        assert 4 <= len(shades) <= 4 * 5  # bytes within a character show nothing
        assert all(colour.startswith("rgba(14, 165, 233") and title.endswith(" nats") for colour, title in shades)
        assert "Rain in Oslo?" in page.js("document.body.textContent")  # the prompt, folded away
        assert page.js("window.stolen === undefined")
        names = page.js("performance.getEntriesByType('resource').map(r => r.name)")
        assert all(name.startswith((url, "data:", "blob:")) for name in names), (
            names
        )  # no telemetry, nothing from outside
        assert page.screenshot().startswith(b"\x89PNG")
    assert "Traceback" not in log.read_text()

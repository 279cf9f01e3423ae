"""Debian's chromium without a screen, driven by its DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import pytest
from websockets.sync.client import connect


class Page:
    """A tab that shows a URL."""

    def __init__(self, socket):
        self.socket, self.number = socket, 0

    def call(self, method, **params):
        """One command of the protocol, and what it returns; what happens meanwhile is passed over."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while (reply := json.loads(self.socket.recv(timeout=60))).get("id") != self.number:
            pass
        assert "error" not in reply, reply
        return reply["result"]

    def js(self, expression):
        """The value of an expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression, seconds=120):
        """The first value of an expression that is true."""
        end = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"never came: {expression}; the page: {self.js('document.body.innerText')}"
            time.sleep(0.2)
        return value

    def write(self, selector, text):
        """Replace what a field holds, as a hand would."""
        self.js(f"(field => {{ field.focus(); field.select() }})(document.querySelector({json.dumps(selector)}))")
        self.call("Input.insertText", text=text)
        self.js("document.activeElement.blur()")

    def screenshot(self):
        """The window as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])


@contextmanager
def browser(folder, url, width=1400, height=1000):
    """Open a URL; skips where there is no chromium, and fails there with CI=true."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("chromium is not installed: apt-get install chromium")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--remote-debugging-port=0", f"--user-data-dir={folder}", f"--window-size={width},{height}"]
    with (folder / "browser.log").open("w") as log:
        process = subprocess.Popen([program, *options, "about:blank"], stdout=log, stderr=log)
    try:
        port, end = folder / "DevToolsActivePort", time.monotonic() + 60
        while not (port.is_file() and len(port.read_text().split()) == 2):
            assert process.poll() is None and time.monotonic() < end, (folder / "browser.log").read_text()
            time.sleep(0.1)
        where = f"http://127.0.0.1:{port.read_text().split()[0]}/json/new?{url}"
        with urllib.request.urlopen(urllib.request.Request(where, method="PUT"), timeout=30) as reply:
            tab = json.load(reply)
        with connect(tab["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Page(socket)
    finally:
        process.kill()
        process.wait()

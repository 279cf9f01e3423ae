"""The plugin by which pytest says how each test has ended, as soon as it has; it imports nothing that takes long."""

import json
from typing import Any

ENDED = "ended: "  # begins the lines that say so of a test


def pytest_runtest_logreport(report: Any) -> None:
    """Say how a test has ended, where pytest has this module as a plugin."""
    if report.when == "call" or not report.passed:
        value = {"outcome": report.outcome, "took, s": round(report.duration, 2)}
        value |= {"error": report.longreprtext[-1500:]} if report.failed else {}
        print(f"\n{ENDED}{json.dumps([report.nodeid, value])}", flush=True)

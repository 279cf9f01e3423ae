"""Records what benchmarks measure in `results.json`, and in `RESULTS.md`, which is made from it."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from datamodules.system.files import write_text

FOLDER = Path(__file__).resolve().parent


def record(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> None:
    """Print a table, and put it into both files in the place of the benchmark's earlier one.

    Args:
        title: What was measured; the key of the benchmark in `results.json`.
        columns: Headings.
        rows: Cells, with units where the heading has none.
        note: How it was measured and what to read from it.
    """
    results = FOLDER / "results.json"
    known = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    name = Path(sys.argv[0]).stem
    known[title] = {
        "command": " ".join(["python -m", f"benchmarks.{name}", *sys.argv[1:]]),
        "commit": _commit(),
        "machine": f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}",
        "note": note,
        "columns": list(columns),
        "rows": [list(row) for row in rows],
    }
    page = "# What was measured\n\nMade from `results.json` by the commands named here.\n"
    page += "".join(_section(title, found) for title, found in sorted(known.items()))
    for path, text in ((results, json.dumps(known, indent=2) + "\n"), (FOLDER / "RESULTS.md", page)):
        write_text(path, text)
    print("\n".join([" | ".join(columns), *(" | ".join(row) for row in rows)]))


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=FOLDER, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":(top,exclude)benchmarks")
    return git("rev-parse", "--short", "HEAD") + (" with uncommitted changes" if changed else "")


def _section(title: str, found: dict) -> str:
    lines = [found["columns"], ["---"] * len(found["columns"]), *found["rows"]]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    made = f"`{found['command']}` at commit {found['commit']}, on {found['machine']}."
    return f"\n## {title}\n\n{table}\n\n{found['note']}\n\n{made}\n"

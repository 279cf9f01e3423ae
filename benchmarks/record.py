"""Records what benchmarks measure in `results.json`, and in `RESULTS.md`, which is made from it."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from datamodules.system.escaping import markdown_table
from datamodules.system.files import write_text

FOLDER = Path(__file__).resolve().parent


def record(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    note: str,
    key: str | None = None,
    ratios: dict[str, Any] | None = None,
    keep: bool = True,
    origin: dict[str, str] | None = None,
) -> None:
    """Print a table, and put it into both files in the place of the benchmark's earlier one.

    Args:
        title: What was measured; the key of the benchmark in `results.json`.
        columns: Headings.
        rows: Cells, with units where the heading has none.
        note: How it was measured and what to read from it.
        key: Under which `ratios` stand in `results.json`, for those who read numbers.
        ratios: Numbers by name, such as `speed_vs_trl`, or lists of them, such as the least and the greatest.
        keep: Whether to write; else the table is printed only.
        origin: Command, commit and machine of what was measured elsewhere.
    """
    print("\n".join([title, " | ".join(columns), *(" | ".join(row) for row in rows), note, json.dumps(ratios or {})]))
    if not keep:
        return
    results = FOLDER / "results.json"
    known = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    # No paths of a machine.
    module, *words = (Path(word).stem if Path(word).is_absolute() else word for word in sys.argv)
    here = f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    known[title] = {
        "command": " ".join(["python -m", f"benchmarks.{module}", *words]),
        "commit": commit(),
        "machine": here,
        **(origin or {}),
        "note": note,
        "columns": list(columns),
        "rows": [list(row) for row in rows],
    }
    if key is not None:
        known[key] = ratios or {}
    for path, text in ((results, json.dumps(known, indent=2) + "\n"), (FOLDER / "RESULTS.md", page(known))):
        write_text(path, text)


def page(known: dict[str, dict[str, Any]]) -> str:
    """`RESULTS.md`: one table of all ratios, and a section for each benchmark."""
    tables = {name: found for name, found in known.items() if "columns" in found}
    ratios = {name: found for name, found in known.items() if name not in tables}
    text = "# What was measured\n\nMade from `results.json` by the commands named here.\n"
    if ratios:
        rows = [
            [f"`{key}`", f"`{name}`", _number(v)] for key, found in sorted(ratios.items()) for name, v in found.items()
        ]
        text += f"\n## Ratios\n\n{markdown_table(['benchmark', 'ratio', 'value'], rows)}\n"
    return text + "".join(_section(title, found) for title, found in sorted(tables.items()))


def _number(value: float | list[float]) -> str:
    return " to ".join(f"{v:.3g}" for v in (value if isinstance(value, list) else [value]))


def commit() -> str:
    """The commit that this checkout is of; FUNREASON_COMMIT says it where there is no git."""
    if told := os.environ.get("FUNREASON_COMMIT"):
        return told

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=FOLDER, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":(top,exclude)benchmarks")
    return git("rev-parse", "--short", "HEAD") + (" with uncommitted changes" if changed else "")


def _section(title: str, found: dict[str, Any]) -> str:
    made = f"`{found['command']}` at commit {found['commit']}, on {found['machine']}."
    return f"\n## {title}\n\n{markdown_table(found['columns'], found['rows'])}\n\n{found['note']}\n\n{made}\n"

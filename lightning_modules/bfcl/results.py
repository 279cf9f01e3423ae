"""BFCL answers on disk, in the layout that the official scorer reads.

A run keeps `result/` for the first sample of each row, `result-2/` for the second and so on; each is a `--result-dir`
of `bfcl evaluate`. `bfcl.json` beside them says what the answers depend on.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from datamodules.bfcl.package import BFCLPackage
from datamodules.system.files import write_text

SETTINGS = "bfcl.json"

Results = dict[str, dict[str, Any]]
"""Lines of result files by the id of their row."""


def result_folder(run: Path, sample: int) -> Path:
    """The folder of the answers of a sample, counted from 0."""
    return run / ("result" if sample == 0 else f"result-{sample + 1}")


def result_file(folder: Path, package: BFCLPackage, model_name: str, category: str) -> Path:
    """The official place of the answers of a category, below the folder of a sample."""
    folder = folder / model_name.replace("/", "_")
    if package.version == 4:
        folder /= "live" if category.startswith("live") else "non_live"
    return folder / f"{package.prefix}{category}_result.json"


def read_results(file: Path, ids: Collection[str]) -> Results:
    """Read a result file.

    Args:
        file: The file; one that is not there holds nothing.
        ids: Of the rows of its category.

    Returns:
        Its lines by the id of their row.

    Raises:
        ValueError: A line is not whole, repeats an id, or is about no row of the category.
    """
    results: Results = {}
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            result = json.loads(line)
            usable = result["id"] in ids and isinstance(result["result"], str)
        except (ValueError, TypeError, KeyError):
            usable = False
        if not usable or result["id"] in results:
            what = f"repeats row {result['id']}" if usable else "is not a whole result of one of its rows"
            raise ValueError(f"{file}, line {number} {what}: delete the line, and its row is answered again")
        results[result["id"]] = result
    return results


def write_results(file: Path, results: Iterable[Mapping[str, Any]]) -> None:
    """Write a result file; an interruption leaves the one before."""
    write_text(file, "".join(json.dumps(result) + "\n" for result in results), fsync=False)


def earlier_results(
    root: Path,
    settings: Mapping[str, Any],
    package: BFCLPackage,
    model_name: str,
    ids: Mapping[str, Collection[str]],
) -> list[Results]:
    """Find the answers that earlier runs gave under the same settings.

    Args:
        root: The folder of the runs' folders.
        settings: What the answers depend on; `samples` of them a row.
        package: Where the rows are from.
        model_name: Name of the model in the official layout.
        ids: Of all rows of each category.

    Returns:
        For each sample, the lines found.

    Raises:
        ValueError: A result file is damaged.
    """
    every: list[Results] = [{} for _ in range(settings["samples"])]
    runs = [file.parent for file in root.glob(f"*/{SETTINGS}") if json.loads(file.read_text()) == settings]
    for run in runs:
        for sample, results in enumerate(every):
            for category, known in ids.items():
                file = result_file(result_folder(run, sample), package, model_name, category)
                results.update(read_results(file, known))
    return every

"""Compares the scores of a BFCL evaluation with those of the official scorer: `make bfcl-official`."""

import csv
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from datamodules.bfcl.package import BFCLPackage, find_package
from datamodules.bfcl.rows import AST, CATEGORIES, LIVE_AST, SIMPLE, read_category
from datamodules.system import guard
from lightning_modules.bfcl.results import SETTINGS, read_results, result_file, result_folder
from lightning_modules.bfcl.scores import BFCLAccuracy, Score, match_answer
from lightning_modules.bfcl.table import percent


def official_columns(version: int) -> dict[tuple[str, str], str]:
    """Official file and column of each of our metrics."""
    simple = [f"{language} Simple AST" for language in ("Python", "Java", "JavaScript")]
    ast = ["Multiple AST", "Parallel AST", "Parallel Multiple AST"]
    live_ast = [f"Python {name}" for name in ("Simple AST", *ast)]
    non_live = dict(zip(simple, SIMPLE[version], strict=True)) | dict(zip(ast, AST, strict=True))
    non_live |= {"AST Summary": "non_live_ast", "Simple AST": "simple_ast", "Irrelevance Detection": "irrelevance"}
    live = dict(zip(live_ast, LIVE_AST, strict=True)) | {"AST Summary": "live_ast", "Live Overall Acc": "live"}
    live |= {"Irrelevance Detection": "live_irrelevance", "Relevance Detection": "live_relevance"}
    non_live["Non_Live Overall Acc" if version == 3 else "Non-Live Overall Acc"] = "non_live"
    overall = {"Non-Live AST Acc": "non_live_ast", "Live Acc": "live", "Irrelevance Detection": "irrelevance_detection"}
    files = {"data_non_live.csv": non_live, "data_live.csv": live, "data_overall.csv": overall}
    return {(file, column): name for file, columns in files.items() for column, name in columns.items()}


def our_scores(package: BFCLPackage, results: Path, model_name: str) -> tuple[dict[str, Score], dict[str, set[str]]]:
    """Our scores of a folder of result files, and the ids of the answers that we find wrong in each category.

    Raises:
        ValueError: A result file is damaged, or a category has some of its answers only.
    """
    rows = {
        category: {row.id: row for row in read_category(package, category)} for category in CATEGORIES[package.version]
    }
    accuracy = BFCLAccuracy(package.version, {category: len(known) for category, known in rows.items()})
    wrong: dict[str, set[str]] = {}
    for category, known in rows.items():
        answers = read_results(file := result_file(results, package, model_name, category), known)
        if 0 < len(answers) < len(known):
            raise ValueError(f"{file} has {len(answers)} of {len(known)} answers, and the official scorer wants all")
        for row, answer in answers.items():
            verdict = match_answer(package, known[row], answer["result"])
            accuracy.update(category, verdict.matched)
            if not verdict.matched:
                wrong.setdefault(category, set()).add(row)
    return accuracy.compute(), wrong


def score_officially(environment: Path, results: Path, scores: Path, model_name: str) -> dict[tuple[str, str], str]:
    """Run the official scorer, and return the cells of its tables by file and column.

    Args:
        environment: The virtual environment that it is installed in.
        results: Folder of result files.
        scores: Where it writes its own files.
        model_name: The registered name that the results are written under.
    """
    options = {"model": model_name, "test-category": "single_turn", "result-dir": results, "score-dir": scores}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as root:  # it makes folders of its own there
        command = [environment / "bin" / "bfcl", "evaluate", *words]
        guard.run(command, env=os.environ | {"BFCL_PROJECT_ROOT": root}, check=True)
    cells = {}
    for file in scores.glob("data_*.csv"):
        with file.open(encoding="utf-8", newline="") as lines:
            (row,) = csv.DictReader(lines)
        cells |= {(file.name, str(column)): cell for column, cell in row.items()}
    return cells


def wrong_officially(scores: Path, package: BFCLPackage) -> dict[str, set[str]]:
    """The ids of the answers that the official scorer found wrong, by category."""
    wrong = {}
    for file in scores.rglob(f"{package.prefix}*_score.json"):
        _, *lines = file.read_text(encoding="utf-8").splitlines()
        category = file.name.removeprefix(package.prefix).removesuffix("_score.json")
        wrong[category] = {json.loads(line)["id"] for line in lines}
    return {category: ids for category, ids in wrong.items() if ids}


def compare(ours: Mapping[str, Score], theirs: Mapping[tuple[str, str], str], version: int) -> tuple[str, bool]:
    """Both tables of scores side by side, and whether they are equal."""
    lines, equal = [f"{'official table and column':<52}{'official':>12}{'ours':>12}"], True
    for (file, column), name in official_columns(version).items():
        cell = percent(name, ours[name])
        cell = cell if cell == "N/A" else f"{cell}%"
        equal = equal and theirs[file, column] == cell
        lines.append(f"{file + ': ' + column:<52}{theirs[file, column]:>12}{cell:>12}")
    return "\n".join(lines), equal


def main(run: str, environment: str) -> None:
    """Score every sample of a run officially and by ourselves; exit 1 if anything differs.

    Args:
        run: Version folder of a `funreason test` with a `BFCLModule`.
        environment: Virtual environment in which `bfcl-eval` is installed with all it asks for.
    """
    folder = Path(run)
    (packages,) = Path(environment).glob("lib/python3*/site-packages")
    settings, package = json.loads((folder / SETTINGS).read_text(encoding="utf-8")), find_package(str(packages))
    if settings["bfcl-eval"] != package.release:
        sys.exit(f"error: {run} answers bfcl-eval {settings['bfcl-eval']}, and {environment} has {package.release}")
    for sample in range(settings["samples"]):
        results, name = result_folder(folder, sample), settings["registered_name"]
        scores = folder / results.name.replace("result", "score")
        ours, wrong = our_scores(package, results, name)
        table, equal = compare(ours, score_officially(Path(environment), results, scores, name), package.version)
        same = wrong == wrong_officially(scores, package)
        tables, verdicts = ("equal" if agree else "DIFFER" for agree in (equal, same))
        print(f"\n{results}\n{table}\ntables {tables}; verdicts on the rows {verdicts}")
        if not (equal and same):
            sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])

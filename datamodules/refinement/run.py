"""A refinement from its rows to its files: rows in flight, journal, outputs in the order of the input."""

import asyncio
import gc
import json
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic
from typing import Any

from tqdm import tqdm

from datamodules.example import BadRow, Example
from datamodules.holdout import opening, query_places
from datamodules.refinement.journal import Journal
from datamodules.refinement.judging import JudgesLost, Outcome, Panel, Verdict
from datamodules.refinement.report import ERROR, Examples, Tally, markdown, rejection
from datamodules.rows import check_request, unchecked_example
from datamodules.system.files import write_text
from datamodules.system.redaction import redact
from datamodules.xlam import write_jsonl

Recipe = Callable[[Example, Panel], Awaitable[Outcome]]
Rows = Iterator[tuple[int, Any]]
DRAW_EVERY = 30.0  # seconds between two points of the curves in TensorBoard


class Progress:
    """Counts of a run while it goes on: a progress bar, and curves in TensorBoard over the rows decided.

    Args:
        folder: Where the curves are written.
        total: Rows there are.
        tally: What was decided before; rows that are decided are added to it.
        sync: Called with every point of the curves: what was decided goes to the disk.
    """

    def __init__(self, folder: Path, total: int, tally: Tally, sync: Callable[[], None] = lambda: None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # late: seconds that no question and no --help should take

        self.tally, self.sync = tally, sync
        self.bar = tqdm(total=total, initial=tally.totals["rows"], unit="row", mininterval=1.0, dynamic_ncols=True)
        self.board = SummaryWriter(str(folder), max_queue=1000)
        self.drawn = monotonic()

    def show(self, rows: int) -> None:
        """Move on by rows that have been added to the tally."""
        self.bar.set_postfix({name: self.tally.totals[name] for name in ("kept", "rejected")}, refresh=False)
        self.bar.update(rows)
        if monotonic() - self.drawn > DRAW_EVERY:
            self.draw()

    def draw(self) -> None:
        """Write a point of every curve."""
        self.drawn = monotonic()
        self.sync()
        for name, value in self.tally.metrics().items():
            self.board.add_scalar(name, value, self.tally.totals["rows"])

    def close(self) -> None:
        """Finish bar and curves."""
        self.draw()
        self.bar.close()
        self.board.close()


def refine_rows(
    rows: Rows,
    total: int,
    recipe: Recipe,
    judge: Panel,
    journal: Journal,
    in_flight: int,
    max_row_errors: float = 0.05,
) -> None:
    """Decide every row that the journal does not have.

    Args:
        rows: Numbers and rows as they were read; never more than `in_flight` of them are in memory.
        total: How many there are.
        recipe: What is done with a row.
        judge: Who is asked.
        journal: Keeps each outcome as soon as there is one.
        in_flight: Rows worked on at a time.
        max_row_errors: Share of rows that may end in an unexpected exception.

    Raises:
        RuntimeError: The judges cannot be asked any more, or too many rows end in an exception.
        OSError: The journal cannot be written.
    """
    tally = Tally()
    for _, outcome in journal.outcomes():
        tally.add(outcome)
    progress = Progress(journal.path.parent, total, tally, journal.sync)

    def count(outcome: Outcome) -> None:
        tally.add(outcome)
        progress.show(1)
        check_errors(tally, total, max_row_errors, outcome)

    async def work_all() -> None:
        try:
            await decide_rows(rows, recipe, judge, journal, in_flight, count)
        finally:
            await judge.close()

    gc.freeze()  # looking through all that the imports made for garbage would be a tenth of the work
    try:
        asyncio.run(work_all())
    finally:
        gc.unfreeze()
        progress.close()


async def decide_rows(
    rows: Rows, recipe: Recipe, judge: Panel, journal: Journal, in_flight: int, count: Callable[[Outcome], None]
) -> None:
    """Decide every row that the journal does not have.

    Args:
        rows: See `refine_rows`, here and for what follows.
        recipe: What is done with a row.
        judge: Who is asked; not closed.
        journal: Keeps each outcome.
        in_flight: Rows worked on at a time.
        count: Is given each outcome once the journal has it; what it raises stops the run.
    """

    async def work() -> None:
        for number, raw in rows:  # all workers take from the one iterator
            if not journal.has(number):
                outcome = await decide(number, raw, recipe, judge, journal.claim)
                try:
                    journal.write(number, outcome)
                except (UnicodeEncodeError, TypeError) as error:
                    # Half a pair of surrogates, or a value that is no JSON.
                    verdict = Verdict("row", False, ERROR, _unexpected(error))
                    outcome = Outcome(Example("", "", "[]", "[]"), (verdict,), content=ascii(raw))
                    journal.write(number, outcome)
                count(outcome)
                await asyncio.sleep(0)  # rules never wait, and Ctrl-C is noticed only where something does

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(work())
    except ExceptionGroup as errors:  # one worker failed, and the others were stopped
        raise errors.exceptions[0] from errors


async def decide(number: int, raw: Any, recipe: Recipe, judge: Panel, claim: Callable[[int, str], int]) -> Outcome:
    """Read one row and refine it; a row that is no row is rejected here, and one that the recipe trips over.

    Args:
        number: Of the row.
        raw: The row as it was read.
        recipe: What is done with it.
        judge: Who is asked.
        claim: Notes the id of a row; gives the number of the row that had it first (`Journal.claim`).
    """
    example, content = Example("", "", "[]", "[]"), raw
    try:
        found = unchecked_example(raw)
        found = replace(found, id=found.id or f"row-{number}")
        check_request(found)  # the answer is for the recipe to judge
        if (first := claim(number, found.id)) != number:
            raise BadRow("id", f"{found.id!r} is already the id of row {first}")
        example, content = found, None
        return await recipe(example, judge)
    except BadRow as error:
        verdict = Verdict("row", False, error.column or "row", error.reason)
    except (JudgesLost, OSError):  # of the judges or the journal: the run's end
        raise
    except Exception as error:  # whatever it is, the other rows have no part in it
        verdict = Verdict("row", False, ERROR, _unexpected(error))
    return Outcome(example, (verdict,), content)


def _unexpected(error: Exception) -> str:
    """What an exception is and where it comes from."""
    place, words = traceback.extract_tb(error.__traceback__)[-1], redact(str(error))[:200]
    return f"unexpected {type(error).__name__}: {words} ({Path(place.filename).name}, line {place.lineno})"


def check_errors(tally: Tally, total: int, share: float, outcome: Outcome) -> None:
    """Stop a run in which too many rows end in an exception; a single one never stops it, unless none may.

    Args:
        tally: Of the rows decided; in the beginning they count as a hundred, or as all that there are.
        total: Rows there are.
        share: Of them that may end so.
        outcome: Of the last row.

    Raises:
        RuntimeError: The last row ended so, and there are more.
    """
    last, errors, rows = outcome.verdicts[-1], tally.totals["errors"], max(tally.totals["rows"], min(total, 100))
    if last.fault == ERROR and errors > share * rows and (errors > 1 or share == 0):
        raise RuntimeError(
            f"{errors} row{'s' * (errors > 1)} ended in an {last.reason}: more than max_row_errors ({share:g}) allows; "
            "raise it to reject such rows and go on"
        )


def write_results(
    folder: Path,
    journal: Journal,
    val_fraction: float = 0.0,
    planted: Callable[[Iterator[Outcome]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write `refined.jsonl`, `rejected.jsonl`, `report.md` and `report.json`; in the order of the rows.

    Args:
        folder: Where to.
        journal: With every row decided.
        val_fraction: Share of the kept queries that go to `validation.jsonl` instead.
        planted: Gives metrics about planted defects.

    Returns:
        The report.
    """
    tally, examples = write_rows(folder, journal, val_fraction)
    metrics = planted(outcome for _, outcome in journal.outcomes()) if planted else {}
    return write_report(folder, tally, examples, metrics)


def write_rows(folder: Path, journal: Journal, val_fraction: float, part: str = "") -> tuple[Tally, Examples]:
    """Write the rows that a journal has, as `refined.jsonl`, or of a part as `refined/PART.jsonl`, and so on.

    Returns:
        Their counts, and the first ones of each stage.
    """
    tally, examples = Tally(), Examples()

    def file(kind: str) -> Path:
        return folder / kind / f"{part}.jsonl" if part else folder / f"{kind}.jsonl"

    def kept(held_out: bool) -> Iterator[dict[str, Any]]:
        for _, outcome in journal.outcomes():
            request = opening(outcome.example.query, outcome.example.history)
            # a name before it, or training on what is left would find next to nothing to hold out by the same draw
            if outcome.kept and held_out == bool(query_places([f"refinement {request}"])[0] < val_fraction):
                yield asdict(outcome.example)

    def rejected() -> Iterator[dict[str, Any]]:
        for number, outcome in journal.outcomes():
            tally.add(outcome)
            examples.add(number, outcome)
            if not outcome.kept:
                yield rejection(number, outcome)

    write_jsonl(file("refined"), kept(held_out=False))
    if val_fraction:
        write_jsonl(file("validation"), kept(held_out=True))
    write_jsonl(file("rejected"), rejected())
    return tally, examples


def write_report(folder: Path, tally: Tally, examples: Examples, planted: dict[str, Any]) -> dict[str, Any]:
    """Write `report.md` and `report.json`, and give the latter: counts, and metrics of planted defects if any are."""
    report = tally.as_dict()
    write_text(folder / "report.md", markdown(report, planted, examples))
    report |= {"planted": planted} if planted else {}
    write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")
    return report

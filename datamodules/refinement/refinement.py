"""One refinement: its settings and rows, and its folder, in which a run that was stopped goes on."""

import importlib.util
import inspect
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import yaml

from datamodules.example import Example
from datamodules.readers import fingerprint, is_toolbox, read_rows
from datamodules.refinement.corruption import Corpus, corrupted_rows, planted_metrics
from datamodules.refinement.journal import NAME, Journal
from datamodules.refinement.judging import Judge, Outcome, Panel, Vote
from datamodules.refinement.rule_judge import RuleJudge
from datamodules.refinement.run import Rows, refine_rows, write_report, write_results
from datamodules.system.errors import run_folder
from datamodules.system.files import check_writable, write_text
from datamodules.system.locks import sole_writer
from datamodules.system.redaction import redact_settings

MAY_CHANGE = (
    "config",
    "output_dir",
    "in_flight",
    "max_row_errors",
    "ray_address",
    "processes",
    "servers",
    "per_server",
    "timeout",
    "patience",
    "rate_limit",
)
"""Settings that a run may be continued with other values of: how judges are reached, not what they are asked."""


@dataclass(frozen=True)
class Data:
    """Rows to refine.

    Attributes:
        path: A file, folder, hub id, or `toolbox[:split[:rows[:seed]]]`; see `readers.read_rows`.
    """

    path: str

    def __post_init__(self) -> None:
        """Refuse an empty path."""
        if not self.path:
            raise ValueError("data.path is empty: give the rows, as a file, a folder, a saved data set or a hub id")


class Refinement:
    """One refinement: rows in, refined and rejected rows out.

    Args:
        output_dir: Folder of what is written. A run that was stopped resumes from what it finds there.
        recipe: What is done with a row: `datamodules.refinement.fcdr` (FunReason's five stages), `funrl` (FunRL's
            preparation) or `write_cot` (the first judge writes chains of thought for rows that have none).
        judges: Who is asked.
        vote: How several judges decide: all of them, more than half, or the mean of their scores.
        tau: Score from which a judgement is a yes.
        regenerations: Corrections tried before a row is dropped.
        data: The rows.
        corpus: In the place of `data`: rows of the shipped corpus with planted defects.
        limit: Refine the first rows only.
        val_fraction: Share of the kept queries that are written to `validation.jsonl` instead.
        in_flight: Rows worked on at a time; more than the requests that servers take at once, so that one is always
            at hand.
        max_row_errors: Share of rows that may be rejected because of an unexpected exception; with more the run stops.
        engine: `ray` refines on the machines of a Ray cluster, in processes that have each their own judges, with what
            these and `in_flight` and `max_row_errors` are set to; `refined/`, `rejected/` and `validation/` then hold
            a file of each block. This process alone when None.
        ray_address: Of the cluster; `RAY_ADDRESS` when None, and without one Ray is started on this machine.
        processes: Of the cluster; when None one for each of its cores, or for each vLLM engine that its GPUs hold.
        block_rows: Rows that a process of the cluster decides and writes at a time; 10,000 when None.

    Raises:
        ValueError: A setting is impossible.
    """

    def __init__(
        self,
        output_dir: str,
        recipe: Callable[[Example, Panel, int], Awaitable[Outcome]],
        judges: list[Judge],
        vote: Vote = "unanimous",
        tau: float = 0.5,
        regenerations: int = 3,
        data: Data | None = None,
        corpus: Corpus | None = None,
        limit: int | None = None,
        val_fraction: float = 0.0,
        in_flight: int = 128,
        max_row_errors: float = 0.05,
        engine: Literal["ray"] | None = None,
        ray_address: str | None = None,
        processes: int | None = None,
        block_rows: int | None = None,
    ) -> None:
        if (data is None) == (corpus is None):
            raise ValueError("give the rows as either data.path or corpus, not both and not neither")
        if in_flight < 1 or regenerations < 0 or (limit is not None and limit < 1) or not 0 <= val_fraction < 1:
            raise ValueError(
                "in_flight and limit must be at least 1, regenerations at least 0 and val_fraction from 0 to below 1, "
                f"not {in_flight}, {limit}, {regenerations} and {val_fraction}"
            )
        if not 0 <= max_row_errors <= 1:
            raise ValueError(f"max_row_errors must be from 0 to 1, not {max_row_errors}")
        if engine == "ray" and corpus is not None:
            raise ValueError("engine ray refines rows of data.path; a corpus with planted defects needs no cluster")
        if engine is None and any(value is not None for value in (ray_address, processes, block_rows)):
            raise ValueError("ray_address, processes and block_rows are settings of engine ray: add --engine ray")
        if min(1 if value is None else value for value in (processes, block_rows)) < 1:
            raise ValueError(f"processes and block_rows must be at least 1, not {processes} and {block_rows}")
        if engine == "ray" and importlib.util.find_spec("ray") is None:
            raise ValueError("engine ray needs Ray: pip install -e '.[ray]'")
        check_recipe(recipe)
        self.folder = check_writable("output_dir", output_dir)
        self.recipe = partial(recipe, regenerations=regenerations)
        self.judge = Panel(judges, vote, tau)
        self.data, self.corpus, self.limit = data, corpus, limit
        self.val_fraction, self.in_flight, self.max_row_errors = val_fraction, in_flight, max_row_errors
        self.engine, self.ray_address, self.processes, self.block_rows = engine, ray_address, processes, block_rows

    def rows(self) -> Rows:
        """Iterate over the rows as they are read, each with its number."""
        if self.corpus is None:
            return islice(read_rows(self.data.path), self.limit)
        return islice(((n, row) for n, (row, _, _) in enumerate(corrupted_rows(self.corpus), start=1)), self.limit)

    def planted(self, outcomes: Iterator[Outcome]) -> dict[str, Any]:
        """Metrics of the planted defects of `corpus`."""
        return planted_metrics(outcomes, islice(corrupted_rows(self.corpus), self.limit))

    def source(self) -> str:
        """A fingerprint of the rows: a text that changes when they do."""
        return repr(self.corpus) if self.data is None else fingerprint(self.data.path)

    def run(self, settings: dict[str, Any]) -> None:
        """Refine, or go on refining; a folder that is finished is left as it is.

        Args:
            settings: What the run is, as it is saved beside its results, but for what is secret.
        """
        total = sum(1 for _ in self.rows())
        secrets, settings = settings, redact_settings(settings | {"source": self.source()})
        if self._is_finished(settings) and not (self.folder / NAME).exists():  # which a kill at the very end leaves
            self._say_finished()
            return
        ours = self.data is None or is_toolbox(self.data.path)
        if not ours and any(isinstance(judge, RuleJudge) for judge in self.judge.judges):
            print(
                "RuleJudge goes by the words of the shipped corpus: of other rows it rejects many good ones, and the "
                "chains of thought that it writes are a template's. A file of configs/paper/ puts a model in its "
                "place: fcdr.yaml after refine.yaml, funrl_data.yaml after refine_rl.yaml, cot.yaml after cot.yaml"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        run_folder.set(self.folder)
        if self.engine == "ray":
            with sole_writer(self.folder.resolve()):
                self._run_on_ray(settings, secrets, total)
        else:
            self._run_here(settings, total)

    def _run_here(self, settings: dict[str, Any], total: int) -> None:
        """Refine in this process."""
        journal = Journal(self.folder)
        try:
            if self._is_finished(settings):  # by a run that held the lock until now
                self._say_finished()
                journal.delete()
                return
            write_text(self.folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
            limits = (self.in_flight, self.max_row_errors)
            refine_rows(self.rows(), total, self.recipe, self.judge, journal, *limits)
            self._check_source(settings)
            planted = self.planted if self.corpus else None
            report = write_results(self.folder, journal, self.val_fraction, planted)
        except BaseException as error:
            print(f"{len(journal):,} of {total:,} rows are decided and kept; the same command resumes there")
            journal.close()
            if isinstance(error, OSError) and error.strerror and not error.filename:  # of a write, which names no file
                raise OSError(f"{self.folder} cannot be written: {error.strerror}") from error
            raise
        journal.delete()
        print(summary(report, self.folder, "refined.jsonl"))

    def _run_on_ray(self, settings: dict[str, Any], secrets: dict[str, Any], total: int) -> None:
        """Refine in the processes of a cluster."""
        from datamodules.refinement.ray_engine import BLOCK_ROWS, Job, refine_blocks

        if self._is_finished(settings):  # by a run that held the lock until now
            self._say_finished()
            return
        write_text(self.folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
        job = Job(
            folder=self.folder.resolve(),
            rows=self.rows,
            total=total,
            recipe=self.recipe,
            judge=self.judge,
            settings=secrets,
            in_flight=self.in_flight,
            max_row_errors=self.max_row_errors,
            val_fraction=self.val_fraction,
            block_rows=self.block_rows or BLOCK_ROWS,
        )
        tally, examples = refine_blocks(job, self.processes, self.ray_address)
        self._check_source(settings)
        print(summary(write_report(self.folder, tally, examples, {}), self.folder, "refined"))

    def _check_source(self, settings: dict[str, Any]) -> None:
        """Refuse results of rows that are others now."""
        if self.source() != settings["source"]:
            raise ValueError(f"{self.data.path} changed while it was refined: refine it into another output_dir")

    def _say_finished(self) -> None:
        print(f"{self.folder} is finished: {self.folder / 'report.md'} says what was done")

    def _is_finished(self, settings: dict[str, Any]) -> bool:
        """Whether the folder holds the results of this very run.

        Raises:
            ValueError: It holds another run.
        """
        saved = self.folder / "config.yaml"
        if not saved.is_file():
            return False
        try:
            theirs = yaml.safe_load(saved.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{saved} cannot be read ({error}): choose another output_dir, or remove it") from error
        differing = _differing(redact_settings(theirs), settings)
        if differing:
            raise ValueError(
                f"{self.folder} holds a run with other settings ({', '.join(differing)}): choose another output_dir, "
                "or remove the folder"
            )
        return (self.folder / "report.json").is_file()


def check_recipe(recipe: Callable[..., Awaitable[Outcome]]) -> None:
    """Refuse a recipe that cannot be called as it will be.

    Raises:
        ValueError: Saying how it is called and what it takes.
    """
    signature = inspect.signature(recipe)
    try:
        signature.bind("example", "judge", regenerations=3)
    except TypeError as error:
        raise ValueError(
            f"recipe is called as recipe(example, judge, regenerations=3), and takes {signature}: {error}"
        ) from error


def _differing(ours: Any, theirs: Any, key: str = "settings") -> list[str]:
    """Names of the settings that differ, but for those that may change."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = [name for name in ours | theirs if name not in MAY_CHANGE]
        return [found for name in names for found in _differing(ours.get(name), theirs.get(name), name)]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [found for pair in zip(ours, theirs, strict=True) for found in _differing(*pair, key)]
    return [] if ours == theirs else [key]


def summary(report: dict[str, Any], folder: Path, refined: str) -> str:
    """Text to print at the end of a run, with the names of its folder and of the refined rows in it."""
    lines = [
        f"{report['rows']:,} rows: {report['kept']:,} kept ({report['regenerated']:,} with a regenerated answer, "
        f"{report['statements']:,} without a call), {report['rejected']:,} rejected "
        f"({report['undecided']:,} undecided, {report['errors']:,} by an unexpected error)"
    ]
    for stage, counts in report["stages"].items():
        lines.append(f"  {stage:<12}{counts['reached']:>9,} reached{counts['dropped']:>9,} dropped")
    for kind, metrics in report.get("planted", {}).items():
        lines.append(
            f"  {kind:<20}{metrics['planted']:>6,} planted   precision {metrics['precision']}   "
            f"recall {metrics['recall']}"
        )
    return "\n".join([*lines, f"Refined rows: {folder / refined}; the report: {folder / 'report.md'}"])

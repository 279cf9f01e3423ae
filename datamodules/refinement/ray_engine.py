"""A refinement on Ray: blocks of rows go to the processes of a cluster, and come back as parts of the results.

A block is decided whole by one process, as a run of its own would decide it, and is written as `refined/PART.jsonl`,
`rejected/PART.jsonl` and, last of all, `blocks/PART.json`: its counts, by which a restart knows that it is finished.
Ray Data hands the blocks out, one at a time to each process, and hands out again what a process was at when it died.
"""

import asyncio
import gc
import json
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings

from datamodules.example import Example
from datamodules.refinement.journal import Journal
from datamodules.refinement.judging import Outcome, Panel, Verdict
from datamodules.refinement.report import Examples, Tally
from datamodules.refinement.run import Progress, Recipe, Rows, check_errors, decide, decide_rows, write_rows
from datamodules.refinement.vllm_judge import VLLMJudge
from datamodules.system.files import write_text
from datamodules.system.redaction import keep_secrets_of

if TYPE_CHECKING:
    import pandas as pd

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
BLOCK_ROWS = 10_000
RETRIES = 3  # of a block, each time that its process dies


@dataclass(frozen=True)
class Job:
    """What each process is told.

    Attributes:
        folder: Where parts are written, on a disk that all machines share.
        rows: Gives numbers and rows as they are read, from the first one on.
        total: How many there are.
        recipe: What is done with a row.
        judge: Who is asked; each process has its own, with the requests in flight and the rate that it is set to.
        settings: As they were given, secrets included, which nothing that is written may hold.
        in_flight: Rows that a process works on at a time.
        max_row_errors: Share of the rows that a process decides which may end in an unexpected exception.
        val_fraction: Share of the kept queries that go to `validation/` instead.
        block_rows: Rows of a block.
        place: The folder that relative paths start from.
    """

    folder: Path
    rows: Callable[[], Rows]
    total: int
    recipe: Recipe
    judge: Panel
    settings: Mapping[str, Any]
    in_flight: int
    max_row_errors: float
    val_fraction: float
    block_rows: int
    place: str = field(default_factory=os.getcwd)

    def blocks(self) -> list[dict[str, Any]]:
        """For each block the name of its `part`, and the place of its `first` row, from 0."""
        firsts = range(0, self.total, self.block_rows)
        return [{"part": f"part-{number:05d}", "first": first} for number, first in enumerate(firsts)]


def refine_blocks(job: Job, processes: int | None, address: str | None) -> tuple[Tally, Examples]:
    """Decide and write every block that is not finished.

    Args:
        job: The refinement.
        processes: How many; one for each core of the cluster, or for each engine that its GPUs hold, when None.
        address: Of a running cluster; `RAY_ADDRESS` when None, and without one Ray is started on this machine.

    Returns:
        The counts of all blocks, and the first rows of each stage.

    Raises:
        RuntimeError: The judges cannot be asked any more, too many rows end in an exception, or Ray gives up.
        OSError: A part cannot be written.
        ValueError: A part that a process has written is not here.
    """
    tally, _, unfinished = _finished(job)
    try:
        if unfinished:
            with _connected(address) as ray:
                _refine(ray, job, unfinished, processes, tally)
        tally, examples, unfinished = _finished(job)
        if unfinished:
            missing = _counts_file(job, unfinished[0]["part"])
            raise ValueError(f"{missing} was written and is not here: output_dir must lie where all machines share it")
    except BaseException:
        decided = _finished(job)[0].totals["rows"]
        print(f"{decided:,} of {job.total:,} rows are decided and kept; the same command resumes there")
        raise
    return tally, examples


def _finished(job: Job) -> tuple[Tally, Examples, list[dict[str, Any]]]:
    """Counts and first rows of the blocks that are finished, and the blocks that are not."""
    tally, examples, unfinished = Tally(), Examples(), []
    for block in job.blocks():
        try:
            counts = json.loads(_counts_file(job, block["part"]).read_text(encoding="utf-8"))
        except FileNotFoundError:
            unfinished.append(block)
            continue
        tally.merge(counts)
        examples.merge(counts["examples"])
    return tally, examples, unfinished


def _refine(ray: ModuleType, job: Job, blocks: list[dict[str, Any]], processes: int | None, tally: Tally) -> None:
    """Hand out the blocks, and count what comes back."""
    there = ray.cluster_resources()
    gpus = _gpus(job.judge) if there.get("GPU") else 0
    most = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if gpus > most:  # Ray would wait for such a machine
        raise RuntimeError(
            f"the judges' engines take {gpus} GPUs of one machine, and none of the cluster has more than {most:g}: "
            "lower their tensor_parallel_size"
        )
    processes = processes or max(1, int(there["GPU"] // gpus if gpus else there.get("CPU", 1)))
    progress = Progress(job.folder, job.total, tally)
    try:
        told = ray.put(job)
        claims = ray.put(_claims_of_others(ray, told, job.total, processes))
        pool = ray.data.ActorPoolStrategy(size=min(processes, len(blocks)), max_tasks_in_flight_per_actor=1)
        with catch_warnings(action="ignore", category=DeprecationWarning):  # such options have no other way in yet
            refined = ray.data.from_items(blocks, override_num_blocks=len(blocks)).map_batches(
                Refiner,
                fn_constructor_args=(told, claims),
                batch_size=1,
                compute=pool,
                num_cpus=1,
                num_gpus=gpus or None,
                max_task_retries=RETRIES,
            )
        for row in refined.iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, Exception):
                raise result
            tally.merge(result)
            progress.show(result["totals"]["rows"])
    except ray.exceptions.RayError as error:
        lines = [line for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
        if isinstance(error, ray.exceptions.RayActorError):
            died = f"a block whose process has died {1 + RETRIES} times"
            raise RuntimeError(f"Ray gives up {died}: {lines[0]}") from error
        raise RuntimeError(f"Ray gives up: {lines[-1]}") from error  # the reason, below a traceback
    finally:
        progress.close()


def _gpus(judge: Panel) -> int:
    """GPUs that a process needs for the engines that it runs itself."""
    engines = [engine for engine in judge.judges if isinstance(engine, VLLMJudge)]
    return sum(int(engine.options.get("tensor_parallel_size", 1)) for engine in engines)


class Refiner:
    """One process of the cluster: decides blocks one after the other, with judges that it keeps.

    Args:
        job: Ray's reference to the job.
        claims: Ray's reference to rows whose id another row has: their numbers, and number and id of that row.
    """

    def __init__(self, job: Any, claims: Any) -> None:
        import ray

        self.job, self.claims = ray.get([job, claims])
        _settle(self.job)
        self.loop = asyncio.Runner()  # the judges' connections belong to it
        self.tally = Tally()
        self.error: Exception | None = None
        self.source: Rows = iter(())
        self.at = self.job.total + 1  # where in the rows the source is
        gc.freeze()  # see `refine_rows`

    def __call__(self, block: Mapping[str, Any]) -> dict[str, list[bytes]]:
        """Decide and write a block; gives its counts, or the error that ends the run: Ray would give its text alone."""
        if self.error is None:
            try:
                return {"result": [pickle.dumps(self._refine(str(block["part"][0]), int(block["first"][0])))]}
            except (RuntimeError, OSError, ValueError) as error:
                self.error = error  # of what Ray hands out before it is stopped, nothing is asked
        return {"result": [pickle.dumps(self.error)]}

    def _refine(self, part: str, first: int) -> Any:
        job, file, journal = self.job, _counts_file(self.job, part), Journal(None)
        if file.exists():  # by a process that died before Ray had its word, and nothing is asked twice
            return json.loads(file.read_text(encoding="utf-8"))
        rows = self._rows(first, journal)
        self.loop.run(decide_rows(rows, job.recipe, job.judge, journal, job.in_flight, self._count))
        tally, examples = write_rows(job.folder, journal, job.val_fraction, part)
        journal.close()
        counts = vars(tally) | {"examples": examples.lines}
        write_text(file, json.dumps(counts) + "\n")
        return counts

    def _rows(self, first: int, journal: Journal) -> Rows:
        """The rows of a block; those before it are passed over. An id that another row has is claimed for that one."""
        if first < self.at:
            self.source, self.at = self.job.rows(), 0
        next(islice(self.source, first - self.at, first - self.at), None)
        self.at = first + self.job.block_rows
        for number, raw in islice(self.source, self.job.block_rows):
            if number in self.claims:
                journal.claim(*self.claims[number])
            yield number, raw

    def _count(self, outcome: Outcome) -> None:
        self.tally.add(outcome)
        check_errors(self.tally, self.job.total, self.job.max_row_errors, outcome)


def _claims_of_others(ray: ModuleType, job: Any, total: int, processes: int) -> dict[int, tuple[int, str]]:
    """For each row whose id an earlier row has: number and id of the first one. All ids are in memory for a moment."""
    import pandas as pd

    firsts = range(0, total, -(-total // processes))
    read = ray.remote(num_cpus=1)(_ids)
    found = pd.concat(ray.get([read.remote(job, first, firsts.step) for first in firsts]), ignore_index=True)
    first = found.groupby("id")["number"].transform("min")
    later = found[first != found["number"]]
    return dict(zip(later["number"], zip(first[later.index], later["id"], strict=True), strict=True))


def _ids(job: Job, first: int, rows: int) -> "pd.DataFrame":
    """Numbers and ids of the rows from the first one on that get as far as the recipe."""
    import pandas as pd

    _settle(job)
    found: list[tuple[int, str]] = []

    def note(number: int, row_id: str) -> int:
        found.append((number, row_id))
        return number

    async def recipe(example: Example, judge: Panel) -> Outcome:
        return Outcome(example, (Verdict("row", True),))

    async def read() -> None:
        for number, raw in islice(job.rows(), first, first + rows):
            await decide(number, raw, recipe, job.judge, note)

    asyncio.run(read())
    return pd.DataFrame(found, columns=["number", "id"]).astype({"number": "int64", "id": "str"})


def _settle(job: Job) -> None:
    """Have a process of the cluster keep the job's secrets, and read paths as the command does."""
    keep_secrets_of(job.settings)
    if os.path.isdir(job.place):
        os.chdir(job.place)


def _counts_file(job: Job, part: str) -> Path:
    return job.folder / "blocks" / f"{part}.json"


@contextmanager
def _connected(address: str | None) -> Iterator[ModuleType]:
    """Ray, on a running cluster or on this machine; one that this process has joined before is left as it is."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    ours = not ray.is_initialized()
    if ours:
        ray.init(address=address, logging_level="warning")
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours is there
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()

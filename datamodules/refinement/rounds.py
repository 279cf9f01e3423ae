"""Self-refinement: a model rolls out, what it wrote is refined, and it is trained on what passes; round after round.

FunReason's loop (arXiv 2505.20192v1) asks for every query of the pool again in each round. With `hard` it is v3's
re-sampling of hard data (eq. 5-10): a query leaves the pool with its first accepted sample, and the loop ends when the
pool is empty. What the papers leave open: the next round starts from the round before, on the new samples alone. And
a round of which nothing is accepted is the last, for there is nothing to train on.

Each step of a round is a command with files between them, printed as it is run, and is not run again once its file is
there: a loop that was stopped resumes where it was. One rule is ours: a sample without a call counts only where the
query's own answer has none, or every refusal would pass as a statement.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.example import Example
from datamodules.readers import fingerprint, read_rows
from datamodules.rows import parse_row, unchecked_example
from datamodules.system import guard
from datamodules.system.command_line import SentenceParser
from datamodules.system.errors import one_sentence, run_folder
from datamodules.system.escaping import markdown_table
from datamodules.system.files import check_writable, write_text
from datamodules.system.locks import sole_writer
from datamodules.system.redaction import redact, redact_settings
from datamodules.xlam import write_jsonl
from rewards import parse_calls
from rewards.parser import split_completion

HARD_STAGES = ("call", "format")
"""Rows that these stages rejected are hard; others were bad data (arXiv 2505.20192v3: BQC passed, AC failed). Hard are
also rows whose own answer failed there and to whose correction the chain of thought did not lead."""

COLUMNS = ("round", "pool", "sampled", "well_formed", "accepted", "acceptance", "queries_answered", "score")

SETTINGS = "settings.json"
KEPT = ("init_from", "pool", "val_path", "sample", "refine", "fit", "samples", "hard")
"""What the files of a loop depend on: all but how many rounds there are."""


class SelfRefinement:
    """Rounds of roll out, refine and fit.

    Args:
        init_from: The model to start from: a run folder, a Hugging Face folder or a hub id.
        pool: Rows to roll out on; of a `rejected.jsonl`, those that failed in function, parameters or format.
        val_path: Rows to test the model of each round on.
        output_dir: Folder of what is written; `rounds.md` in it is the table. A loop with other settings is refused.
        sample: Arguments of `funreason predict`, as on the command line.
        refine: Arguments of `funreason-refine`.
        fit: Arguments of `funreason fit`; of `funreason test` too.
        rounds: How many, at most.
        samples: Completions of each query in a round.
        hard: Whether a query leaves the pool with its first accepted sample.

    Raises:
        ValueError: A setting is impossible.
    """

    def __init__(
        self,
        init_from: str,
        pool: str,
        val_path: str,
        output_dir: str,
        sample: list[str],
        refine: list[str],
        fit: list[str],
        rounds: int = 2,
        samples: int = 1,
        hard: bool = False,
    ) -> None:
        if rounds < 1 or samples < 1:
            raise ValueError(f"rounds and samples must be at least 1, not {rounds} and {samples}")
        self.folder = check_writable("output_dir", output_dir)
        self.init_from, self.pool, self.val_path = init_from, pool, val_path
        self.sample, self.refine, self.fit = sample, refine, fit
        self.rounds, self.samples, self.hard = rounds, samples, hard

    def run(self) -> None:
        """Run the rounds that are still to be run, and print the table of all.

        Raises:
            RuntimeError: A step fails; its own output says why.
            ValueError: The pool is empty, or the folder holds a loop with other settings.
        """
        pool = list(pool_examples(self.pool))
        if not pool:
            raise ValueError(f"pool: {self.pool} holds no rows to roll out on: give others")
        self._claim()
        model, table = self.init_from, [{"round": 0, "pool": len(pool), "score": self._score(self.init_from, "start")}]
        for number in range(1, self.rounds + 1):
            folder = self.folder / f"round_{number}"
            metrics, accepted = self._collect(pool, model, folder, number)
            if accepted:
                write_jsonl(folder / "train.jsonl", accepted)
                model = self._fit(model, folder)
            metrics |= {"score": self._score(model, f"round_{number}")}
            table.append({"round": number, "pool": len(pool)} | metrics)
            write_text(self.folder / "rounds.json", json.dumps(table, indent=2) + "\n")
            write_text(self.folder / "rounds.md", markdown(table))
            if self.hard:
                answered = {example.id.rpartition("#")[0] for example in accepted}
                pool = [example for example in pool if example.id not in answered]
            if not pool or not accepted:
                break
        print(f"\n{markdown(table)}\nThe last model: {model}; the table: {self.folder / 'rounds.md'}")

    def _claim(self) -> None:
        """Save the settings in the folder; refuse one whose files come from others. More rounds may follow.

        Raises:
            ValueError: Naming the setting and both values.
        """
        settings = {name: getattr(self, name) for name in KEPT}
        settings |= {f"rows of {name}": fingerprint(getattr(self, name)) for name in ("pool", "val_path")}
        settings, saved = redact_settings(settings), self.folder / SETTINGS
        begun = _newest(self.folder, "test/start/*/metrics.csv") is not None  # what the first step leaves
        if begun and not saved.is_file():
            raise ValueError(
                f"{self.folder} holds a loop of an earlier version, which did not save its settings: choose another "
                "output_dir, or remove the folder"
            )
        if begun:
            print(f"{self.folder} holds a loop that was begun: what it has done is not done again.", flush=True)
        theirs = json.loads(saved.read_text(encoding="utf-8")) if begun else settings
        for name, value in settings.items():
            if theirs.get(name) != value:
                raise ValueError(
                    f"{self.folder} holds a loop with other settings: {name} is {value!r} here and "
                    f"{theirs.get(name)!r} there; choose another output_dir, or remove the folder"
                )
        write_text(saved, json.dumps(settings, indent=2) + "\n")

    def _collect(
        self, pool: list[Example], model: str, folder: Path, number: int
    ) -> tuple[dict[str, Any], list[Example]]:
        """Roll out and refine: the metrics of the round, and its accepted samples, one of each query."""
        queries = [replace(row, id=f"{row.id}#{k}") for row in pool for k in range(self.samples)]
        write_jsonl(folder / "queries.jsonl", (_askable(query) for query in queries))
        rollouts = _newest(folder, "predict/*/rollouts.jsonl")
        if rollouts is None:
            options = ["--model.init_from", model, "--data.path", str(folder / "queries.jsonl")]
            options += ["--model.generator.seed", str(number), "--trainer.default_root_dir", str(folder / "predict")]
            funreason("predict", *self.sample, *options)
            rollouts = _newest(folder, "predict/*/rollouts.jsonl")
        calls_wanted = {query.id: _wants_call(query) for query in queries}
        candidates = [c for c in map(candidate, _json_lines(rollouts)) if c and _wants_call(c) == calls_wanted[c.id]]
        metrics: dict[str, Any] = {"sampled": len(queries), "well_formed": len(candidates)}
        accepted: dict[str, Example] = {}
        if candidates:
            write_jsonl(folder / "candidates.jsonl", candidates)
            options = ["--data.path", str(folder / "candidates.jsonl"), "--output_dir", str(folder / "refine")]
            run_module("datamodules.refinement", *self.refine, *options)
            parts = sorted((folder / "refine" / "refined").glob("*.jsonl"))  # of `--engine ray`
            files = parts or [folder / "refine" / "refined.jsonl"]
            kept = [Example(**row) for file in files for row in _json_lines(file)]
            for example in kept:
                accepted.setdefault(example.id.rpartition("#")[0], example)
            metrics |= {"accepted": len(kept), "acceptance": round(len(kept) / len(queries), 4)}
        return metrics | {"queries_answered": len(accepted)}, list(accepted.values())

    def _fit(self, model: str, folder: Path) -> str:
        """Train, or go on training; gives the run folder."""
        if _newest(folder, "fit/*/hf/config.json") is None:
            options = ["--model.init_from", model, "--data.path", str(folder / "train.jsonl")]
            options += ["--trainer.default_root_dir", str(folder / "fit")]
            checkpoint = _newest(folder, "fit/*/checkpoints/last-*.ckpt")
            funreason("fit", *self.fit, *options, *(["--ckpt_path", str(checkpoint)] if checkpoint else []))
            if checkpoint and _newest(folder, "fit/*/hf/config.json") is None:  # it was killed after its last step
                run = checkpoint.parents[1]
                funreason("export", "--ckpt_path", str(run), "--output_dir", str(run / "hf"))
        return str(_newest(folder, "fit/*/hf/config.json").parents[1])

    def _score(self, model: str, name: str) -> float:
        """The model's share of exact matches on `val_path`."""
        folder = self.folder / "test" / name
        options = ["--model.init_from", model, "--data.path", self.val_path, "--trainer.default_root_dir", str(folder)]
        if _newest(folder, "*/metrics.csv") is None:
            funreason("test", *self.fit, *options)
        lines = _newest(folder, "*/metrics.csv").read_text(encoding="utf-8").splitlines()
        score = next(line.split(",")[2] for line in lines if line.split(",")[1] == "tool/exact_match")
        return round(float(score), 4)


def pool_examples(path: str) -> Iterator[Example]:
    """The rows of a pool; of a refinement's rejected rows, the hard ones. Their answers may be wrong."""
    for number, raw in read_rows(path):
        row = parse_row(raw)
        corrected = row.get("stage") == "cot" and row.get("tried")
        if "stage" not in row or row["stage"] in HARD_STAGES or corrected:
            example = unchecked_example(row)
            yield replace(example, id=example.id or f"row-{number}")


def candidate(rollout: dict[str, Any]) -> Example | None:
    """A rollout as a row to refine: the model's chain of thought and answer; None where it kept no think block."""
    cot, answer, error = split_completion(rollout["completion"])
    if error is not None or not answer:
        return None
    columns = {name: rollout[name] for name in ("id", "query", "tools", "history", "category")}
    return Example(**columns, answers=answer, cot=cot, source="self-refinement")


def _wants_call(example: Example) -> bool:
    """Whether the answer is a call, or was meant to be: all but an empty list and plain text."""
    calls, _ = parse_calls(example.answers)
    return bool(calls) if calls is not None else not example.response and example.answers.lstrip()[:1] in "[{`"


def _askable(query: Example) -> Example:
    """The row with an answer that can be read, which `predict` needs only to score what it is not trained on."""
    return query if parse_calls(query.answers)[0] is not None else replace(query, answers="[]", response="")


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """The rounds as a Markdown table."""
    rows = [[str(row.get(column, "")) for column in COLUMNS] for row in table]
    return markdown_table(COLUMNS, rows) + "\n"


def funreason(*arguments: str) -> None:
    """Run a command of `funreason`."""
    run_module("lightning_modules", *arguments)


def run_module(module: str, *arguments: str) -> None:
    """Run `python -m MODULE` in a process of its own, whose memory and devices are free again when it ends.

    It ends with this one, be it killed.

    Raises:
        RuntimeError: It fails.
    """
    command = [sys.executable, "-m", module, *arguments]
    print("$", redact(" ".join(command)), flush=True)
    if code := guard.run(command).returncode:
        raise RuntimeError(f"{module} {arguments[0]} ended with exit code {code}; the same command resumes here")


def _newest(folder: Path, pattern: str) -> Path | None:
    """The newest that a step has left; a file that is empty was broken off before it held anything."""
    found = [path for path in folder.glob(pattern) if path.stat().st_size]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def main(args: Sequence[str] | None = None) -> None:
    """Run the rounds: `funreason-self-refine --config configs/self_refine.yaml [--init_from MODEL]`."""
    try:
        with one_sentence(args) as words:
            parser = SentenceParser(
                prog="funreason-self-refine", description="Roll out, refine and fit, round after round."
            )
            parser.add_argument("--config", action="config", help="YAML file; a later one wins")
            parser.add_class_arguments(SelfRefinement)
            options = parser.parse_args(words).as_dict()
            options.pop("config")
            loop = SelfRefinement(**options)
            loop.folder.mkdir(parents=True, exist_ok=True)
            run_folder.set(loop.folder)
            with sole_writer(loop.folder.resolve()):
                loop.run()
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on from here.", flush=True)
        sys.exit(130)


if __name__ == "__main__":
    main()

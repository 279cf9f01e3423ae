"""A source of rows encoded once: an Arrow file in the cache, memory-mapped, that every rank and every run shares."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from datamodules.chat.form import ChatForm
from datamodules.chat.segments import PAPER, checked_target, encode_texts, prompt_text
from datamodules.chat.templates import end_of_turn_id
from datamodules.example import BadRow
from datamodules.packing import CALL, COT, PROMPT, Encoded
from datamodules.readers import TOOLBOX, fingerprint, read_rows
from datamodules.reports import count_example
from datamodules.sources.targets import Turns
from datamodules.system.files import atomic_write, remove
from datamodules.system.imports import ROOT, sources_of
from datamodules.system.locks import sole_writer
from datamodules.xlam import Example, OnBadRow, bad_row, check_rows, complaint, open_jsonl, raise_if_bad, write_row

CHUNK = 256  # rows tokenised together, by as many threads as there are cores
SCHEMA = pa.schema(
    [(field.name, pa.large_string()) for field in fields(Example)]
    + [("input_ids", pa.large_list(pa.int32()))]
    + [(f"{segment}_tokens", pa.int32()) for segment in ("prompt", "cot", "call")]
    + [("json_form", pa.bool_()), ("row", pa.int32()), ("returned", pa.large_string())]
)


FILES = TABLE, BAD, COUNTS = "rows.arrow", "bad_rows.jsonl", "counts.json"  # of an entry of the cache
DIGESTS = "digests.json"  # of these files


@dataclass(frozen=True)
class BadRows:
    """The bad rows of a source, read again from where they are kept whenever they are looked at: they may be many.

    Attributes:
        count: How many there are.
        read: Gives them in the order of the source; see `xlam.bad_row`.
    """

    count: int
    read: Callable[[], Iterator[dict[str, Any]]]

    def __len__(self) -> int:
        """How many there are."""
        return self.count

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One after the other."""
        return self.read()


@dataclass(frozen=True)
class EncodedRows:
    """The good rows of a source, and a report on the bad ones.

    Attributes:
        table: One row per good row: the columns of `Example`, `input_ids`, `prompt_tokens`, `cot_tokens`, `call_tokens`
            (segments are contiguous: prompt, chain of thought, call), `json_form` (the calls are written as JSON),
            `row` (its number in the source) and `returned` (what its target is decoded to; null where that is itself).
        bad: The rows left out.
        counts: What the rows were read as; see `reports.describe`.
        unrewarded: Rows of the table whose gold answer the run's reward does not accept (`gold.check_gold`).
    """

    table: datasets.Dataset
    bad: BadRows
    counts: dict[str, int]
    unrewarded: int = 0

    def examples(self, indices: Sequence[int]) -> list[Example]:
        """The rows as examples."""
        columns = self.table.select_columns([field.name for field in fields(Example)])
        return [Example(**row) for row in columns.select(indices)]

    def documents(self, indices: Sequence[int]) -> list[Encoded]:
        """The rows as token ids and segments."""
        rows = self.table.select_columns(["input_ids", "prompt_tokens", "cot_tokens"])[list(indices)]
        return [
            Encoded(ids, [PROMPT] * prompt + [COT] * cot + [CALL] * (len(ids) - prompt - cot))
            for ids, prompt, cot in zip(rows["input_ids"], rows["prompt_tokens"], rows["cot_tokens"], strict=True)
        ]


@dataclass(frozen=True)
class _How:
    """How rows are read, checked and encoded; see `encode_rows`."""

    tokenizer: PreTrainedTokenizerFast
    on_bad_row: OnBadRow
    turns: Turns
    form: ChatForm
    unanswered: bool


def encode_rows(
    path: str,
    tokenizer: PreTrainedTokenizerFast,
    on_bad_row: OnBadRow = "raise",
    cache_dir: str | None = None,
    turns: Turns = "last",
    form: ChatForm = PAPER,
    unanswered: bool = False,
) -> EncodedRows:
    """Read, check and encode the rows of a source, or take them from the cache.

    The cache is keyed on the rows themselves, the tokenizer with its template, and the code that reads, checks, renders
    and encodes, so that a stale entry is never used. An entry is whole or not there; one that the disk has damaged is
    set aside and made again; of several runs that need the same one, on one machine or on several, one makes it.

    Args:
        path: See `readers.read_rows`.
        tokenizer: Tokenizer with a chat template.
        on_bad_row: See `xlam.read_examples`.
        cache_dir: Folder of the cache; `funreason` inside the cache of `datasets` (`HF_HOME`) when None.
        turns: Which turns of a chat become rows; see `xlam.check_rows`.
        form: How requests are put and answered.
        unanswered: Take rows without an answer, too, whose target is empty.

    Returns:
        The encoded rows, of any length.

    Raises:
        FileNotFoundError: There is nothing of that name.
        ValueError: The source cannot be read, holds no good row or changes while it is read, or the cache cannot be
            written; with `raise`, also the first bad row.
    """
    folder = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "funreason").expanduser()
    source, how = fingerprint(path), _How(tokenizer, on_bad_row, turns, form, unanswered)
    entry = folder / _key(path, source, how)
    try:
        rows = _read(entry, path)
        if rows is None:
            folder.mkdir(parents=True, exist_ok=True)
            with sole_writer(entry, f"another run is encoding {path}; its rows are waited for"):
                rows = _read(entry, path) or _make(entry, path, source, how)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not error.strerror:  # not the system's: of the source
            raise
        reason = error.strerror or error
        raise ValueError(f"the cache {folder} cannot be written: {reason}; name another data.cache_dir") from error
    raise_if_bad(rows.bad, on_bad_row)
    if not len(rows.table):
        first = complaint(next(iter(rows.bad)))
        raise ValueError(f"none of the {len(rows.bad)} rows of {path} can be used; the first: {first}")
    return rows


def _read(entry: Path, path: str) -> EncodedRows | None:
    """An entry of the cache; None where there is none, or one that is not what was written."""
    try:
        digests = json.loads((entry / DIGESTS).read_text("utf-8"))
        if any(_digest(entry / name) != digests[name] for name in FILES):
            return None
        counts = json.loads((entry / COUNTS).read_text("utf-8"))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    bad = BadRows(counts.pop("bad"), partial(_bad_lines, entry / BAD, path))
    return EncodedRows(datasets.Dataset.from_file(str(entry / TABLE)), bad, counts)


def _make(entry: Path, path: str, source: str, how: _How) -> EncodedRows:
    """Write an entry of the cache in the place of none or of a damaged one."""
    if entry.exists():
        aside = entry.with_name(f"{entry.name}.damaged")
        remove(aside)
        entry.rename(aside)  # not removed: a run on another machine may have it open
        print(f"the cached rows of {path} are damaged; they are encoded again, and what was found is now {aside}")
    with atomic_write(entry, fsync=False) as unfinished:  # what a power cut damages is found by its digest
        unfinished.mkdir()
        counts = _write(unfinished, path, how)
        if fingerprint(path) != source:
            raise ValueError(f"{path} changed while it was read: run again once nothing writes to it")
        (unfinished / COUNTS).write_text(json.dumps(counts), encoding="utf-8")
        digests = {name: _digest(unfinished / name) for name in FILES}
        (unfinished / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
    return _read(entry, path)


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "blake2b").hexdigest()


def _bad_lines(file: Path, path: str) -> Iterator[dict[str, Any]]:
    """The bad rows of an entry; the same rows may lie under another name by now."""
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line) | {"file": path}


def _write(folder: Path, path: str, how: _How) -> dict[str, int]:
    """Write table and bad rows; gives what the rows were read as, and how many are `bad`."""
    counts: Counter[str] = Counter()
    bad = 0

    def note(row: dict[str, Any]) -> None:
        nonlocal bad
        raise_if_bad([row], how.on_bad_row)
        write_row(bad_file, row)
        bad += 1

    with (
        open_jsonl(folder / BAD) as bad_file,
        pa.OSFile(str(folder / TABLE), "wb") as sink,
        pa.ipc.new_stream(sink, SCHEMA) as writer,
    ):
        chunk: list[tuple[int, Example, str, str]] = []
        for row in _texts(path, how, note, counts):
            chunk.append(row)
            if len(chunk) == CHUNK:
                writer.write_batch(_encode(how.tokenizer, chunk))
                chunk = []
        if chunk:
            writer.write_batch(_encode(how.tokenizer, chunk))
    return counts | {"bad": bad}


def _texts(
    path: str, how: _How, note: Callable[[dict[str, Any]], None], counts: Counter[str]
) -> Iterator[tuple[int, Example, str, str]]:
    """Good rows with number, prompt and target; the bad ones are noted, one by one."""
    rows = check_rows(read_rows(path), how.turns, counts, how.unanswered)
    for number, outcome, raw in tqdm(rows, desc=f"encoding {path}", unit=" rows", disable=None):  # but on a terminal
        try:
            if isinstance(outcome, BadRow):
                raise outcome
            target = checked_target(how.tokenizer, outcome, how.form) if outcome.answers else ""
            yield number, outcome, prompt_text(how.tokenizer, outcome, how.form), target
            count_example(outcome, counts)
        except BadRow as error:
            note(bad_row(path, number, error, raw))


def _encode(tokenizer: PreTrainedTokenizerFast, chunk: list[tuple[int, Example, str, str]]) -> pa.RecordBatch:
    numbers, examples, prompts, targets = (list(column) for column in zip(*chunk, strict=True))
    encoded = encode_texts(tokenizer, prompts, targets)
    columns: dict[str, list[Any]] = {
        field.name: [getattr(e, field.name) for e in examples] for field in fields(Example)
    }
    columns["input_ids"] = [document.input_ids for document in encoded]
    for name, segment in (("prompt", PROMPT), ("cot", COT), ("call", CALL)):
        columns[f"{name}_tokens"] = [document.segments.count(segment) for document in encoded]
    columns["json_form"] = [target.rpartition("</think>")[2].lstrip().startswith("[{") for target in targets]
    columns["row"] = numbers
    starts = columns["prompt_tokens"]
    texts = tokenizer.batch_decode([d.input_ids[start:-1] for d, start in zip(encoded, starts, strict=True)])
    columns["returned"] = [None if text == target else text for text, target in zip(texts, targets, strict=True)]
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def _key(path: str, source: str, how: _How) -> str:
    key = hashlib.blake2b(digest_size=16)
    key.update(_code(__name__, *(["datamodules.toolbox.rows"] if path.split(":")[0] == TOOLBOX else [])))
    template = json.dumps(how.tokenizer.chat_template)
    for part in (
        source,
        how.tokenizer.backend_tokenizer.to_str(),
        template,
        str(end_of_turn_id(how.tokenizer)),
        how.turns,
        json.dumps(how.form.recorded() | {"unanswered": how.unanswered}),
    ):
        key.update(hashlib.blake2b(part.encode()).digest())
    return key.hexdigest()


@lru_cache  # one answer per process, also when somebody edits the sources during a run
def _code(*modules: str, root: Path = ROOT) -> bytes:
    """Digest of the sources that what is cached depends on: those of modules and of all that they import."""
    return hashlib.blake2b(b"".join(source.read_bytes() for source in sources_of(modules, root))).digest()

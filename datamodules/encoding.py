"""A source of rows encoded once: an Arrow file in the cache, memory-mapped, that every rank and every run shares."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

import rewards
from datamodules.chat import checked_target, encode_texts, end_of_turn_id, prompt_text
from datamodules.example import BadRow
from datamodules.packing import CALL, COT, PROMPT, Encoded
from datamodules.readers import TOOLBOX, fingerprint, read_rows
from datamodules.reports import count_example
from datamodules.sources.targets import Turns
from datamodules.xlam import Example, OnBadRow, bad_row, check_rows, complaint, settle

CHUNK = 256  # rows tokenised together, by as many threads as there are cores
SCHEMA = pa.schema(
    [(field.name, pa.large_string()) for field in fields(Example)]
    + [("input_ids", pa.large_list(pa.int32()))]
    + [(f"{segment}_tokens", pa.int32()) for segment in ("prompt", "cot", "call")]
    + [("json_form", pa.bool_()), ("row", pa.int32()), ("returned", pa.large_string())]
)


@dataclass(frozen=True)
class EncodedRows:
    """The good rows of a source, and a report on the bad ones.

    Attributes:
        table: One row per good row: the columns of `Example`, `input_ids`, `prompt_tokens`, `cot_tokens`, `call_tokens`
            (segments are contiguous: prompt, chain of thought, call), `json_form` (the calls are written as JSON),
            `row` (its number in the source) and `returned` (what its target is decoded to; null where that is itself).
        bad: See `xlam.bad_row`.
        counts: What the rows were read as; see `reports.describe`.
        unrewarded: Rows of the table whose gold answer the run's reward does not accept (`gold.check_gold`).
    """

    table: datasets.Dataset
    bad: list[dict[str, Any]]
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


def encode_rows(
    path: str,
    tokenizer: PreTrainedTokenizerFast,
    on_bad_row: OnBadRow = "raise",
    cache_dir: str | None = None,
    turns: Turns = "last",
) -> EncodedRows:
    """Read, check and encode the rows of a source, or take them from the cache.

    The cache is keyed on the rows themselves, the tokenizer with its template, and the code that reads, checks, renders
    and encodes, so that a stale entry is never used.

    Args:
        path: See `readers.read_rows`.
        tokenizer: Tokenizer with a chat template.
        on_bad_row: See `xlam.read_examples`.
        cache_dir: Folder of the cache; `funreason` inside the cache of `datasets` (`HF_HOME`) when None.
        turns: Which turns of a chat become rows; see `xlam.check_rows`.

    Returns:
        The encoded rows, of any length.

    Raises:
        FileNotFoundError: There is nothing of that name.
        ValueError: The source cannot be read or holds no good row; with `raise`, also the first bad row.
    """
    folder = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "funreason").expanduser()
    table = folder / f"{_key(path, tokenizer, turns)}.arrow"
    report = table.with_suffix(".json")
    if not table.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = table.with_suffix(f".{os.getpid()}")
        try:
            bad, counts = _write(unfinished, path, tokenizer, on_bad_row, turns)
            _replace_text(report, json.dumps({"bad": bad, "counts": counts}, ensure_ascii=False, default=str))
            unfinished.replace(table)  # last: a table in its place is whole and has its report
        finally:
            unfinished.unlink(missing_ok=True)
    rows = EncodedRows(datasets.Dataset.from_file(str(table)), **json.loads(report.read_text("utf-8")))
    bad = [row | {"file": path} for row in rows.bad]  # the same rows may lie under another name by now
    settle(bad, on_bad_row)
    if not len(rows.table):
        raise ValueError(f"none of the {len(bad)} rows of {path} can be used; the first: {complaint(bad[0])}")
    return EncodedRows(rows.table, bad, rows.counts)


def _write(
    file: Path, path: str, tokenizer: PreTrainedTokenizerFast, on_bad_row: OnBadRow, turns: Turns
) -> tuple[list[dict[str, Any]], Counter[str]]:
    bad: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        chunk: list[tuple[int, Example, str, str]] = []
        for row in _texts(path, tokenizer, on_bad_row, turns, bad, counts):
            chunk.append(row)
            if len(chunk) == CHUNK:
                writer.write_batch(_encode(tokenizer, chunk))
                chunk = []
        if chunk:
            writer.write_batch(_encode(tokenizer, chunk))
    return bad, counts


def _texts(
    path: str,
    tokenizer: PreTrainedTokenizerFast,
    on_bad_row: OnBadRow,
    turns: Turns,
    bad: list[dict[str, Any]],
    counts: Counter[str],
) -> Iterator[tuple[int, Example, str, str]]:
    """Good rows with number, prompt and target; the bad ones are put on the list, or stop the run."""
    for number, outcome, raw in tqdm(check_rows(read_rows(path), turns, counts), desc=f"encoding {path}", unit=" rows"):
        try:
            if isinstance(outcome, BadRow):
                raise outcome
            yield number, outcome, prompt_text(tokenizer, outcome), checked_target(tokenizer, outcome)
            count_example(outcome, counts)
        except BadRow as error:
            bad.append(bad_row(path, number, error, raw))
            settle(bad, on_bad_row)


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


def _key(path: str, tokenizer: PreTrainedTokenizerFast, turns: Turns) -> str:
    key = hashlib.blake2b(digest_size=16)
    key.update(_code(with_toolbox=path.split(":")[0] == TOOLBOX))
    template = json.dumps(tokenizer.chat_template)
    for part in (
        fingerprint(path),
        tokenizer.backend_tokenizer.to_str(),
        template,
        str(end_of_turn_id(tokenizer)),
        turns,
    ):
        key.update(hashlib.blake2b(part.encode()).digest())
    return key.hexdigest()


@lru_cache  # one answer per process, also when somebody edits the sources during a run
def _code(with_toolbox: bool) -> bytes:
    """Digest of the sources that what is cached depends on."""
    here = Path(__file__).parent
    names = ("chat", "encoding", "example", "packing", "readers", "reports", "rows", "xlam")
    sources = (
        [here / f"{name}.py" for name in names]
        + sorted((here / "sources").glob("*.py"))
        + sorted(Path(rewards.__file__).parent.glob("*.py"))
    )
    sources += sorted(here.glob(f"{TOOLBOX}*.py")) if with_toolbox else []
    return hashlib.blake2b(b"".join(source.read_bytes() for source in sources)).digest()


def _replace_text(file: Path, text: str) -> None:
    unfinished = file.with_suffix(f".{os.getpid()}.json")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(file)

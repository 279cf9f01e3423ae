"""The rows of a source as token ids: read, checked, encoded a chunk at a time, written to an Arrow file."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from datamodules.chat.form import ChatForm
from datamodules.chat.segments import checked_target, encode_texts, prompt_text
from datamodules.example import BadRow, Example
from datamodules.packing import CALL, COT, PROMPT, Encoded
from datamodules.readers import read_rows
from datamodules.reports import count_example
from datamodules.sources.targets import Turns
from datamodules.xlam import OnBadRow, bad_row, check_rows, complaint, open_jsonl, raise_if_bad, write_row

CHUNK = 256  # rows tokenised together, by as many threads as there are cores
TABLE, BAD = "rows.arrow", "bad_rows.jsonl"  # what a source is written to
SCHEMA = pa.schema(
    [(field.name, pa.large_string()) for field in fields(Example)]
    + [("input_ids", pa.large_list(pa.int32()))]
    + [(f"{segment}_tokens", pa.int32()) for segment in ("prompt", "cot", "call")]
    + [("json_form", pa.bool_()), ("row", pa.int32()), ("returned", pa.large_string())]
)


@dataclass(frozen=True)
class BadRows:
    """The bad rows of a source, read from disk at each iteration, because they may be many.

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
        """Iterate over them in the order of the source."""
        return self.read()


@dataclass(frozen=True)
class EncodedRows:
    """The rows of a source as a `datasets.Dataset` with token ids, and those left out as bad.

    Attributes:
        table: One row per good row: the columns of `Example`, `input_ids`, `prompt_tokens`, `cot_tokens`, `call_tokens`
            (segments are contiguous: prompt, chain of thought, call), `json_form` (the calls are written as JSON),
            `row` (its number in the source) and `returned` (what its target is decoded to; null where that is itself).
        bad: The rows left out.
        counts: What the rows were read as; see `reports.describe`.
        unrewarded: Rows of the table whose gold answer the run's reward does not accept (`gold.check_gold`).
        source: The `fingerprint` of the source.
    """

    table: datasets.Dataset
    bad: BadRows
    counts: dict[str, int]
    unrewarded: int = 0
    source: str = ""

    def examples(self, indices: Sequence[int]) -> list[Example]:
        """The rows at these indices as examples."""
        columns = self.table.select_columns([field.name for field in fields(Example)])
        return [Example(**row) for row in columns.select(indices)]

    def check(self, path: str, on_bad_row: OnBadRow) -> None:
        """Refuse bad rows, unless they are to be skipped, and a source without any others.

        Raises:
            ValueError: Naming the first bad row.
        """
        raise_if_bad(self.bad, on_bad_row)
        if not len(self.table):
            first = complaint(next(iter(self.bad)))
            raise ValueError(f"none of the {len(self.bad)} rows of {path} can be used; the first: {first}")

    def digest(self, indices: np.ndarray) -> str:
        """What tells the rows at these indices from others: the source and their numbers in it."""
        numbers = self.table.select_columns(["row"]).with_format("numpy")[:]["row"]
        return hashlib.blake2b(self.source.encode() + numbers[indices].tobytes(), digest_size=16).hexdigest()

    def greatest_id(self) -> int:
        """The greatest token id of all rows, at the cost of reading each; -1 without rows."""
        parts = self.table.select_columns(["input_ids"]).with_format("arrow").iter(16384)
        return max((pc.max(pc.list_flatten(part["input_ids"])).as_py() for part in parts), default=-1)

    def documents(self, indices: Sequence[int]) -> list[Encoded]:
        """The rows at these indices as token ids and segments."""
        rows = self.table.select_columns(["input_ids", "prompt_tokens", "cot_tokens"])[list(indices)]
        return [
            Encoded(ids, [PROMPT] * prompt + [COT] * cot + [CALL] * (len(ids) - prompt - cot))
            for ids, prompt, cot in zip(rows["input_ids"], rows["prompt_tokens"], rows["cot_tokens"], strict=True)
        ]


@dataclass(frozen=True)
class EncodingSettings:
    """Settings of reading, checking and encoding rows; see `cache.encode_rows`."""

    tokenizer: PreTrainedTokenizerFast
    on_bad_row: OnBadRow
    turns: Turns
    form: ChatForm
    unanswered: bool


def write_rows(folder: Path, path: str, settings: EncodingSettings) -> dict[str, int]:
    """Read, check and encode the rows of a source, and write the good ones to `TABLE` and the others to `BAD`.

    Args:
        folder: Where to write.
        path: See `readers.read_rows`.
        settings: How they are read, checked and encoded.

    Returns:
        What the rows were read as, see `reports.describe`, and how many are `bad`.

    Raises:
        FileNotFoundError: There is nothing of that name.
        ValueError: The source cannot be read; with `raise`, also the first bad row.
    """
    counts = Counter(bad=0)

    def note(row: dict[str, Any]) -> None:
        raise_if_bad([row], settings.on_bad_row)
        write_row(bad_file, row)
        counts["bad"] += 1

    with (
        open_jsonl(folder / BAD) as bad_file,
        pa.OSFile(str(folder / TABLE), "wb") as sink,
        pa.ipc.new_stream(sink, SCHEMA) as writer,
    ):
        chunk: list[tuple[int, Example, str, str]] = []
        for row in _texts(path, settings, note, counts):
            chunk.append(row)
            if len(chunk) == CHUNK:
                writer.write_batch(_encode(settings.tokenizer, chunk))
                chunk = []
        if chunk:
            writer.write_batch(_encode(settings.tokenizer, chunk))
    return counts


def _texts(
    path: str, settings: EncodingSettings, note: Callable[[dict[str, Any]], None], counts: Counter[str]
) -> Iterator[tuple[int, Example, str, str]]:
    """Good rows with number, prompt and target; the bad ones are noted, one by one."""
    rows = check_rows(read_rows(path), settings.turns, counts, settings.unanswered)
    for number, outcome, raw in tqdm(rows, desc=f"encoding {path}", unit=" rows", disable=None):  # but on a terminal
        try:
            if isinstance(outcome, BadRow):
                raise outcome
            target = checked_target(settings.tokenizer, outcome, settings.form) if outcome.answers else ""
            yield number, outcome, prompt_text(settings.tokenizer, outcome, settings.form), target
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


def segment_tokens(rows: EncodedRows) -> np.ndarray:
    """Number of tokens of prompt, chain of thought and call of each row, [3, rows]."""
    names = ["prompt_tokens", "cot_tokens", "call_tokens"]
    columns = rows.table.select_columns(names).with_format("numpy")[:]
    return np.stack([columns[name] for name in names])


def encoded_prompts(rows: EncodedRows, indices: Sequence[int]) -> list[list[int]]:
    """The token ids of the prompts of the rows at these indices."""
    return [document.input_ids[: document.segments.count(PROMPT)] for document in rows.documents(indices)]

"""A source of rows encoded once: an Arrow file in the cache, memory-mapped, that every rank and every run shares."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerFast

from datamodules.chat.form import PAPER, ChatForm
from datamodules.chat.templates import end_of_turn_id
from datamodules.encoding import BAD, TABLE, BadRows, EncodedRows, EncodingSettings, write_rows
from datamodules.readers import fingerprint, is_toolbox
from datamodules.sources.targets import Turns
from datamodules.system.files import ROOT, atomic_write, remove
from datamodules.system.imports import sources_of
from datamodules.system.locks import sole_writer
from datamodules.xlam import OnBadRow

COUNTS, DIGESTS = "counts.json", "digests.json"
FILES = TABLE, BAD, COUNTS  # of an entry of the cache, whose digests are in `DIGESTS`


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
    source, settings = fingerprint(path), EncodingSettings(tokenizer, on_bad_row, turns, form, unanswered)
    entry = folder / _key(path, source, settings)
    try:
        rows = _read(entry, path)
        if rows is None:
            folder.mkdir(parents=True, exist_ok=True)
            with sole_writer(entry, f"another run is encoding {path}; its rows are waited for"):
                rows = _read(entry, path) or _make(entry, path, source, settings)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not error.strerror:  # not the system's: of the source
            raise
        reason = error.strerror or error
        raise ValueError(f"the cache {folder} cannot be written: {reason}; name another data.cache_dir") from error
    rows.check(path, on_bad_row)
    return replace(rows, source=source)


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


def _make(entry: Path, path: str, source: str, settings: EncodingSettings) -> EncodedRows:
    """Write an entry of the cache in the place of none or of a damaged one."""
    if entry.exists():
        aside = entry.with_name(f"{entry.name}.damaged")
        remove(aside)
        entry.rename(aside)  # not removed: a run on another machine may have it open
        print(f"the cached rows of {path} are damaged; they are encoded again, and what was found is now {aside}")
    with atomic_write(entry, fsync=False) as unfinished:  # what a power cut damages is found by its digest
        unfinished.mkdir()
        counts = write_rows(unfinished, path, settings)
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


def _key(path: str, source: str, settings: EncodingSettings) -> str:
    key = hashlib.blake2b(digest_size=16)
    key.update(_code(__name__, *(["datamodules.toolbox.rows"] if is_toolbox(path) else [])))
    template = json.dumps(settings.tokenizer.chat_template)
    for part in (
        source,
        settings.tokenizer.backend_tokenizer.to_str(),
        template,
        str(end_of_turn_id(settings.tokenizer)),
        settings.turns,
        json.dumps(settings.form.recorded() | {"unanswered": settings.unanswered}),
    ):
        key.update(hashlib.blake2b(part.encode()).digest())
    return key.hexdigest()


@lru_cache  # one answer per process, also when somebody edits the sources during a run
def _code(*modules: str, root: Path = ROOT) -> bytes:
    """Digest of the sources that what is cached depends on: those of modules and of all that they import."""
    return hashlib.blake2b(b"".join(source.read_bytes() for source in sources_of(modules, root))).digest()

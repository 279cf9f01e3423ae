"""Documents laid end to end in rows without padding between them: best-fit decreasing, and the tensors of a row."""

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PackedBatch = dict[str, Tensor]
"""`input_ids`, `position_ids`, `targets`, `segments`, `doc_ids`: long [rows, longest row], see `collate_packed`."""

Packing = Literal["auto", "on", "off"] | bool
"""Whether documents share rows: if the model keeps them apart, in any case, or not at all. `on` and `off` are true and
false to YAML."""

IGNORED = -100  # target where nothing is learnt, as in `torch.nn.functional.cross_entropy`
PROMPT, COT, CALL = 0, 1, 2  # segments


@dataclass(frozen=True)
class Encoded:
    """One document: its token ids, and for each token its segment (0 prompt, 1 chain of thought, 2 call).

    Attributes:
        input_ids: The ids.
        segments: The segments.
        start: Position of the first token. Above 0 the document continues the first `start` tokens of the latest
            document before it that starts at 0, in models that let documents share a beginning.
    """

    input_ids: list[int]
    segments: list[int]
    start: int = 0


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing bin packing in O(n log n) comparisons; the same lengths always give the same rows.

    Args:
        lengths: Tokens of each document.
        capacity: Tokens a row may hold.

    Returns:
        For each row the indices of its documents, longest first. Every document is in exactly one row.

    Raises:
        ValueError: A document is longer than the capacity.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), ascending: the tightest row that fits is one bisection away
    for document in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[document]
        if length > capacity:
            raise ValueError(f"document {document} has {length} tokens, more than the {capacity} that a row may hold")
        slot = bisect_left(room, (length, -1))
        if slot == len(room):
            rows.append([])
            free, row = capacity, len(rows) - 1
        else:
            free, row = room.pop(slot)
        rows[row].append(document)
        insort(room, (free - length, row))
    return rows


def balance_over_ranks(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Assign documents to ranks so that their token counts are near equal: longest first, to the least loaded rank.

    Args:
        lengths: Tokens of each document.
        parts: Number of ranks.

    Returns:
        For each rank the indices of its documents, ascending; a rank is empty only when documents are fewer than ranks.
    """
    load = [(0, part) for part in range(parts)]
    dealt: list[list[int]] = [[] for _ in range(parts)]
    for document in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        tokens, part = load.pop(0)
        dealt[part].append(document)
        insort(load, (tokens + lengths[document], part))
    return [sorted(part) for part in dealt]


def micro_batches(
    lengths: Sequence[int], max_length: int, micro_batch_tokens: int, packed: bool = True
) -> list[list[list[int]]]:
    """Cut documents into micro-batches of rows.

    Args:
        lengths: Tokens of each document, none above `max_length`.
        max_length: Tokens a row may hold.
        micro_batch_tokens: Bound on rows x longest row of a micro-batch, padding included.
        packed: Whether documents share rows; where the model does not keep them apart each has one of its own.

    Returns:
        Micro-batches of rows of document indices; rows of like length share a micro-batch, so that little is padded.
    """
    rows = pack(lengths, max_length) if packed else [[document] for document in range(len(lengths))]
    filled = [sum(lengths[i] for i in row) for row in rows]
    batches: list[list[list[int]]] = []
    widest = 0
    for row in sorted(range(len(rows)), key=lambda r: (-filled[r], r)):
        if batches and (len(batches[-1]) + 1) * widest <= micro_batch_tokens:
            batches[-1].append(rows[row])
        else:
            batches.append([rows[row]])
            widest = filled[row]
    return batches


def collate_packed(documents: Sequence[Encoded] | Mapping[int, Encoded], rows: Sequence[Sequence[int]]) -> PackedBatch:
    """Lay documents end to end in rows and shift ids and segments together by one.

    Args:
        documents: The encoded documents, by their numbers.
        rows: For each row the numbers of its documents.

    Returns:
        Long tensors [R, T], T the longest row: `input_ids`; `position_ids`, from each document's `start` (the padding
        tail is a document of its own); `targets`, the id of the next token of the same document, -100 where there is
        none or where it is a prompt token; `segments`, the segment of that target (0 where it is -100); `doc_ids`, the
        number of the document inside this micro-batch in order of appearance, -1 in the padding.
    """
    width = max(sum(len(documents[i].input_ids) for i in row) for row in rows)
    batch = {
        name: torch.zeros(len(rows), width, dtype=torch.long) for name in ("input_ids", "position_ids", "segments")
    }
    batch |= {"targets": torch.full((len(rows), width), IGNORED), "doc_ids": torch.full((len(rows), width), -1)}
    sample = 0
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            ids, segments = torch.tensor(documents[i].input_ids), torch.tensor(documents[i].segments)
            here, before = slice(start, start + len(ids)), slice(start, start + len(ids) - 1)
            batch["input_ids"][r, here] = ids
            batch["position_ids"][r, here] = torch.arange(len(ids)) + documents[i].start
            batch["targets"][r, before] = ids[1:].masked_fill(segments[1:] == PROMPT, IGNORED)
            batch["segments"][r, before] = segments[1:]
            batch["doc_ids"][r, here] = sample
            start, sample = here.stop, sample + 1
        batch["position_ids"][r, start:] = torch.arange(width - start)
    return batch


def idle_batch(device: torch.device) -> PackedBatch:
    """A micro-batch of one padding token: its loss is 0, and still has every parameter in its graph."""
    zero = torch.zeros(1, 1, dtype=torch.long, device=device)
    return {
        "input_ids": zero,
        "position_ids": zero,
        "targets": zero,
        "segments": zero,
        "doc_ids": zero - 1,
        "tokens": zero - 1,
    }

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.packing import Encoded, balance_over_ranks, collate_packed, micro_batches, pack

lengths_and_capacity = st.integers(1, 50).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(1, capacity), max_size=60), st.just(capacity))
)


@settings(deadline=None)
@given(lengths_and_capacity)
def test_every_document_once_and_no_row_too_full(case):
    lengths, capacity = case
    rows = pack(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    filled = [sum(lengths[i] for i in row) for row in rows]
    assert all(0 < tokens <= capacity for tokens in filled)
    assert rows == pack(lengths, capacity)
    # Best fit opens a row only when nothing fits: two rows never fit into one.
    assert all(a + b > capacity for n, a in enumerate(filled) for b in filled[:n])


def test_best_fit_by_hand():
    # 7 | 6 | 4 -> the row with 6 has 4 left, the tightest that fits | 3 -> the row with 7 has 3 left
    assert pack([3, 7, 4, 6], 10) == [[1, 0], [3, 2]]
    # 12 leaves 8, 10 leaves 10, 9 goes there and leaves 1: the last one goes there too, where first fit takes the 12's.
    assert pack([12, 10, 9, 1], 20) == [[0], [1, 2, 3]]
    assert pack([], 10) == []
    with pytest.raises(ValueError, match="document 1 has 11 tokens, more than the 10"):
        pack([3, 11], 10)


def test_sixty_thousand_documents_are_packed_at_once():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(100, 1500, (60_000,), generator=generator).tolist()
    rows = pack(lengths, 4096)
    assert sum(lengths) / (len(rows) * 4096) > 0.98


@settings(deadline=None)
@given(lengths_and_capacity, st.integers(1, 4), st.integers(1, 6))
def test_spread_and_micro_batches_cover_all(case, ranks, budget):
    lengths, capacity = case
    parts = balance_over_ranks(lengths, ranks)
    assert len(parts) == ranks
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in part) for part in parts]
    # Longest first to the least loaded: two ranks differ by at most one document.
    assert max(loads) - min(loads) <= max(lengths, default=0)
    assert all(parts) or len(lengths) < ranks
    for part in parts:
        own = [lengths[i] for i in part]
        batches = micro_batches(own, capacity, budget * capacity)
        assert sorted(i for rows in batches for row in rows for i in row) == list(range(len(own)))
        for rows in batches:
            filled = [sum(own[i] for i in row) for row in rows]
            assert len(rows) * max(filled) <= budget * capacity


def test_ranks_are_balanced_by_tokens_by_hand():
    # 5 to the first, 4 to the second, 3 to the second with its 4, 2 to the first with its 5 (the other has 7).
    assert balance_over_ranks([3, 5, 4, 2], 2) == [[1, 3], [0, 2]]
    assert balance_over_ranks([1, 8, 1, 1], 3) == [[1], [0, 3], [2]]


def test_a_micro_batch_may_be_full():
    # Rows of 6, 5 and 3 tokens: two of the width 6 fill 12, and a third would make 18, though 3 * 3 are but 9.
    assert micro_batches([5, 3, 6], 6, 12) == [[[2], [0]], [[1]]]


def test_collate_by_hand():
    a = Encoded([11, 12, 13, 14], [0, 0, 1, 2])
    b = Encoded([21, 22, 23], [0, 1, 2])
    c = Encoded([31, 32], [0, 2])
    batch = collate_packed([a, b, c], [[0, 2], [1]])
    expected = {
        "input_ids": [[11, 12, 13, 14, 31, 32], [21, 22, 23, 0, 0, 0]],
        "position_ids": [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 1, 2]],
        # The last token of a document has no next one; 12 is a prompt token, so 11 has no target.
        "targets": [[-100, 13, 14, -100, 32, -100], [22, 23, -100, -100, -100, -100]],
        "segments": [[0, 1, 2, 0, 2, 0], [1, 2, 0, 0, 0, 0]],
        "doc_ids": [[0, 0, 0, 0, 1, 1], [2, 2, 2, -1, -1, -1]],
    }
    assert {name: tensor.tolist() for name, tensor in batch.items()} == expected
    assert {tensor.dtype for tensor in batch.values()} == {torch.long}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 1, 2])), min_size=1, max_size=9), min_size=1))
def test_collate_gives_every_supervised_token_once(documents):
    encoded = [Encoded([i for i, _ in d], sorted(s for _, s in d)) for d in documents]
    batch = collate_packed(encoded, pack([len(d) for d in documents], 20))
    supervised = batch["targets"] != -100
    assert torch.equal(supervised, batch["segments"] > 0)
    found = sorted(zip(batch["targets"][supervised].tolist(), batch["segments"][supervised].tolist(), strict=True))
    # The first token of a document is predicted by nothing.
    expected = sorted((i, s) for d in encoded for i, s in zip(d.input_ids[1:], d.segments[1:], strict=True) if s)
    assert found == expected
    assert int((batch["doc_ids"] >= 0).sum()) == sum(map(len, documents))
    assert int(((batch["position_ids"] == 0) & (batch["doc_ids"] >= 0)).sum()) == len(documents)

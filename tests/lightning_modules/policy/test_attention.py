"""Attention by document against a softmax under a mask, and a model's scores and gradients against one row each."""

import pytest
import torch
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from datamodules.packing import CALL, PROMPT, Encoded, collate_packed
from lightning_modules.policy.attention import attention_by_document, documents_of
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy

BY_KIND = {family.kind: family for family in FAMILIES}
GROUPS = nn.Module()
GROUPS.num_key_value_groups = 2


def positions_of(groups):
    """Of prompts with what goes on from them: [(tokens, [(prefix, tokens), ...]), ...] end to end."""
    return [
        position
        for tokens, branches in groups
        for first, last in [(0, tokens), *((prefix, prefix + more) for prefix, more in branches)]
        for position in range(first, last)
    ]


def visible(positions, window):
    """Which token [.., k] each token [q, ..] sees, by walking over the positions."""
    mask = torch.zeros(len(positions), len(positions), dtype=torch.bool)
    prompt, seen = [], []  # the tokens of the latest prompt, and those that the present document sees, in their order
    for i, position in enumerate(positions):
        if i == 0 or position != positions[i - 1] + 1:
            seen = prompt[:position]
            if position == 0:
                prompt = seen = []
        seen.append(i)
        for place in seen[-window:] if window else seen:
            mask[i, place] = True
    return mask


def softmax_under(mask, query, key, value, scaling):
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    products = (query @ key.mT * scaling).masked_fill(~mask, -torch.inf)
    return (products.softmax(-1) @ value).transpose(1, 2)


def group(prompt):
    return st.tuples(st.just(prompt), st.lists(st.tuples(st.integers(1, prompt), st.integers(1, 12)), max_size=3))


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(1, 20).flatmap(group), min_size=1, max_size=4),
    window=st.sampled_from([None, 1, 4, 7, 50]),
)
def test_documents_and_what_goes_on_from_them_attend_as_under_a_mask(groups, window):
    positions = positions_of(groups)
    draw = torch.Generator().manual_seed(len(positions))
    shapes = [(1, heads, len(positions), 8) for heads in (4, 2, 2, 4)]
    query, key, value, up = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    inputs = [x.requires_grad_() for x in (query, key, value)]
    want = softmax_under(visible(positions, window), *inputs, 0.3)
    documents = documents_of(torch.tensor([positions]))
    got, _ = attention_by_document(GROUPS, *inputs, None, scaling=0.3, sliding_window=window, documents=documents)
    assert documents.windows == [window]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    up = up.transpose(1, 2)
    for a, b in zip(torch.autograd.grad(got, inputs, up), torch.autograd.grad(want, inputs, up), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_rows_are_laid_end_to_end_and_a_row_begins_a_document():
    documents = documents_of(torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 2, 3], [1, 0, 1, 2, 3]]))
    assert documents.lengths == [3, 2, 3, 2, 1, 4] and documents.prefixes == [0, 0, 0, 2, 1, 0]
    with pytest.raises(ValueError, match="a document begins at 3, and the one before it has 2 tokens"):
        documents_of(torch.tensor([[0, 1, 2, 0, 1, 3]]))


def test_without_documents_it_is_the_sdpa_of_transformers():
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, 8, generator=draw) for heads in (4, 2, 2))
    for mask in (None, torch.rand(2, 1, 5, 5, generator=draw) > 0.4):
        want = sdpa_attention_forward(GROUPS, query, key, value, mask, scaling=0.3)[0]
        got = attention_by_document(GROUPS, query, key, value, mask, scaling=0.3, sliding_window=2)[0]
        assert torch.equal(got, want)


LENGTHS = [9, 30, 3, 14, 1, 22]  # gemma3_text has a window of 6


def gradients(policy, rows):
    draw = torch.Generator().manual_seed(5)
    documents = [
        Encoded(torch.randint(3, 320, (n,), generator=draw).tolist(), [PROMPT] + [CALL] * (n - 1)) for n in LENGTHS
    ]
    policy.zero_grad()
    for batch in (collate_packed(documents, some) for some in rows):
        scores = policy(batch["input_ids"], batch["position_ids"], batch["targets"])
        weights = batch["input_ids"][batch["targets"] != -100] % 3 - 1.2  # of any kind
        (scores.logprobs * weights).sum().div(sum(LENGTHS)).backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


# Norms are computed in float32 in models of float64, too: what differs in the last bit before them differs by more.
@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [
        ("qwen2", torch.float32, 1e-5),
        ("qwen2", torch.float64, 1e-10),
        ("gemma3_text", torch.float32, 1e-5),
        ("gemma3_text", torch.float64, 1e-6),
    ],
)
@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_one_document_at_a_time(
    kind, checkpointing, lora, dtype, tolerance, tmp_path, tiny_tokenizer
):
    folder = BY_KIND[kind].save(tmp_path, tiny_tokenizer)
    policy = build_policy(str(folder), lora, gradient_checkpointing=checkpointing, dtype=dtype)
    want = gradients(policy, [[[i]] for i in range(len(LENGTHS))])
    policy.by_document = True
    got = gradients(policy, [[[1, 0, 2], [5, 3, 4]]])
    assert got.keys() == want.keys() and len(got) > 10
    assert max(grad.abs().max() for grad in want.values()) > 0.01
    for name, grad in want.items():
        torch.testing.assert_close(
            got[name], grad, rtol=0, atol=tolerance * max(1.0, float(grad.abs().max())), msg=name
        )

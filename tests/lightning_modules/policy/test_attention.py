"""Attention by document against a softmax under a mask, and a model's scores and gradients against one row each."""

from functools import partial
from inspect import signature
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import modeling_flash_attention_utils as flash
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from datamodules.packing import CALL, PROMPT, Encoded, collate_packed
from lightning_modules.policy import attention
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


REAL = signature(attention.varlen_attn)
CALLS = []


def one_kernel(*args, older, **kwargs):
    """In plain torch what flash's kernel for variable lengths does, whose causal mask ends where both ends are."""
    given = REAL.bind(*args, **kwargs)  # as the real one would take it
    given.apply_defaults()
    query, key, value, starts, ends, most, most_seen = given.args
    scale, (left, right), shared = (given.kwargs[name] for name in ("scale", "window_size", "enable_gqa"))
    assert starts.dtype == ends.dtype == torch.int32 and right == 0 and shared != older
    assert (most, most_seen) == (int(starts.diff().max()), int(ends.diff().max()))
    CALLS.append(query.dtype)
    if older:
        assert key.shape[1] == query.shape[1]
    attended = []
    for q, k, v in zip(
        query.split(starts.diff().tolist()),
        key.split(ends.diff().tolist()),
        value.split(ends.diff().tolist()),
        strict=True,
    ):
        places = torch.arange(len(k) - len(q), len(k))[:, None]
        mask = torch.arange(len(k)) <= places
        if left >= 0:
            mask &= torch.arange(len(k)) >= places - left
        attended.append(softmax_under(mask, *(x.transpose(0, 1)[None] for x in (q, k, v)), scale)[0])
    return torch.cat(attended)


@pytest.fixture(params=[False, True], ids=["2.12", "2.11"])
def at_once(request, monkeypatch):
    """As on a GPU, whose kernel is a fake one; that of torch 2.11 has no word for heads that share keys."""
    CALLS.clear()
    monkeypatch.setattr(attention, "varlen_attn", partial(one_kernel, older=request.param))
    monkeypatch.setattr(attention, "SHARES_HEADS", not request.param)
    monkeypatch.setattr(attention, "takes_all", lambda query, value, dropout: dropout == 0)


@pytest.mark.parametrize("window", [None, 1, 4, 50])
@pytest.mark.parametrize(
    "groups", [[(5, []), (1, []), (9, [])], [(7, [(7, 3), (4, 6), (7, 1)]), (2, []), (3, [(1, 9)])]]
)
def test_one_kernel_for_all_documents_attends_as_each_alone(groups, window, at_once, monkeypatch):
    positions = positions_of(groups)
    draw = torch.Generator().manual_seed(len(positions))
    shapes = [(2, heads, len(positions), 8) for heads in (4, 2, 2)]
    inputs = [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes]
    documents = documents_of(torch.tensor([positions, positions]))
    options = {"scaling": 0.3, "sliding_window": window, "documents": documents}
    got, _ = attention_by_document(GROUPS, *inputs, None, **options)
    assert len(CALLS) == 1
    want = softmax_under(visible(positions, window), *inputs, 0.3)
    up = torch.randn(want.shape, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    for a, b in zip(torch.autograd.grad(got, inputs, up), torch.autograd.grad(want, inputs, up), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    dropped, _ = attention_by_document(GROUPS, *inputs, None, dropout=0.5, **options)  # by calls that have dropout
    assert len(CALLS) == 1 and not torch.allclose(dropped, want)


def test_the_kernel_has_the_dtype_of_autocast_although_rotations_are_in_float32(at_once):
    inputs = [torch.randn(1, heads, 5, 8) for heads in (4, 2, 2)]
    with torch.autocast("cpu", torch.bfloat16):
        documents = documents_of(torch.arange(5)[None])
        got, _ = attention_by_document(GROUPS, *inputs, None, scaling=0.3, documents=documents)
    assert CALLS == [torch.bfloat16] and got.dtype == torch.bfloat16


def test_what_the_kernel_cannot_take_has_calls_of_its_own():
    def on_gpu(dtype, size):
        return SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0), dtype=dtype, shape=(1, 4, 9, size))

    half = on_gpu(torch.bfloat16, 64)
    assert attention.takes_all(half, half, 0.0)
    assert attention.takes_all(on_gpu(torch.float16, 256), on_gpu(torch.float16, 256), 0.0)
    assert not attention.takes_all(half, half, 0.1)
    assert not attention.takes_all(half, on_gpu(torch.bfloat16, 32), 0.0)
    for other in (on_gpu(torch.float32, 64), on_gpu(torch.bfloat16, 264), on_gpu(torch.bfloat16, 60)):
        assert not attention.takes_all(other, other, 0.0)
    assert not attention.takes_all(torch.zeros(1, 4, 9, 64, dtype=torch.bfloat16), half, 0.0)


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


@pytest.mark.parametrize("kind", ["qwen2", "gemma3_text"])
def test_a_models_gradients_are_the_same_by_one_kernel(kind, at_once, tmp_path, tiny_tokenizer):
    policy = build_policy(str(BY_KIND[kind].save(tmp_path, tiny_tokenizer)), gradient_checkpointing=True)
    want = gradients(policy, [[[i]] for i in range(len(LENGTHS))])
    assert not CALLS
    policy.by_document = True
    got = gradients(policy, [[[1, 0, 2], [5, 3, 4]]])
    assert CALLS
    for name, grad in want.items():
        torch.testing.assert_close(got[name], grad, rtol=0, atol=1e-5 * max(1.0, float(grad.abs().max())), msg=name)


@pytest.mark.parametrize("kind", ["qwen2", "gemma3_text"])
def test_flash_attention_is_told_where_documents_lie_once_and_not_by_each_layer(
    kind, monkeypatch, tmp_path, tiny_tokenizer
):
    told = []

    def kernel(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, window_size=(-1, -1)
    ):
        assert causal and cu_seqlens_k is cu_seqlens_q and type(max_seqlen_q) is type(max_seqlen_k) is int
        told.append(cu_seqlens_q)
        options = {"scale": softmax_scale, "window_size": (window_size[0], 0), "enable_gqa": True}
        return one_kernel(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, older=False, **options)

    takes = flash._lazy_define_process_function(kernel)
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *_: ((None, kernel, *[None] * 3), (takes, dict)))
    monkeypatch.setattr(flash, "_is_packed_sequence", lambda *_: pytest.fail("each layer looks for the documents"))
    policy = build_policy(str(BY_KIND[kind].save(tmp_path, tiny_tokenizer)))
    want = gradients(policy, [[[i]] for i in range(len(LENGTHS))])
    policy.causal_lm.config._attn_implementation = "flash_attention_2"
    got = gradients(policy, [[[1, 0, 2], [5, 3, 4]]])
    assert len(told) == policy.causal_lm.config.num_hidden_layers and all(starts is told[0] for starts in told)
    for name, grad in want.items():
        torch.testing.assert_close(got[name], grad, rtol=0, atol=1e-5 * max(1.0, float(grad.abs().max())), msg=name)

"""The multiscale loss on numbers worked out by hand, and its sums over any split of a step."""

import math

import pytest
import torch

from datamodules import packing
from lightning_modules.objectives import Totals, multiscale_loss, srml

# One document: CoT losses 1, 2, 3 (mean 2) and call losses 4, 6 (mean 5).
NLL = [1.0, 2.0, 3.0, 4.0, 6.0]
SEGMENTS = [1, 1, 1, 2, 2]


def tensors(nll, segments, samples=None):
    samples = [0] * len(nll) if samples is None else samples
    return torch.tensor(nll, dtype=torch.float64), torch.tensor(segments), torch.tensor(samples)


@pytest.mark.parametrize("reduction", ["sample", "token"])
def test_one_document(reduction):
    loss, parts = multiscale_loss(*tensors(NLL, SEGMENTS), 0.7, reduction)
    assert loss.item() == pytest.approx(2.9)  # 0.7 * 2 + 0.3 * 5
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(
        {"loss_cot": 2.0, "loss_call": 5.0, "samples": 1.0, "tokens_cot": 3.0, "tokens_call": 2.0}
    )


@pytest.mark.parametrize("reduction", ["sample", "token"])
def test_plain_sft_is_the_share_of_tokens_as_weight(reduction):
    # (1 + 2 + 3 + 4 + 6) / 5 = 3.2, which is alpha = 3 / 5: 0.6 * 2 + 0.4 * 5.
    assert multiscale_loss(*tensors(NLL, SEGMENTS), None, reduction)[0].item() == pytest.approx(3.2)
    assert multiscale_loss(*tensors(NLL, SEGMENTS), 3 / 5, reduction)[0].item() == pytest.approx(3.2)


@pytest.mark.parametrize("reduction", ["sample", "token"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_learnable_weight_and_token_gradients(reduction, shape):
    nll, segments, samples = tensors(NLL, SEGMENTS)
    nll.requires_grad_()
    alpha = torch.full(shape, 0.7, dtype=torch.float64, requires_grad=True)
    loss, parts = multiscale_loss(nll, segments, samples, alpha, reduction)
    loss.backward()
    assert not any(value.requires_grad for value in parts.values())
    assert alpha.grad.item() == pytest.approx(-3.0)  # L_cot - L_call = 2 - 5
    assert nll.grad.tolist() == pytest.approx([0.7 / 3] * 3 + [0.3 / 2] * 2)


# Three documents, interleaved as no packing would, with ignored tokens between:
#   0: CoT 1, 3 (mean 2), call 5          1: no CoT, call 2, 4 (mean 3)          2: CoT 6, no call
MANY = (
    [1.0, 2.0, math.nan, 3.0, 4.0, 5.0, 6.0, math.inf],
    [1, 2, 0, 1, 2, 2, 1, 0],
    [0, 1, 1, 0, 1, 0, 2, -1],
)


def test_documents_and_missing_segments_reduced_by_sample():
    loss, parts = multiscale_loss(*tensors(*MANY), 0.7, "sample")
    assert loss.item() == pytest.approx((0.7 * 2 + 0.3 * 5 + 3 + 6) / 3)  # 11.9 / 3
    assert parts["loss_cot"].item() == pytest.approx((2 + 6) / 2)  # of the two documents that have one
    assert parts["loss_call"].item() == pytest.approx((5 + 3) / 2)
    assert [parts[name].item() for name in ("samples", "tokens_cot", "tokens_call")] == [3, 3, 3]
    # Totals that do not say how many documents have a segment: all 4 of the step.
    _, parts = multiscale_loss(*tensors(*MANY), 0.7, "sample", Totals(samples=4, cot=3, call=3))
    assert (parts["loss_cot"].item(), parts["loss_call"].item()) == pytest.approx(((2 + 6) / 4, (5 + 3) / 4))


def test_documents_reduced_by_token():
    loss, parts = multiscale_loss(*tensors(*MANY), 0.7, "token")
    assert parts["loss_cot"].item() == pytest.approx(10 / 3)  # (1 + 3 + 6) / 3
    assert parts["loss_call"].item() == pytest.approx(11 / 3)  # (2 + 4 + 5) / 3
    assert loss.item() == pytest.approx((0.7 * 10 + 0.3 * 11) / 3)


def test_plain_sft_over_documents():
    by_sample = multiscale_loss(*tensors(*MANY), None, "sample")[0].item()
    assert by_sample == pytest.approx(((1 + 3 + 5) / 3 + (2 + 4) / 2 + 6) / 3)  # mean over documents of token means
    by_token = multiscale_loss(*tensors(*MANY), None, "token")[0].item()
    assert by_token == pytest.approx((1 + 2 + 3 + 4 + 5 + 6) / 6)


@pytest.mark.parametrize("reduction", ["sample", "token"])
def test_tokens_of_loss_one_have_parts_of_one_whichever_segments_documents_have(reduction):
    # Four documents: one has both segments, one CoT alone, two a call alone; as one micro-batch, and as two.
    nll, segments, samples = tensors([1.0] * 7, [1, 2, 1, 1, 2, 2, 2], [0, 0, 1, 1, 2, 3, 3])
    _, parts = multiscale_loss(nll, segments, samples, 0.7, reduction)
    assert parts["loss_cot"].item() == parts["loss_call"].item() == 1.0
    totals = Totals(samples=4, cot=3, call=4, samples_cot=2, samples_call=3)
    pieces = [
        multiscale_loss(nll[m], segments[m], samples[m], 0.7, reduction, totals) for m in (samples < 2, samples > 1)
    ]
    for name in ("loss_cot", "loss_call"):
        assert sum(piece[name].item() for _, piece in pieces) == pytest.approx(1.0)
    assert sum(loss.item() for loss, _ in pieces) == pytest.approx(1.0)


@pytest.mark.parametrize("reduction", ["sample", "token"])
@pytest.mark.parametrize("segment", [1, 2])
def test_a_segment_missing_everywhere_leaves_the_other_with_weight_one(reduction, segment):
    alpha = torch.tensor(0.7, requires_grad=True)
    loss, _ = multiscale_loss(*tensors([2.0, 4.0], [segment] * 2), alpha, reduction)
    assert loss.item() == pytest.approx(3.0)
    loss.backward()
    assert alpha.grad.item() == 0.0


def test_a_segment_missing_only_from_this_micro_batch_keeps_its_weight_when_reduced_by_token():
    # The step holds 4 CoT and 2 call tokens, this micro-batch two of the CoT tokens: 0.7 * (2 + 4) / 4.
    loss, _ = multiscale_loss(*tensors([2.0, 4.0], [1, 1]), 0.7, "token", Totals(samples=2, cot=4, call=2))
    assert loss.item() == pytest.approx(1.05)


@pytest.mark.parametrize("reduction", ["sample", "token"])
def test_nothing_supervised_gives_zero_with_zero_gradient(reduction):
    nll, segments, samples = tensors([3.0], [0])
    nll.requires_grad_()
    loss, parts = multiscale_loss(nll, segments, samples, 0.7, reduction, Totals(samples=4, cot=5, call=6))
    loss.backward()
    assert loss.item() == 0.0 and nll.grad.tolist() == [0.0]
    assert all(value.item() == 0.0 for value in parts.values())
    for tokens in (0, 1):  # and none in the whole step
        assert multiscale_loss(nll[:tokens], segments[:tokens], samples[:tokens], 0.7, reduction)[0].item() == 0.0


@pytest.mark.parametrize("as_tensors", [False, True])
@pytest.mark.parametrize("cot_weight", [0.7, None, "learnable"])
@pytest.mark.parametrize("reduction", ["sample", "token"])
@pytest.mark.parametrize("splits", [1, 2, 4])
def test_any_split_into_micro_batches_gives_the_loss_parts_and_gradients_of_the_step(
    splits, reduction, cot_weight, as_tensors
):
    generator = torch.Generator().manual_seed(splits)
    lengths = torch.randint(1, 9, (8,), generator=generator).tolist()
    samples = torch.repeat_interleave(torch.arange(8), torch.tensor(lengths))
    nll = torch.rand(len(samples), generator=generator, dtype=torch.float64).requires_grad_()
    segments = torch.randint(0, 3, (len(samples),), generator=generator)
    alpha = torch.tensor([0.6], dtype=torch.float64, requires_grad=True)
    weight = alpha if cot_weight == "learnable" else cot_weight

    def gradients(loss):
        return torch.autograd.grad(loss, [nll, alpha], allow_unused=True, materialize_grads=True)

    loss, parts = multiscale_loss(nll, segments, samples, weight, reduction)
    masks = (segments > 0, segments == 1, segments == 2)
    documents = [len(samples[mask].unique()) for mask in masks]
    counts = [documents[0], masks[1].sum().item(), masks[2].sum().item(), *documents[1:]]
    totals = Totals(*(torch.tensor(count) if as_tensors else count for count in counts))
    pieces = []
    for documents in torch.arange(8).tensor_split(splits):
        mine = torch.isin(samples, documents)
        local = samples[mine] - documents[0]  # documents are numbered inside the micro-batch
        pieces.append(multiscale_loss(nll[mine], segments[mine], local, weight, reduction, totals))
    total = sum(piece for piece, _ in pieces)
    assert total.item() == pytest.approx(loss.item(), abs=1e-12)
    for name, value in parts.items():
        assert sum(piece[name] for _, piece in pieces).item() == pytest.approx(value.item(), abs=1e-12)
    torch.testing.assert_close(gradients(total), gradients(loss), rtol=0, atol=1e-12)


def test_half_precision_is_summed_in_float32():
    nll = torch.full((4096,), 1.001, dtype=torch.bfloat16)
    loss, _ = multiscale_loss(nll, torch.ones(4096, dtype=torch.long), torch.zeros(4096, dtype=torch.long), 0.7)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(nll[0].item(), rel=1e-6)


def test_bad_arguments_are_refused():
    nll, segments, samples = tensors(NLL, SEGMENTS)
    with pytest.raises(ValueError, match=r"must all be \[N\], got \[\[5\], \[4\], \[5\]\]"):
        multiscale_loss(nll, segments[1:], samples, 0.7)
    with pytest.raises(ValueError, match=r"must all be \[N\], got \[\[5\], \[5\], \[4\]\]"):
        multiscale_loss(nll, segments, samples[1:], 0.7)
    with pytest.raises(ValueError, match="reduction must be 'sample' or 'token', got 'mean'"):
        multiscale_loss(nll, segments, samples, 0.7, "mean")


def test_segments_have_the_numbers_of_packed_rows():
    assert (srml.COT, srml.CALL) == (packing.COT, packing.CALL)
    assert torch.nn.CrossEntropyLoss().ignore_index == packing.IGNORED

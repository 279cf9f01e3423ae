"""Tiled log-probabilities against a float64 oracle that builds all logits, and the memory they do not take."""

import json
import math
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_modules.objectives import linear_logprobs, linear_scores, logprobs

N, D, V = 13, 6, 29


@pytest.fixture(params=[2048, 5], ids=["one block", "six blocks"])
def blocks(request, monkeypatch):
    """Tiles of all 29 ids, and of 5 (the last of 4)."""
    monkeypatch.setattr(logprobs, "BLOCK", request.param)


def inputs(dtype=torch.float64, n=N):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(n, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(V, (n,), generator=generator)


def oracle(hidden, weight, targets, temperature=1.0):
    log_p = torch.log_softmax(hidden.double() @ weight.double().T / temperature, dim=-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


def weighted(logprobs, entropies, use_logprobs=True, use_entropy=True):
    """A loss whose gradient with respect to every output differs, signs included."""
    scale = torch.linspace(-1.0, 2.0, len(logprobs), dtype=logprobs.dtype)
    loss = logprobs.new_zeros(())
    if use_logprobs:
        loss = loss + (scale * logprobs).sum()
    if use_entropy:
        loss = loss + (scale.flip(0) * entropies).sum()
    return loss


@pytest.mark.parametrize("chunk_tokens", [1, 4, 13, 1024])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("use_logprobs", "use_entropy"), [(True, False), (False, True), (True, True)])
def test_value_and_gradient_equal_the_oracle(blocks, chunk_tokens, temperature, use_logprobs, use_entropy):
    hidden, weight, targets = inputs()
    expected = oracle(hidden, weight, targets, temperature)
    expected_grads = torch.autograd.grad(weighted(*expected, use_logprobs, use_entropy), [hidden, weight])
    result = linear_logprobs(hidden, weight, targets, temperature, chunk_tokens, entropy=True)
    grads = torch.autograd.grad(weighted(*result, use_logprobs, use_entropy), [hidden, weight])
    for got, want in zip([*result, *grads], [*expected, *expected_grads], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_hits_are_the_targets_that_are_most_likely(blocks):
    hidden, weight, targets = inputs()
    best = (hidden @ weight.T).argmax(dim=-1)
    targets[::3] = best[::3]
    hits = linear_scores(hidden, weight, targets, chunk_tokens=4)[2]
    assert hits.dtype == torch.bool
    assert hits.tolist() == (best == targets).tolist()
    assert 0 < hits.sum() < len(hits)


def test_without_entropy_the_logprobs_and_their_gradient_are_the_same():
    hidden, weight, targets = inputs()
    logprobs, entropies = linear_logprobs(hidden, weight, targets, chunk_tokens=5)
    assert entropies is None
    expected = oracle(hidden, weight, targets)[0]
    torch.testing.assert_close(logprobs, expected, rtol=1e-12, atol=1e-12)
    got = torch.autograd.grad(weighted(logprobs, None, use_entropy=False), [hidden, weight])
    want = torch.autograd.grad(weighted(expected, None, use_entropy=False), [hidden, weight])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_gradcheck():
    hidden, weight, targets = inputs(n=5)
    assert torch.autograd.gradcheck(lambda h, w: linear_logprobs(h, w, targets, 0.8, 2, entropy=True), (hidden, weight))


def test_uniform_and_peaked_distributions_by_hand(blocks):
    # Zero states make all logits 0: log(1/V) and ln V. A logit of 1000 on the target, 0 elsewhere: 0 and 0, finite.
    hidden, weight = torch.zeros(1, D), torch.ones(V, D)
    logprobs, entropies = linear_logprobs(hidden, weight, torch.tensor([3]), entropy=True)
    assert logprobs.item() == pytest.approx(-math.log(V)) and entropies.item() == pytest.approx(math.log(V))
    hidden, weight = torch.ones(1, 1), torch.zeros(V, 1).index_fill(0, torch.tensor([3]), 1000.0)
    logprobs, entropies = linear_logprobs(hidden, weight, torch.tensor([3]), entropy=True)
    assert logprobs.item() == 0.0 and entropies.item() == 0.0


def test_logits_far_below_zero_are_as_good_as_any(blocks):
    # As with an embedding of only negative numbers: e^-1000 is no number beside one of a maximum of 0.
    hidden, weight, targets = inputs()
    bias = torch.full((V,), -1000.0, dtype=torch.float64)
    logprobs, entropies, hits = linear_scores(hidden, weight, targets, chunk_tokens=4, entropy=True, bias=bias)
    torch.testing.assert_close((logprobs, entropies), oracle(hidden, weight, targets), rtol=1e-10, atol=1e-10)
    assert hits.tolist() == ((hidden @ weight.T).argmax(dim=-1) == targets).tolist()


def test_gradients_of_half_precision_are_summed_in_float32(monkeypatch):
    # 600 tokens one by one, whose states are 1, and two ids of weight 0: p = 1/2, so that each token adds 1 - 1/2 to
    # the gradient of its target's weight and -1/2 to the other's. In bfloat16 a sum of halves stays at 128.
    hidden, weight = torch.ones(600, 1).bfloat16(), torch.zeros(2, 1).bfloat16().requires_grad_()
    linear_logprobs(hidden, weight, torch.zeros(600, dtype=torch.long), chunk_tokens=1)[0].sum().backward()
    assert weight.grad.flatten().tolist() == [300, -300]
    # 512 ids one by one, of p = 1/512 each, and all weights but the target's 1: that of the state is -511/512, and a
    # sum of -1/512 stays at -1/2 in bfloat16.
    monkeypatch.setattr(logprobs, "BLOCK", 1)
    hidden, weight = torch.zeros(1, 1).bfloat16().requires_grad_(), torch.ones(512, 1).bfloat16()
    weight[0] = 0
    linear_logprobs(hidden, weight, torch.zeros(1, dtype=torch.long))[0].sum().backward()
    assert hidden.grad.item() == pytest.approx(-511 / 512, abs=1 / 256)


def test_low_precision_inputs_give_float32_results_and_gradients_of_their_own_dtype(blocks):
    hidden, weight, targets = inputs(torch.bfloat16)
    result = linear_logprobs(hidden, weight, targets, chunk_tokens=5, entropy=True)
    assert {tensor.dtype for tensor in result} == {torch.float32}
    # The oracle sees the same bfloat16 numbers, so only float32 arithmetic separates the two.
    expected = oracle(hidden, weight, targets)
    torch.testing.assert_close([t.double() for t in result], list(expected), rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad(weighted(*result), [hidden, weight])
    want = torch.autograd.grad(weighted(*expected), [hidden, weight])
    assert {grad.dtype for grad in grads} == {torch.bfloat16}
    torch.testing.assert_close(grads, want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("backward_inside", [True, False])
def test_bf16_autocast_rounds_the_factors_only_wherever_the_backward_runs(blocks, backward_inside):
    hidden, weight, targets = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        result = linear_logprobs(hidden, weight, targets, temperature=0.9, chunk_tokens=4, entropy=True)
        if backward_inside:
            weighted(*result).backward()
    if not backward_inside:
        weighted(*result).backward()
    assert {tensor.dtype for tensor in [*result, hidden.grad, weight.grad]} == {torch.float32}
    rounded = [tensor.detach().bfloat16().double().requires_grad_() for tensor in (hidden, weight)]
    expected = oracle(*rounded, targets, temperature=0.9)
    torch.testing.assert_close([t.double() for t in result], list(expected), rtol=1e-5, atol=1e-5)
    want = torch.autograd.grad(weighted(*expected), rounded)
    # Gradients of the logits are rounded to bfloat16 (8 bits, 2^-9 = 0.002 relative) before they are multiplied.
    torch.testing.assert_close([hidden.grad.double(), weight.grad.double()], list(want), rtol=1e-2, atol=1e-2)


def test_backward_is_bitwise_the_same_inside_and_outside_autocast():
    grads = []
    for inside in (True, False):
        hidden, weight, targets = inputs(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            loss = weighted(*linear_logprobs(hidden, weight, targets, chunk_tokens=4, entropy=True))
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            loss.backward()
        grads.append([hidden.grad, weight.grad])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_no_tokens_give_empty_results_and_zero_gradients():
    hidden, weight, targets = inputs(n=0)
    logprobs, entropies = linear_logprobs(hidden, weight, targets, entropy=True)
    assert logprobs.shape == entropies.shape == (0,)
    (logprobs.sum() + entropies.sum()).backward()
    assert torch.equal(weight.grad, torch.zeros(V, D)) and hidden.grad.shape == (0, D)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_input_gets_no_gradient_and_the_other_the_same_one(frozen):
    hidden, weight, targets = inputs()
    want = torch.autograd.grad(weighted(*oracle(hidden, weight, targets)), [hidden, weight])
    {"hidden": hidden, "weight": weight}[frozen].requires_grad_(False)
    weighted(*linear_logprobs(hidden, weight, targets, chunk_tokens=4, entropy=True)).backward()
    for tensor, gradient, name in [(hidden, want[0], "hidden"), (weight, want[1], "weight")]:
        if name == frozen:
            assert tensor.grad is None
        else:
            torch.testing.assert_close(tensor.grad, gradient, rtol=1e-12, atol=1e-12)


def test_bad_arguments_are_refused():
    hidden, weight, targets = inputs()
    with pytest.raises(ValueError, match=r"disagree: \[13, 6\], \[29, 6\], \[12\]"):
        linear_logprobs(hidden, weight, targets[1:])
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        linear_logprobs(hidden, weight, targets, temperature=0.0)
    with pytest.raises(ValueError, match="chunk_tokens must be at least 1"):
        linear_logprobs(hidden, weight, targets, chunk_tokens=0)


class LargestTensor(TorchDispatchMode):
    """Largest number of elements of any tensor that an operation returned, backward included."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


def test_no_tensor_of_tokens_or_chunk_times_vocabulary_is_ever_made(monkeypatch):
    n, d, v, c, b = 600, 8, 5000, 64, 700
    monkeypatch.setattr(logprobs, "BLOCK", b)
    hidden, weight = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
    targets = torch.randint(v, (n,))
    with LargestTensor() as chunked:
        weighted(*linear_logprobs(hidden, weight, targets, chunk_tokens=c, entropy=True)).backward()
    with LargestTensor() as plain:
        weighted(*oracle(hidden, weight, targets)).backward()
    assert plain.numel == n * v  # the measure sees it where it is made
    assert chunked.numel == c * b > v * d  # the gradient of the head is smaller


MEASURE = """
import json, re, torch
from lightning_modules.objectives import linear_logprobs
def peak():  # in MiB; `ru_maxrss` begins with what the parent held when it forked
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024
v, d = 50_000, 16
weight = torch.randn(v, d, requires_grad=True)
def chunked(n):
    hidden, targets = torch.randn(n, d, requires_grad=True), torch.randint(v, (n,))
    logprobs, entropies = linear_logprobs(hidden, weight, targets, chunk_tokens=64, entropy=True)
    (logprobs.sum() + entropies.sum()).backward()
def plain(n):
    hidden, targets = torch.randn(n, d, requires_grad=True), torch.randint(v, (n,))
    torch.log_softmax(hidden @ weight.T, -1).gather(1, targets[:, None]).sum().backward()
marks = [peak()]
for job, n in [(chunked, 1536), (chunked, 3072), (plain, 1536)]:
    job(n)
    marks.append(peak())
print(json.dumps([after - before for before, after in zip(marks, marks[1:])]))
"""


@pytest.mark.slow
def test_peak_memory_of_the_process_does_not_grow_with_tokens():
    # All logits of 1,536 tokens: 1536 * 50,000 * 4 bytes = 293 MiB; one tile of 64 tokens and 2,048 ids: 0.5 MiB.
    # The threshold: glibc's own one grows with what is freed, and from then on it keeps chunks by chance.
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    command = [sys.executable, "-c", textwrap.dedent(MEASURE)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    chunks, more_by_as_many_again, more_by_plain = json.loads(run.stdout)
    assert chunks < 50
    assert more_by_as_many_again < 10
    assert more_by_plain > 293  # the measure sees the plain computation


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 1.5), (2.0, 3.0)])
def test_bias_scale_and_soft_cap_equal_logits_that_are_built_whole(blocks, with_bias, scale, softcap):
    hidden, weight, targets = inputs()
    bias = torch.linspace(-1, 1, V, dtype=torch.float64).requires_grad_() if with_bias else None
    z = scale * (hidden @ weight.T + (0 if bias is None else bias))  # the order of Gemma, Cohere, Granite and Phi
    logits = z if softcap is None else torch.tanh(z / softcap) * softcap
    log_p = torch.log_softmax(logits / 0.7, dim=-1)  # what is sampled: the model's own logits over the temperature
    expected = log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)
    leaves = [hidden, weight, *([bias] if with_bias else [])]
    want = torch.autograd.grad(weighted(*expected), leaves)
    result = linear_logprobs(hidden, weight, targets, 0.7, 4, True, bias, scale, softcap)
    got = torch.autograd.grad(weighted(*result), leaves)
    for one, other in zip([*result, *got], [*expected, *want], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    if softcap:  # it is at work: uncapped logits reach beyond it
        assert z.abs().max() > softcap


def test_a_bias_alone_can_learn_and_impossible_heads_are_refused(blocks):
    hidden, weight, targets = (tensor.detach() for tensor in inputs())
    bias = torch.zeros(V, dtype=torch.float64, requires_grad=True)
    linear_logprobs(hidden, weight, targets, bias=bias)[0].sum().backward()
    # d sum(log p) / d bias = how often each id is the target - its probability summed over the tokens
    p = torch.softmax(hidden @ weight.T, dim=-1)
    torch.testing.assert_close(bias.grad, torch.bincount(targets, minlength=V) - p.sum(0), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"bias must be \[V\]"):
        linear_logprobs(hidden, weight, targets, bias=bias[1:])
    with pytest.raises(ValueError, match="softcap must be greater than 0"):
        linear_logprobs(hidden, weight, targets, softcap=0.0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_soft_cap_in_bfloat16(blocks, temperature):
    hidden, weight, targets = inputs(torch.bfloat16)
    result = linear_logprobs(hidden, weight, targets, temperature, 4, True, softcap=2.0)
    logits = torch.tanh(hidden.double() @ weight.double().T / 2) * 2
    log_p = torch.log_softmax(logits / temperature, dim=-1)
    expected = log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)
    torch.testing.assert_close([t.double() for t in result], list(expected), rtol=1e-5, atol=1e-5)
    want = torch.autograd.grad(weighted(*expected), [hidden, weight])
    torch.testing.assert_close(torch.autograd.grad(weighted(*result), [hidden, weight]), want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_half_products_lose_no_more_than_the_rounding_of_factors(temperature, scale):
    # Logits up to about 30, of which bfloat16 (8 bits) keeps no more than 30 / 512 = 0.06: a probability would be 6 %
    # off. As distances from the logsumexp they are right where it counts. The bound: sums of 64 factors with errors of
    # 1/512 each, and outputs rounded as much, against the norm of the gradient.
    draw = torch.Generator().manual_seed(3)
    weight = torch.randn(3000, 64, generator=draw).requires_grad_()
    targets = torch.randint(3000, (200,), generator=draw)
    hidden = (
        (0.4 * weight[targets] + 0.5 * torch.randn(200, 64, generator=draw)).detach().mul(1 / scale).requires_grad_()
    )
    with torch.autocast("cpu", torch.bfloat16):
        result = linear_logprobs(hidden, weight, targets, temperature, entropy=True, scale=scale)
    weighted(*result).backward()
    rounded = [tensor.detach().bfloat16().double().requires_grad_() for tensor in (hidden, weight)]
    assert (scale * rounded[0] @ rounded[1].T).abs().max() > 20
    expected = oracle(scale * rounded[0], rounded[1], targets, temperature)
    want = torch.autograd.grad(weighted(*expected), rounded)
    torch.testing.assert_close([t.double() for t in result], list(expected), rtol=1e-5, atol=1e-4)
    for got, exact in zip((hidden.grad, weight.grad), want, strict=True):
        assert (got - exact).norm() <= 2 / 512 * exact.norm()

"""The policy loss on numbers worked out by hand, its gradients, and its sums over any split of a step."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.objectives import PolicyLoss, PolicyTotals, group_advantages, kl_k3, policy_loss

AGGREGATIONS = [("token_mean", None), ("seq_mean", None), ("dr_grpo", 10)]


def double(values, grad=False):
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def one_token(ratio, advantage, **settings):
    """Loss, gradient with respect to the log-probability, and parts of a single token."""
    logprobs = double([math.log(ratio) - 2.0], grad=True)
    loss, parts = policy_loss(logprobs, double([-2.0]), double([advantage]), torch.tensor([0]), **settings)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.item(), gradient.item(), {name: value.item() for name, value in parts.items()}


def test_k3():
    # r = exp(-1.5 + 1) = 0.606531; r - ln r - 1 = 0.606531 + 0.5 - 1 = 0.106531.
    assert kl_k3(double(-1.0), double(-1.5)).item() == pytest.approx(0.106531, abs=1e-6)
    assert kl_k3(double(-1.0), double(-1.0)).item() == 0.0
    # Its mean under p is the divergence: p = (0.25, 0.75), q = (0.5, 0.5): 0.25 ln 0.5 + 0.75 ln 1.5 = 0.130812.
    p, q = double([0.25, 0.75]), double([0.5, 0.5])
    assert (p * kl_k3(p.log(), q.log())).sum().item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_k3_is_clamped_and_never_negative():
    logprobs = double([-30.0, 0.0, -1.0, -4.0], grad=True)
    kl = kl_k3(logprobs, double([0.0, -30.0, -1.0, -1.0]))
    # exp(20) - 21 is cut to 10; log r = -30 counts as -20: exp(-20) + 20 - 1 = 19 is cut to 10; exp(3) - 3 - 1 = 16.1.
    assert kl.tolist() == [10.0, 10.0, 0.0, 10.0]
    assert torch.autograd.grad(kl.sum(), logprobs)[0].tolist() == [0.0] * 4
    # A token that the policy has all but given up, and the reference has not: exp(199) is infinite in float32.
    absurd = torch.tensor([-200.0], requires_grad=True)
    assert torch.autograd.grad(kl_k3(absurd, torch.tensor([-1.0])).sum(), absurd)[0].tolist() == [0.0]
    # Where exp(x) - x - 1 would cancel.
    drawn = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e-4 - 1
    assert (kl_k3(drawn, torch.full_like(drawn, -1.0)) >= 0).all()


# Clips 0.2 and 0.3: bounds 0.8 and 1.3. Loss is max(-rho A, -clip(rho) A); its slope in log rho is -rho A or 0.
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, None),
        (1.2, 2.0, -2.4, -2.4, None),  # inside
        (1.5, 2.0, -2.6, 0.0, "clip_high"),  # -1.3 * 2: no more to be earned
        (0.5, 2.0, -1.0, -1.0, None),  # max(-0.5 * 2, -0.8 * 2): the way back is never clipped
        (0.9, -2.0, 1.8, 1.8, None),  # inside
        (0.5, -2.0, 1.6, 0.0, "clip_low"),  # max(0.5 * 2, 0.8 * 2)
        (1.5, -2.0, 3.0, 3.0, None),  # max(1.5 * 2, 1.3 * 2)
        (1.5, 0.0, 0.0, 0.0, None),
        (0.5, 0.0, 0.0, 0.0, None),
    ],
)
def test_clipping_of_each_sign_and_side(ratio, advantage, loss, gradient, clipped):
    got, slope, parts = one_token(ratio, advantage, clip_low=0.2, clip_high=0.3)
    assert (got, slope) == pytest.approx((loss, gradient))
    assert parts["loss"] == pytest.approx(loss)
    assert {name for name in ("clip_low", "clip_high", "clip_dual") if parts[name]} == ({clipped} if clipped else set())
    assert (parts["ratio"], parts["ratio_max"], parts["tokens"], parts["rollouts"]) == pytest.approx(
        (ratio, ratio, 1, 1)
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "clipped"),
    [
        (2.9, -2.0, 5.8, 5.8, 0),  # 2.9 * 2 below the bound of 3 * 2
        (5.0, -2.0, 6.0, 0.0, 1),  # min(5 * 2, 3 * 2)
        (5.0, 2.0, -2.4, 0.0, 0),  # only negative advantages are bounded: -1.2 * 2
    ],
)
def test_dual_clip(ratio, advantage, loss, gradient, clipped):
    got, slope, parts = one_token(ratio, advantage, dual_clip=3.0)
    assert (got, slope, parts["clip_dual"]) == pytest.approx((loss, gradient, clipped))


def test_without_dual_clip_a_negative_advantage_is_unbounded_up_to_the_clamp_of_the_ratio():
    assert one_token(5.0, -2.0)[:2] == pytest.approx((10.0, 10.0))
    loss, gradient, parts = one_token(math.exp(25), -1.0)
    assert (loss, gradient, parts["ratio_max"]) == pytest.approx((math.exp(20), 0.0, math.exp(20)))


# Rollout 0 has tokens 0 and 2, rollout 1 has token 1, rollout 7 has tokens 3, 4, 5; ratios are 1, so the loss of a
# token is -A. Sums of A: 1 + 3 = 4, 2, -1 - 2 - 6 = -9.
ADVANTAGE = [1.0, 2.0, 3.0, -1.0, -2.0, -6.0]
SAMPLES = [0, 1, 0, 7, 7, 7]


@pytest.mark.parametrize(
    ("aggregation", "max_length", "loss", "shares"),
    [
        ("token_mean", None, 3 / 6, [1 / 6] * 6),  # -(4 + 2 - 9) / 6
        ("seq_mean", None, -1 / 3, [1 / 6, 1 / 3, 1 / 6, 1 / 9, 1 / 9, 1 / 9]),  # -(4 / 2 + 2 / 1 - 9 / 3) / 3
        ("dr_grpo", 10, 3 / 30, [1 / 30] * 6),  # -(4 + 2 - 9) / (3 * 10)
    ],
)
def test_aggregation_by_hand(aggregation, max_length, loss, shares):
    logprobs = double([-1.0] * 6, grad=True)
    got, parts = policy_loss(
        logprobs,
        double([-1.0] * 6),
        double(ADVANTAGE),
        torch.tensor(SAMPLES),
        aggregation=aggregation,
        max_length=max_length,
    )
    assert got.item() == pytest.approx(loss) == pytest.approx(parts["loss"].item())
    # At ratio 1 the gradient is that of -A log p, the plain policy gradient.
    expected = [-share * advantage for share, advantage in zip(shares, ADVANTAGE, strict=True)]
    assert torch.autograd.grad(got, logprobs)[0].tolist() == pytest.approx(expected)
    assert (parts["tokens"].item(), parts["rollouts"].item(), parts["ratio"].item()) == (6, 3, 6)


@pytest.mark.parametrize(("aggregation", "max_length"), AGGREGATIONS)
def test_gradient_raises_what_was_better_and_lowers_what_was_worse(aggregation, max_length):
    rewards = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    samples = torch.tensor([0, 1, 1, 2])
    logprobs = double([-1.0, -2.0, -3.0, -0.1], grad=True)
    advantages = group_advantages(rewards).flatten()[samples]
    loss, _ = policy_loss(
        logprobs, logprobs.detach(), advantages, samples, aggregation=aggregation, max_length=max_length
    )
    loss.backward()
    assert logprobs.grad.sign().tolist() == [-1, 1, 1, -1]  # a descent step adds the opposite


def test_a_group_of_equal_rewards_has_no_policy_gradient():
    advantages = group_advantages(torch.full((1, 4), 0.1)).flatten()
    logprobs = torch.tensor([-1.0, -2.0, -0.3, -4.0], requires_grad=True)
    loss, _ = policy_loss(logprobs, logprobs.detach() + 0.1, advantages, torch.arange(4))
    loss.backward()
    assert loss.item() == 0 and not logprobs.grad.any()


def test_sequence_ratio_by_hand():
    # Rollout 0: ratios 2 and 1/2, geometric mean 1; rollout 1: 4 and 1, geometric mean 2. A = 1 and -3.
    old = double([-3.0] * 4)
    logprobs = (old + double([2.0, 0.5, 4.0, 1.0]).log()).requires_grad_()
    advantages, samples = double([1.0, 1.0, -3.0, -3.0]), torch.tensor([0, 0, 1, 1])
    settings = {"ratio_level": "sequence", "clip_low": 0.2, "clip_high": 0.2}
    loss, parts = policy_loss(logprobs, old, advantages, samples, **settings)
    # (-1 * 1 + max(3 * 2, 3 * 1.2)) / 2; d s_i / d log p = s_i / |o_i|: -1 / 2 / 2 and 6 / 2 / 2.
    assert loss.item() == pytest.approx(2.5)
    gradient = torch.autograd.grad(loss, logprobs)[0].tolist()
    assert gradient == pytest.approx([-0.25, -0.25, 1.5, 1.5])
    assert (parts["ratio"].item(), parts["ratio_max"].item()) == pytest.approx((1 + 1 + 2 + 2, 2))
    # By token the same rollouts are clipped otherwise: -1.2 and -0.5, 12 and 3, (-1.7 / 2 + 15 / 2) / 2.
    by_token, _ = policy_loss(logprobs, old, advantages, samples, aggregation="seq_mean")
    assert by_token.item() == pytest.approx(3.325)


def test_sequence_ratio_is_clipped_as_a_whole():
    # The geometric mean of 4 and 1 is 2, above 1.2, and A is positive: both tokens are held back.
    old = double([-3.0, -3.0])
    logprobs = (old + double([4.0, 1.0]).log()).requires_grad_()
    settings = {"ratio_level": "sequence", "clip_high": 0.2}
    loss, parts = policy_loss(logprobs, old, double([1.0, 1.0]), torch.tensor([0, 0]), **settings)
    assert loss.item() == pytest.approx(-1.2) and parts["clip_high"].item() == 2
    assert torch.autograd.grad(loss, logprobs)[0].tolist() == [0.0, 0.0]


def test_sequence_ratio_gives_each_token_its_own_advantage():
    # s = sqrt(1.21) = 1.1 for both tokens; the gradient of token t is -s A_t / 2, not -s mean(A) / 2.
    old = double([-3.0, -3.0])
    logprobs = (old + double([1.21, 1.0]).log()).requires_grad_()
    settings = {"ratio_level": "sequence", "clip_high": 0.2}
    loss, _ = policy_loss(logprobs, old, double([1.0, 3.0]), torch.tensor([0, 0]), **settings)
    assert loss.item() == pytest.approx(-1.1 * 2)
    assert torch.autograd.grad(loss, logprobs)[0].tolist() == pytest.approx([-0.55, -1.65])


def test_the_sequence_level_alone_is_gspo_as_published():
    # Three rollouts of 2, 1 and 3 tokens. Geometric means of the ratios: sqrt(1.0006 * 1.0004) = 1.0005 is above
    # 1 + 4e-4; 0.9998 is inside 1 - 3e-4; the cube root of 0.999 is 0.99967, below 0.9997. A = 2, -1, -3.
    old = double([-3.0] * 6)
    ratios = double([1.0006, 1.0004, 0.9998, 0.999, 1.0, 1.0])
    logprobs, samples = (old + ratios.log()).requires_grad_(), torch.tensor([0, 0, 1, 2, 2, 2])
    advantages = double([2.0, -1.0, -3.0])[samples]
    loss, parts = policy_loss(logprobs, old, advantages, samples, ratio_level="sequence")
    # Mean over rollouts, whatever their lengths: (-2 * 1.0004 + 1 * 0.9998 + 3 * 0.9997) / 3.
    assert loss.item() == pytest.approx((-2.0008 + 0.9998 + 2.9991) / 3, abs=1e-9)
    # Only the rollout inside learns: d s / d log p = 0.9998 over its one token.
    gradient = torch.autograd.grad(loss, logprobs)[0].tolist()
    assert gradient == pytest.approx([0, 0, 0.9998 / 3, 0, 0, 0], abs=1e-9)
    assert (parts["clip_low"].item(), parts["clip_high"].item()) == (3, 2)
    # By token no ratio is near 0.2, and each token counts the same: (-2 * 2.001 + 0.9998 + 3 * 2.999) / 6.
    by_token, _ = policy_loss(logprobs, old, advantages, samples)
    assert by_token.item() == pytest.approx((-4.002 + 0.9998 + 8.997) / 6, abs=1e-9)


def test_importance_weights_scale_the_surrogate_and_not_the_kl():
    logprobs, weights = double([-1.0, -1.0], grad=True), double([0.5, 0.0], grad=True)
    loss, parts = policy_loss(
        logprobs,
        double([-1.0, -1.0]),
        double([2.0, 5.0]),
        torch.tensor([0, 1]),
        weights=weights,
        ref_logprobs=double([-1.5, -1.5]),
        kl_coef=0.1,
    )
    # (-0.5 * 2 - 0 * 5) / 2 + 0.1 * (0.106531 + 0.106531) / 2
    assert loss.item() == pytest.approx(-0.5 + 0.0106531, abs=1e-7)
    assert parts["loss"].item() == pytest.approx(-0.5) and parts["kl"].item() == pytest.approx(0.213061, abs=1e-6)
    # d k3 / d log p = 1 - r = 0.393469: -0.5 * 2 / 2 + 0.1 * 0.393469 / 2 and 0.1 * 0.393469 / 2.
    gradient, to_weights = torch.autograd.grad(loss, [logprobs, weights], allow_unused=True)
    assert gradient.tolist() == pytest.approx([-0.5 + 0.01967347, 0.01967347], abs=1e-7)
    assert to_weights is None


def test_kl_is_aggregated_like_the_surrogate():
    arguments = (double([-1.0] * 6), double([-1.0] * 6), double([0.0] * 6), torch.tensor(SAMPLES))
    reference = double([-1.5, -1.0, -1.5, -1.0, -1.0, -1.0])  # k3 0.106531 on both tokens of rollout 0
    for (aggregation, max_length), mean in zip(AGGREGATIONS, (2 / 6, 1 / 3, 2 / 30), strict=True):
        settings = {"aggregation": aggregation, "max_length": max_length, "ref_logprobs": reference, "kl_coef": 2.0}
        assert policy_loss(*arguments, **settings)[0].item() == pytest.approx(2 * mean * 0.106531, abs=1e-6)


def drawn(count=8, seed=0):
    """Rollouts of random length with every kind of ratio: log-probabilities, old, advantages, samples, weights, ref."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.repeat_interleave(torch.arange(count), torch.randint(1, 9, (count,), generator=generator))
    old, noise, advantages, weights, ref = torch.randn(5, len(samples), generator=generator, dtype=torch.float64)
    old = old - 4
    return old + 0.8 * noise, old, advantages, samples, weights.abs(), old + 0.3 * ref


@pytest.mark.parametrize(("aggregation", "max_length"), AGGREGATIONS)
def test_ignored_tokens_do_not_count_whatever_they_hold(aggregation, max_length):
    settings = {"aggregation": aggregation, "max_length": max_length, "kl_coef": 0.1, "ratio_level": "sequence"}
    logprobs, old, advantages, samples, weights, ref = drawn(3)
    plain = logprobs.clone().requires_grad_()
    expected, parts = policy_loss(plain, old, advantages, samples, weights=weights, ref_logprobs=ref, **settings)
    wild = [torch.cat([double([math.nan, math.inf]), x]) for x in (logprobs, old, advantages, weights, ref)]
    wild[0].requires_grad_()
    samples = torch.cat([torch.tensor([-1, -5]), samples])
    loss, wild_parts = policy_loss(*wild[:3], samples, weights=wild[3], ref_logprobs=wild[4], **settings)
    assert loss.item() == pytest.approx(expected.item())
    assert {k: v.item() for k, v in wild_parts.items()} == pytest.approx({k: v.item() for k, v in parts.items()})
    gradient = torch.autograd.grad(loss, wild[0])[0]
    assert gradient[:2].tolist() == [0.0, 0.0]
    torch.testing.assert_close(gradient[2:], torch.autograd.grad(expected, plain)[0])


@pytest.mark.parametrize(("aggregation", "max_length"), AGGREGATIONS)
@pytest.mark.parametrize("tokens", [0, 1])
def test_nothing_counted_gives_zero_with_zero_gradient(aggregation, max_length, tokens):
    logprobs = double([-1.0] * tokens, grad=True)
    rest = [double([1.0] * tokens)] * 2
    loss, parts = policy_loss(
        logprobs,
        *rest,
        torch.full((tokens,), -1),
        aggregation=aggregation,
        max_length=max_length,
        totals=PolicyTotals(rollouts=4, tokens=9),
    )
    loss.backward()
    assert loss.item() == 0 and logprobs.grad.tolist() == [0.0] * tokens
    assert all(value.item() == 0 for value in parts.values())


@pytest.mark.parametrize("as_tensors", [False, True])
@pytest.mark.parametrize("ratio_level", ["token", "sequence"])
@pytest.mark.parametrize(("aggregation", "max_length"), AGGREGATIONS)
@pytest.mark.parametrize("splits", [1, 2, 4])
def test_any_split_into_micro_batches_gives_the_loss_parts_and_gradients_of_the_step(
    splits, aggregation, max_length, ratio_level, as_tensors
):
    logprobs, old, advantages, samples, weights, ref = drawn(8, splits)
    logprobs.requires_grad_()
    settings = {
        "aggregation": aggregation,
        "max_length": max_length,
        "ratio_level": ratio_level,
        "kl_coef": 0.05,
        "dual_clip": 3.0,
    }
    loss, parts = policy_loss(logprobs, old, advantages, samples, weights=weights, ref_logprobs=ref, **settings)
    assert parts["clip_low"] > 0 and parts["clip_high"] > 0
    totals = PolicyTotals(*(torch.tensor(n) if as_tensors else n for n in (8, len(samples))))
    pieces = []
    for rollouts in torch.arange(8).tensor_split(splits):
        mine = torch.isin(samples, rollouts)
        local = samples[mine] - rollouts[0]  # rollouts may be numbered inside the micro-batch
        extras = {"weights": weights[mine], "ref_logprobs": ref[mine], "totals": totals}
        pieces.append(policy_loss(logprobs[mine], old[mine], advantages[mine], local, **extras, **settings))
    total = sum(piece for piece, _ in pieces)
    assert total.item() == pytest.approx(loss.item(), abs=1e-12)
    for name, value in parts.items():
        whole = (max if name == "ratio_max" else sum)(piece[name] for _, piece in pieces)
        assert whole.item() == pytest.approx(value.item(), abs=1e-12), name
    gradients = [torch.autograd.grad(x, logprobs)[0] for x in (total, loss)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dual_clip", [None, 1.5])
@pytest.mark.parametrize(("aggregation", "max_length"), AGGREGATIONS)
def test_gradient_is_that_of_finite_differences(aggregation, max_length, dual_clip):
    logprobs, old, advantages, samples, weights, ref = drawn(5, 3)
    settings = {"aggregation": aggregation, "max_length": max_length, "dual_clip": dual_clip, "kl_coef": 0.3}

    def loss(logprobs):
        return policy_loss(logprobs, old, advantages, samples, weights=weights, ref_logprobs=ref, **settings)[0]

    assert torch.autograd.gradcheck(loss, logprobs.requires_grad_(), atol=1e-7)


@pytest.mark.parametrize(("aggregation", "max_length"), AGGREGATIONS)
def test_with_one_advantage_per_rollout_the_sequence_level_is_gspo(aggregation, max_length):
    logprobs, old, advantages, samples, weights, _ = drawn(8, 3)
    advantages, weights = advantages[samples], weights[samples]
    settings = {"aggregation": aggregation, "max_length": max_length, "clip_low": 0.2, "clip_high": 0.2}
    logprobs.requires_grad_()
    got, _ = policy_loss(logprobs, old, advantages, samples, weights=weights, ratio_level="sequence", **settings)
    expected = gspo(logprobs, old, advantages, samples, weights, **settings)
    assert got.item() == pytest.approx(expected.item())
    torch.testing.assert_close(*(torch.autograd.grad(x, logprobs)[0] for x in (got, expected)))


def gspo(logprobs, old, advantages, samples, weights, aggregation, max_length, clip_low, clip_high):
    """GSPO rollout by rollout, with one advantage and weight each (arXiv 2507.18071, eq. 5 and 7)."""
    total, rollouts = 0.0, samples.unique().tolist()
    for i in rollouts:
        mine = samples == i
        ratio, advantage = (logprobs[mine] - old[mine]).mean().exp(), advantages[mine][0]
        objective = weights[mine][0] * torch.minimum(
            ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
        )
        tokens = mine.sum()
        share = {"token_mean": tokens / len(samples), "seq_mean": 1 / len(rollouts)}
        total = total - objective * share.get(aggregation, tokens / (len(rollouts) * (max_length or 1)))
    return total


@given(st.floats(-3, 3), st.floats(-5, 5), st.floats(0, 0.9), st.floats(0, 2))
def test_the_loss_is_never_below_the_unclipped_one_and_equal_at_ratio_one(log_ratio, advantage, low, high):
    arguments = (double([-2.0]), double([advantage]), torch.tensor([0]))
    loss, _ = policy_loss(double([-2.0 + log_ratio]), *arguments, clip_low=low, clip_high=high)
    assert loss.item() >= -math.exp(log_ratio) * advantage - 1e-9
    at_one, _ = policy_loss(double([-2.0]), *arguments, clip_low=low, clip_high=high)
    assert at_one.item() == -advantage


def test_only_the_policy_receives_a_gradient():
    logprobs, *constants = (x.clone().requires_grad_() for x in drawn()[:3])
    ref = drawn()[5].requires_grad_()
    loss, parts = policy_loss(logprobs, *constants, drawn()[3], ref_logprobs=ref, kl_coef=1.0)
    loss.backward()
    assert logprobs.grad.any() and all(x.grad is None for x in (*constants, ref))
    assert not any(value.requires_grad for value in parts.values())


def test_half_precision_is_summed_in_float32():
    logprobs = torch.full((4096,), -1.0, dtype=torch.bfloat16)
    loss, _ = policy_loss(logprobs, logprobs, torch.full((4096,), 1.001), torch.zeros(4096, dtype=torch.long))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(-1.001, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_low": 1.5}, "clip_low must lie in"),
        ({"clip_high": -0.1}, "clip_high be at least 0"),
        ({"dual_clip": 1.1}, "dual_clip must be greater than 1"),
        ({"aggregation": "mean"}, "aggregation must be 'token_mean', 'seq_mean' or 'dr_grpo', got 'mean'"),
        ({"ratio_level": "group"}, "ratio_level must be 'token' or 'sequence', got 'group'"),
        ({"aggregation": "dr_grpo"}, "'dr_grpo' needs a max_length of at least 1, got None"),
        ({"aggregation": "dr_grpo", "max_length": 0}, "'dr_grpo' needs a max_length of at least 1, got 0"),
        ({"weights": torch.ones(3)}, r"must be \[N\], got \[\[2\], \[2\], \[2\], \[2\], \[3\]\]"),
    ],
)
def test_bad_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        policy_loss(torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.zeros(2, dtype=torch.long), **settings)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip_low": 2.0}, r"model\.loss\.clip_low must lie in \[0, 1\]"),
        ({"clip_high": -0.1}, r"model\.loss\.clip_high be at least 0, got 0\.2 and -0\.1"),
        ({"dual_clip": 1.1}, r"model\.loss\.dual_clip must be greater than 1 \+ clip_high, got 1\.1"),
        ({"aggregation": "mean"}, r"model\.loss\.aggregation must be 'token_mean'"),
        ({"ratio_level": "row"}, r"model\.loss\.ratio_level must be 'token' or 'sequence', got 'row'"),
        ({"kl_coef": -1.0}, r"model\.loss\.kl_coef is -1\.0; give a number from 0 up"),
        ({"kl_coef": math.inf}, r"model\.loss\.kl_coef is inf"),
    ],
)
def test_impossible_settings_are_refused_when_the_loss_is_made(options, words):
    with pytest.raises(ValueError, match=words):
        PolicyLoss(**options)


def test_the_settings_are_those_of_the_function():
    numbers = torch.Generator().manual_seed(0)
    new, old, reference, advantages, weights = torch.rand(5, 6, generator=numbers)
    samples = torch.tensor([0, 0, 1, 1, 1, -1])
    settings = {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 2.0, "aggregation": "dr_grpo", "kl_coef": 0.7}
    given = {"weights": weights, "ref_logprobs": reference, "totals": PolicyTotals(4, 9), "max_length": 5}
    loss, parts = PolicyLoss(**settings, ratio_level="sequence")(new, old, advantages - 0.5, samples, **given)
    want, want_parts = policy_loss(new, old, advantages - 0.5, samples, **settings, ratio_level="sequence", **given)
    assert torch.equal(loss, want) and parts == want_parts
    assert PolicyLoss(ratio_level="sequence").described() == (
        "ratio by sequence, clipped at 1 - 0.0003 and 1 + 0.0004; seq_mean"
    )

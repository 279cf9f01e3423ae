"""Group advantages, their shaping by entropy and the overlong penalty, on numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules.objectives import (
    EntropyBonus,
    entropy_bonus,
    entropy_shaped_advantages,
    group_advantages,
    mean_cot_entropy,
    overlong_penalty,
    shaping_entropy,
    zero_std_groups,
)

# Mean 5/8 = 0.625; deviations 0.375 (five times) and -0.625 (three times); squares 5 * 0.140625 + 3 * 0.390625 = 1.875;
# deviation sqrt(1.875 / 7) = 0.5175492; 0.375 / 0.5175502 = 0.724567 and -0.625 / 0.5175502 = -1.207612.
REWARDS = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0]
ADVANTAGES = [0.724567, -1.207612, -1.207612, 0.724567, 0.724567, 0.724567, -1.207612, 0.724567]
ENTROPY = [0.05, 0.2, 1.0, 2.0, 0.0, 0.5, 2.0, 1.5]
# 0.4 E = 0.02, 0.08, 0.4, 0.8, 0, 0.2, 0.8, 0.6 against caps |A| / 2 of 0.362283 (r = 1) and 0.603806 (r = 0):
# A + 0.02, A + 0.08, A + 0.4, capped, A + 0, A + 0.2, capped, capped.
SHAPED = [0.74457, -1.12761, -0.80761, 1.08685, 0.72457, 0.92457, -0.60381, 1.08685]
# A + 0.4 * min(E, |A| / 2), with lambda outside the minimum: the third is -1.207612 + 0.4 * 0.603806 = -0.966090.
WRONG = [0.74457, -1.12761, -0.96609, 0.86948, 0.72457, 0.86948, -0.96609, 0.86948]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.long, torch.bool])
def test_group_advantages(dtype):
    rewards = torch.tensor([REWARDS, REWARDS[::-1]]).to(dtype)
    advantages = group_advantages(rewards)
    assert advantages.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        advantages.double(), torch.tensor([ADVANTAGES, ADVANTAGES[::-1]]).double(), rtol=0, atol=1e-6
    )


def test_groups_are_judged_apart():
    # Means 2 and 20, deviations sqrt(2) and sqrt(200): (1 - 2) / sqrt(2) = (10 - 20) / sqrt(200) = -1 / sqrt(2).
    advantages = group_advantages(torch.tensor([[1.0, 3.0], [10.0, 30.0]], dtype=torch.float64))
    assert advantages.flatten().tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)] * 2, abs=1e-6)


def test_without_scale_only_the_mean_is_taken_off():
    advantages = group_advantages(torch.tensor([REWARDS]), scale="none")
    assert advantages.tolist() == [[0.375, -0.625, -0.625, 0.375, 0.375, 0.375, -0.625, 0.375]]


@pytest.mark.parametrize("left_out", [0.0, 99.0, math.nan, math.inf])
def test_completions_without_a_reward_are_not_part_of_their_group(left_out):
    # 1, -1, -1 beside one that is left out: mean -1/3, deviations 4/3 and -2/3, squares 16/9 + 4/9 + 4/9 = 8/3,
    # deviation sqrt(8/3 / 2) = 2/sqrt(3): advantages 4/3 * sqrt(3)/2 = 2/sqrt(3) and -1/sqrt(3).
    rewards = torch.tensor([[1.0, left_out, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    valid = torch.tensor([[True, False, True, True], [True] * 4])
    by_std = group_advantages(rewards, valid=valid)
    assert by_std[0].tolist() == pytest.approx([2 / 3**0.5, 0, -(3**-0.5), -(3**-0.5)], abs=1e-5)
    assert torch.equal(by_std[1:], group_advantages(rewards[1:]))
    only_mean = group_advantages(rewards, "none", valid)
    assert only_mean[0].tolist() == pytest.approx([4 / 3, 0, -2 / 3, -2 / 3])


@pytest.mark.parametrize("scale", ["std", "none"])
def test_fewer_than_two_rewards_or_equal_ones_have_no_advantage(scale):
    rewards = torch.tensor([[0.0, 1.0, 2.0], [5.0, 0.0, 0.0], [0.1, 7.0, 0.1]])
    valid = torch.tensor([[False] * 3, [True, False, False], [True, False, True]])
    assert torch.equal(group_advantages(rewards, scale, valid), torch.zeros(3, 3))


def test_groups_are_alike_by_their_valid_rewards():
    rewards = torch.tensor([[7.0, 0.1, 0.1], [0.1, 0.1, 7.0], [0.0, 0.0, 0.1]])
    valid = torch.tensor([[False, True, True]] * 2 + [[False] * 3])
    assert zero_std_groups(rewards, valid).tolist() == [True, False, True]


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, 1e8 + 7, -1e-30])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_group_of_equal_rewards_gets_exactly_zero(scale, reward, size):
    other = torch.arange(size, dtype=torch.float32)  # a group beside it that is not alike
    advantages = group_advantages(torch.stack([torch.full((size,), reward), other]), scale)
    assert torch.equal(advantages[0], torch.zeros(size))
    assert (advantages[1].abs().sum() > 0) == (size > 1)
    assert torch.equal(entropy_shaped_advantages(advantages[0], torch.full((size,), 3.0)), torch.zeros(size))


def test_the_mean_of_equal_rewards_is_not_always_that_reward():
    """The case that the test for equality is there for."""
    rewards = torch.full((1, 7), 0.1)
    by_rounding = [g for g in range(2, 65) if (torch.full((1, g), 0.1) - torch.full((1, g), 0.1).mean()).any()]
    assert by_rounding, "find a reward whose mean is rounded"
    assert not group_advantages(torch.full((1, by_rounding[0]), 0.1)).any() and not group_advantages(rewards).any()


def test_shaping_is_equation_5_and_not_the_one_with_the_scale_outside():
    shaped = entropy_shaped_advantages(group_advantages(torch.tensor([REWARDS])), torch.tensor([ENTROPY]))
    assert shaped[0].tolist() == pytest.approx(SHAPED, abs=1e-5)
    differs = [abs(right - wrong) > 0.05 for right, wrong in zip(SHAPED, WRONG, strict=True)]
    assert differs == [False, False, True, True, False, True, True, True]
    assert [abs(value - wrong) > 0.05 for value, wrong in zip(shaped[0].tolist(), WRONG, strict=True)] == differs


def test_scale_and_divisor_are_where_the_equation_has_them():
    # 1 + min(0.1 * 3, 1 / 4) = 1.25 and -2 + min(0.1 * 3, 2 / 4) = -1.7
    shaped = entropy_shaped_advantages(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 3.0]), 0.1, 4.0)
    assert shaped.tolist() == pytest.approx([1.25, -1.7])


def test_the_bonus_and_its_parts():
    # 0.4 E = 0.2, 0.8, 0.4, 0 against caps of half of |A|, 0.5, 0.5, 0, 0.5: only the second is held back, for the cap
    # of the third says nothing.
    advantages, entropy = torch.tensor([1.0, -1.0, 0.0, 1.0]), torch.tensor([0.5, 2.0, 1.0, -1e-7])
    bonus = entropy_bonus(advantages, entropy)
    assert bonus.bonus.tolist() == pytest.approx([0.2, 0.5, 0, 0])
    assert bonus.raw.tolist() == pytest.approx([0.2, 0.8, 0.4, 0])
    assert bonus.cap.tolist() == [0.5, 0.5, 0, 0.5] and bonus.capped.tolist() == [False, True, False, False]
    # A divisor of 10 has caps of 0.1: the first is held back, too.
    tighter = entropy_bonus(advantages, entropy, clip_divisor=10.0)
    assert tighter.bonus.tolist() == pytest.approx([0.1, 0.1, 0, 0]) and tighter.capped.tolist() == [1, 1, 0, 0]
    none = entropy_bonus(advantages, torch.full((4,), math.nan), entropy_scale=0.0)
    assert not any(part.any() for part in (none.bonus, none.raw, none.capped))


def test_scale_zero_is_plain_grpo_bit_for_bit():
    advantages = torch.tensor([0.1, -0.0, 0.0, -3.7, 1e-45])
    entropy = torch.tensor([1.0, 1.0, math.inf, math.nan, 2.0])
    assert torch.equal(
        entropy_shaped_advantages(advantages, entropy, entropy_scale=0.0).view(torch.int32),
        advantages.view(torch.int32),
    )


def test_no_gradient_flows_through_the_entropy():
    entropy = torch.tensor([0.1, 0.2], requires_grad=True)
    assert not entropy_shaped_advantages(torch.tensor([1.0, -1.0]), entropy).requires_grad
    for level in ("rollout_cot", "token", "token_cot"):
        per_token = shaping_entropy(entropy, torch.tensor([True, True]), torch.tensor([0, 0]), 1, level)
        assert not per_token.requires_grad


numbers = st.floats(-1e3, 1e3, allow_subnormal=False)


@given(
    st.lists(st.tuples(numbers, st.floats(0, 50), st.floats(0, 50)), min_size=1, max_size=8),
    st.floats(0, 10),
    st.floats(1.01, 100),
)
def test_invariants_of_the_shaping(rows, scale, divisor):
    advantages, entropy, more = torch.tensor(rows, dtype=torch.float64).unbind(1)
    shaped = entropy_shaped_advantages(advantages, entropy, scale, divisor)
    assert torch.equal(shaped.sign(), advantages.sign())
    assert (shaped >= advantages).all()
    assert ((shaped - advantages).abs() <= advantages.abs() / divisor * (1 + 1e-12) + 1e-300).all()
    assert (entropy_shaped_advantages(advantages, entropy + more, scale, divisor) >= shaped).all()


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=4, max_size=4), min_size=1, max_size=5))
def test_invariants_of_the_groups(rewards):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    advantages = group_advantages(rewards)
    assert advantages.sum(1).tolist() == pytest.approx([0.0] * len(rewards), abs=1e-9)
    assert torch.equal(advantages.argsort(dim=1, stable=True), rewards.argsort(dim=1, stable=True))
    torch.testing.assert_close(group_advantages(rewards + 5), advantages, rtol=0, atol=1e-9)
    shares = advantages.std(dim=1)  # deviation / (deviation + 1e-6), or 0 in a group that is alike
    assert all(share == 0 or share == pytest.approx(1, abs=1e-5) for share in shares.tolist())


def test_a_tiny_negative_entropy_counts_as_none():
    shaped = entropy_shaped_advantages(torch.tensor([0.0, 1.0]), torch.tensor([-1e-7, -1e-7]))
    assert shaped.tolist() == [0.0, 1.0]


# Rollout 0: CoT entropies 1, 3 (mean 2) and others; rollout 1: no CoT; rollout 2: CoT 5. Interleaved on purpose.
TOKENS = {
    "entropy": torch.tensor([9.0, 1.0, 8.0, 3.0, 5.0, 7.0]),
    "cot": torch.tensor([False, True, False, True, True, False]),
    "samples": torch.tensor([0, 0, 1, 0, 2, 2]),
}


def test_mean_entropy_of_the_chain_of_thought():
    assert mean_cot_entropy(**TOKENS, rollouts=4).tolist() == [2.0, 0.0, 5.0, 0.0]
    nothing = mean_cot_entropy(torch.zeros(0), torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.long), 2)
    assert nothing.tolist() == [0.0, 0.0]


def test_other_tokens_do_not_count_whatever_they_are():
    wild = TOKENS | {"entropy": torch.where(TOKENS["cot"], TOKENS["entropy"], math.nan)}
    assert mean_cot_entropy(**wild, rollouts=3).tolist() == [2.0, 0.0, 5.0]
    assert shaping_entropy(**wild, rollouts=3, level="token_cot").tolist() == [0.0, 1.0, 0.0, 3.0, 5.0, 0.0]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("rollout_cot", [2.0, 2.0, 0.0, 2.0, 5.0, 5.0]),
        ("token", [9.0, 1.0, 8.0, 3.0, 5.0, 7.0]),
        ("token_cot", [0.0, 1.0, 0.0, 3.0, 5.0, 0.0]),
    ],
)
def test_levels_of_the_entropy(level, expected):
    assert shaping_entropy(**TOKENS, rollouts=3, level=level).tolist() == expected


def test_shaping_of_tokens():
    # Advantages 1, -1, 2 of the rollouts; 0.4 E of the tokens 3.6, 0.4, 3.2, 1.2, 2, 2.8 against caps 0.5, 0.5, 1.
    advantages, entropy = torch.tensor([1.0, -1.0, 2.0]), shaping_entropy(**TOKENS, rollouts=3, level="token")
    shaped = entropy_shaped_advantages(advantages[TOKENS["samples"]], entropy)
    assert shaped.tolist() == pytest.approx([1.5, 1.4, -0.5, 1.5, 3.0, 3.0])


def test_half_precision_entropies_are_summed_in_float32():
    entropy = torch.full((4096,), 0.1001, dtype=torch.bfloat16)
    tokens = torch.ones(4096, dtype=torch.bool), torch.zeros(4096, dtype=torch.long), 1
    mean = mean_cot_entropy(entropy, *tokens)
    assert mean.dtype == torch.float32 and mean.item() == pytest.approx(entropy[0].item(), rel=1e-6)
    assert shaping_entropy(entropy, *tokens, "token").dtype == torch.float32


def test_overlong_penalty():
    # Free up to 80 tokens, then -(length - 80) / 20, and so on beyond the limit: -10 / 20, -20 / 20, -30 / 20.
    lengths = torch.tensor([1, 80, 81, 90, 100, 110])
    assert overlong_penalty(lengths, 100, 20).tolist() == pytest.approx([0, 0, -0.05, -0.5, -1, -1.5])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"rewards must be \[P, G\], got \[3\]"):
        group_advantages(torch.zeros(3))
    with pytest.raises(ValueError, match=r"valid must be of the shape of the rewards, \[1, 3\], got \[3\]"):
        group_advantages(torch.zeros(1, 3), valid=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="rewards must be finite"):
        group_advantages(torch.tensor([[0.0, math.nan]]))
    with pytest.raises(ValueError, match="scale must be 'std' or 'none', got 'batch'"):
        group_advantages(torch.zeros(1, 2), "batch")
    for scale, divisor in ((-0.1, 2.0), (math.nan, 2.0), (0.4, 1.0)):
        with pytest.raises(ValueError, match="clip_divisor greater than 1"):
            entropy_shaped_advantages(torch.zeros(2), torch.zeros(2), scale, divisor)
    with pytest.raises(ValueError, match="level must be"):
        shaping_entropy(**TOKENS, rollouts=3, level="cot")
    with pytest.raises(ValueError, match=r"must all be \[N\], got \[\[5\], \[6\], \[6\]\]"):
        mean_cot_entropy(**TOKENS | {"entropy": torch.zeros(5)}, rollouts=3)
    for buffer in (0, 101):
        with pytest.raises(ValueError, match="buffer must lie in"):
            overlong_penalty(torch.ones(2), 100, buffer)


@pytest.mark.parametrize("options", [{"divisor": 1.0}, {"scale": -0.1}, {"scale": math.inf}, {"level": "row"}])
def test_impossible_settings_of_the_bonus_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"model\.entropy_bonus\.{name} .* got .*{value}"):
        EntropyBonus(**options)


def test_the_settings_of_the_bonus_are_those_of_the_function():
    bonus = EntropyBonus(scale=2.0, divisor=4.0)(torch.tensor([1.0, -1.0, 0.0]), torch.tensor([0.1, 2.0, 1.0]))
    assert bonus.bonus.tolist() == pytest.approx([0.2, 0.25, 0])  # 2 * 0.1; |-1| / 4 below 2 * 2; 0 / 4
    assert bonus.capped.tolist() == [False, True, False]

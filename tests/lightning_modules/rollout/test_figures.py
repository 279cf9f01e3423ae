"""Figures by hand, and that sums over ranks give those of one."""

import math

import pytest
import torch

from lightning_modules.rollout.figures import (
    bonus_sums,
    length_sums,
    moments,
    reward_sums,
    rollout_figures,
    update_figures,
)
from lightning_modules.rollout.generation import Completion

STOP = {2}


def completion(length, reason):
    return Completion([5] * (length - 1) + [2 if reason == "stop" else 5], reason)


# Two groups of two: the first has an advantage, the second none.
REWARDS = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
ADVANTAGES = torch.tensor([1.0, -1.0, 0.0, 0.0])
ENTROPY = torch.tensor([0.5, 2.0, 1.0, 0.0])
SHAPED = torch.tensor([1.2, -0.5, 0.0, 0.0])  # A + min(0.4 E, |A| / 2): 1 + 0.2, -1 + 0.5
COMPLETIONS = [completion(4, "stop"), completion(6, "stop"), completion(8, "length"), completion(2, "stop")]
SCORES = {"call": [1.0, 0.0, None, 0.5]}


def part(rows):
    """Sums and peaks of some of the rollouts, as a rank has them."""
    groups = REWARDS[[i // 2 for i in rows[::2]]]
    sums, peaks = length_sums([COMPLETIONS[i] for i in rows], STOP)
    sums |= reward_sums(groups, {"call": [SCORES["call"][i] for i in rows]}) | {"resampled": len(rows) / 4}
    for name, values in (("reward", groups.flatten()), ("advantage", SHAPED[rows])):
        more, more_peaks = moments(name, values)
        sums, peaks = sums | more, peaks | more_peaks
    return sums | bonus_sums(ADVANTAGES[rows], ENTROPY[rows], SHAPED[rows], 0.4, 2.0), peaks


def over_ranks(parts):
    sums = {name: sum(s[name] for s, _ in parts) for name in parts[0][0]}
    return sums, {name: max(p[name] for _, p in parts) for name in parts[0][1]}


@pytest.mark.parametrize("ranks", [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0, 1, 2, 3], []]])
def test_figures_by_hand_on_any_number_of_ranks(ranks):
    figures = rollout_figures(*over_ranks([part(rows) for rows in ranks]))
    expected = {
        "reward/mean": 0.5,
        "reward/std": math.sqrt(0.5 / 4),  # squares of 0.5, -0.5, 0, 0
        "reward/errors": 1,
        "reward/frac_zero_std": 0.5,
        "reward/call/mean": 1.5 / 4,
        "advantage/mean": 0.175,
        "advantage/std": math.sqrt((1.44 + 0.25) / 4 - 0.175**2),
        "advantage/min": -0.5,
        "advantage/max": 1.2,
        "completion/mean_length": 5,
        "completion/min_length": 2,
        "completion/max_length": 8,
        "completion/mean_terminated_length": 4,
        "completion/truncated_frac": 0.25,
        "completion/no_eos_frac": 0.25,
        "sampling/resampled_frac": 0.5,
        "entropy_bonus/cot_entropy": 3.5 / 4,
        "entropy_bonus/mean": 0.7 / 4,
        "entropy_bonus/raw_mean": 0.4 * 3.5 / 4,
        "entropy_bonus/clipped_frac": 0.5,  # of the two with an advantage, the second: 0.8 > 0.5
        "entropy_bonus/share_of_advantage": 0.35,  # 0.7 of |1| + |-1|
    }
    assert figures == pytest.approx(expected)


def test_nothing_divides_by_nothing():
    sums, peaks = length_sums([completion(3, "length")], STOP)
    sums |= reward_sums(torch.zeros(1, 1), {"call": [0.0]}) | {"resampled": 0.0, "penalty": -0.5}
    for name in ("reward", "advantage"):
        more, more_peaks = moments(name, torch.zeros(1))
        sums, peaks = sums | more, peaks | more_peaks
    sums |= bonus_sums(torch.zeros(1), torch.ones(1), torch.zeros(1), 0.4, 2.0)
    figures = rollout_figures(sums, peaks)
    assert "completion/mean_terminated_length" not in figures  # none terminated
    assert figures["entropy_bonus/clipped_frac"] == figures["entropy_bonus/share_of_advantage"] == 0
    assert figures["reward/overlong_penalty"] == -0.5
    assert all(math.isfinite(value) for value in figures.values())
    assert update_figures({"loss": 0.0, "tokens": 0.0, "used": 0.0, "padding": 1.0}, {}, True) == {
        "policy/loss": 0.0,
        "perf/pad_frac": 1.0,
    }


def test_update_by_hand():
    sums = {"loss": 0.5, "tokens": 4.0, "entropy": 2.0, "clip_low": 1.0, "clip_high": 0.0, "clip_dual": 0.0}
    sums |= {"ratio": 4.4, "kl": 0.2, "used": 30.0, "padding": 10.0}
    figures = update_figures(sums, {"ratio_max": 1.3}, has_reference=True)
    assert figures == pytest.approx(
        {
            "policy/loss": 0.5,
            "policy/entropy": 0.5,
            "policy/clip_low": 0.25,
            "policy/clip_high": 0,
            "policy/clip_dual": 0,
        }
        | {"policy/ratio_mean": 1.1, "policy/ratio_max": 1.3, "policy/kl": 0.05, "perf/pad_frac": 0.25}
    )
    assert "policy/kl" not in update_figures(sums, {"ratio_max": 1.3}, has_reference=False)

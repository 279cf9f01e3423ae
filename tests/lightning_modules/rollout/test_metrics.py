"""Metrics by hand, and that sums over ranks give those of one."""

import math

import pytest
import torch

from lightning_modules.objectives import EntropyBonus, entropy_bonus, entropy_shaped_advantages
from lightning_modules.objectives.advantages import BonusParts
from lightning_modules.rollout.buffer import RolloutBuffer
from lightning_modules.rollout.collect import set_advantages
from lightning_modules.rollout.metrics import (
    bonus_sums,
    length_sums,
    moments,
    reward_sums,
    rollout_metrics,
    update_metrics,
)
from lightning_modules.rollout.rollout import Rollout

STOP = {2}


def completion(length, reason):
    ids = [5] * (length - 1) + [2 if reason == "stop" else 5]
    return Rollout(None, "", None, None, 1, length, reason, token_ids=ids)


# Two groups of two: the first has an advantage, the second none, for one of its two has no reward.
REWARDS = torch.tensor([[1.0, 0.0], [9.0, 0.5]])
VALID = torch.tensor([[True, True], [False, True]])
ADVANTAGES = torch.tensor([1.0, -1.0, 0.0, 0.0])
ENTROPY = torch.tensor([0.5, 2.0, 1.0, 0.0])
SHAPED = torch.tensor([1.2, -0.5, 0.0, 0.0])  # A + min(0.4 E, |A| / 2): 1 + 0.2, -1 + 0.5
COMPLETIONS = [completion(4, "stop"), completion(6, "stop"), completion(8, "length"), completion(2, "stop")]
SCORES = {"call": [1.0, 0.0, None, 0.5], "never": [None] * 4}


def part(rows):
    """Sums and peaks of some of the rollouts, as a rank has them."""
    groups, valid = (values[[i // 2 for i in rows[::2]]] for values in (REWARDS, VALID))
    sums, peaks = length_sums([COMPLETIONS[i] for i in rows], STOP)
    sums |= reward_sums(groups, valid, {name: [column[i] for i in rows] for name, column in SCORES.items()})
    sums |= {"resampled": len(rows) / 4, "first/sum": len(rows) / 8, "first/count": len(rows) / 2}
    known = [i for i in rows if VALID.flatten()[i]]
    for name, values in (("reward", groups[valid]), ("advantage", SHAPED[known])):
        more, more_peaks = moments(name, values)
        sums, peaks = sums | more, peaks | more_peaks
    bonus = entropy_bonus(ADVANTAGES[known], ENTROPY[known])
    return sums | moments("entropy", ENTROPY[known])[0] | bonus_sums(ADVANTAGES[known], bonus), peaks


def over_ranks(parts):
    sums = {name: sum(s[name] for s, _ in parts) for name in parts[0][0]}
    return sums, {name: max(p[name] for _, p in parts) for name in parts[0][1]}


@pytest.mark.parametrize("ranks", [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0, 1, 2, 3], []]])
def test_metrics_by_hand_on_any_number_of_ranks(ranks):
    metrics = rollout_metrics(*over_ranks([part(rows) for rows in ranks]))
    expected = {
        "reward/mean": 0.5,  # of three
        "reward/std": math.sqrt(0.5 / 3),  # squares of 0.5, -0.5, 0
        "reward/errors": 5,  # of `call` one, of `never`, which has no mean, four
        "reward/frac_zero_std": 0.5,
        "reward/call/mean": 1.5 / 3,
        "reward/mean_first": 0.25,
        "advantage/mean": 0.7 / 3,
        "advantage/std": math.sqrt((1.44 + 0.25) / 3 - (0.7 / 3) ** 2),
        "advantage/min": -0.5,
        "advantage/max": 1.2,
        "completion/mean_length": 5,
        "completion/min_length": 2,
        "completion/max_length": 8,
        "completion/mean_terminated_length": 4,
        "completion/truncated_frac": 0.25,
        "completion/no_eos_frac": 0.25,
        "sampling/resampled_frac": 0.5,
        "entropy_bonus/cot_entropy": 2.5 / 3,
        "entropy_bonus/mean": 0.7 / 3,
        "entropy_bonus/raw_mean": 0.4 * 2.5 / 3,
        "entropy_bonus/clipped_frac": 0.5,  # of the two with an advantage, the second: 0.8 > 0.5
        "entropy_bonus/share_of_advantage": 0.35,  # 0.7 of |1| + |-1|
    }
    assert metrics == pytest.approx(expected)


def test_a_cap_of_one_s_own_moves_advantages_and_metrics_alike(monkeypatch):
    def halved(advantages, entropy, *_):  # a cap of |A| / 4 where the equation has |A| / 2
        cap = advantages.abs() / 4
        raw = 0.4 * entropy
        bonus = torch.minimum(raw, cap)
        return BonusParts(advantages + bonus, bonus, raw, cap, (advantages != 0) & (raw > cap))

    monkeypatch.setattr("lightning_modules.objectives.advantages.entropy_bonus", halved)
    # 0.4 E = 0.3 and 0.8 against 0.25: both are held back, of the paper's 0.5 only the second.
    advantages, entropy = torch.tensor([1.0, -1.0]), torch.tensor([0.75, 2.0])
    assert entropy_shaped_advantages(advantages, entropy).tolist() == [1.25, -0.75]
    buffer = RolloutBuffer([], [], [[1], [1]], [[True], [True]], [0, 0], [False] * 2, torch.zeros(0))
    rewards = torch.tensor([[2.0, 0.0]])
    sums, _ = set_advantages(buffer, rewards, torch.ones(1, 2, dtype=torch.bool), entropy, "none", EntropyBonus())
    assert buffer.advantages.tolist() == [1.25, -0.75]
    assert (sums["bonus/sum"], sums["bonus/capped"], sums["bonus/alive"]) == (0.5, 2, 2)


@pytest.mark.parametrize("level", ["rollout_cot", "token"])
def test_entropy_of_chains_of_thought_is_of_rollouts_that_have_one(level):
    # tokens: two of a chain (entropies 1 and 2), then two rollouts without any, the last of which has no reward
    masks, entropy = [[True, True, False], [False], [False]], torch.tensor([1.0, 2.0, 9.0, 5.0, 5.0])
    buffer = RolloutBuffer([], [], [[1] * len(mask) for mask in masks], masks, [0] * 3, [False] * 3, torch.zeros(0))
    rewards, valid = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[True, True, False]])
    sums, _ = set_advantages(buffer, rewards, valid, entropy, "none", EntropyBonus(level=level))
    assert (sums["entropy/sum"], sums["entropy/count"]) == (1.5, 1)


def test_a_bonus_by_token_stays_with_its_token_where_there_are_as_many_tokens_as_rollouts():
    # Both tokens are of the second rollout, whose advantage is -1: 0.4 E = 0.2 and 0.8 against caps of 0.5.
    buffer = RolloutBuffer([], [], [[], [1, 2]], [[], [True, True]], [0, 0], [False] * 2, torch.zeros(0))
    bonus, valid = EntropyBonus(level="token"), torch.ones(1, 2, dtype=torch.bool)
    set_advantages(buffer, torch.tensor([[2.0, 0.0]]), valid, torch.tensor([0.5, 2.0]), "none", bonus)
    assert buffer.advantages.tolist() == pytest.approx([-0.8, -0.5])


@pytest.mark.parametrize("failed", [False, True])
def test_nothing_divides_by_nothing(failed):
    sums, peaks = length_sums([completion(3, "length")], STOP)
    sums |= reward_sums(torch.zeros(1, 1), torch.tensor([[not failed]]), {"call": [None if failed else 0.0]})
    sums |= {"resampled": 0.0, "penalty": -0.5, "first/sum": 0.0, "first/count": 0.0 if failed else 1.0}
    none = torch.zeros(0 if failed else 1)
    for name in ("reward", "advantage"):
        more, more_peaks = moments(name, none)
        sums, peaks = sums | more, peaks | more_peaks
    sums |= moments("entropy", none)[0] | bonus_sums(none, entropy_bonus(none, none + 1))
    metrics = rollout_metrics(sums, peaks)
    assert "completion/mean_terminated_length" not in metrics  # none terminated
    if failed:
        assert not {"reward/mean", "reward/mean_first", "reward/call/mean", "entropy_bonus/mean"} & metrics.keys()
        assert metrics["reward/errors"] == metrics["reward/frac_zero_std"] == 1
    else:
        assert metrics["entropy_bonus/clipped_frac"] == metrics["entropy_bonus/share_of_advantage"] == 0
    assert metrics["reward/overlong_penalty"] == -0.5
    assert all(math.isfinite(value) for value in metrics.values())
    assert update_metrics({"loss": 0.0, "tokens": 0.0, "used": 0.0, "padding": 1.0}, {}, True) == {
        "policy/loss": 0.0,
        "perf/pad_frac": 1.0,
    }


def test_a_completion_without_a_token_has_no_end():
    empty = Rollout(None, "", None, None, 1, 0, "stop")  # as a server may give
    sums, peaks = length_sums([completion(4, "stop"), empty], STOP)
    assert (sums["no_eos"], sums["length/sum"], peaks["length/-min"]) == (1, 4, 0)


def test_equal_rewards_have_no_deviation_though_their_mean_is_rounded():
    more, more_peaks = moments("reward", torch.full((3,), 0.1, dtype=torch.float64))
    assert more["reward/square"] / 3 < (more["reward/sum"] / 3) ** 2  # by 2e-18, of which there is no root
    sums, peaks = part([0, 1, 2, 3])
    assert rollout_metrics(sums | more, peaks | more_peaks)["reward/std"] == 0


def test_update_by_hand():
    sums = {"loss": 0.5, "tokens": 4.0, "entropy": 2.0, "clip_low": 1.0, "clip_high": 0.0, "clip_dual": 0.0}
    sums |= {"ratio": 4.4, "kl": 0.2, "used": 30.0, "padding": 10.0}
    metrics = update_metrics(sums, {"ratio_max": 1.3}, has_reference=True)
    assert metrics == pytest.approx(
        {
            "policy/loss": 0.5,
            "policy/entropy": 0.5,
            "policy/clip_low": 0.25,
            "policy/clip_high": 0,
            "policy/clip_dual": 0,
        }
        | {"policy/ratio_mean": 1.1, "policy/ratio_max": 1.3, "policy/kl": 0.05, "perf/pad_frac": 0.25}
    )
    assert "policy/kl" not in update_metrics(sums, {"ratio_max": 1.3}, has_reference=False)

"""TensorBoard metrics of rollouts and updates, computed from sums and maxima reduced over ranks.

A peak is a greatest value; a least value is the peak of the negative. Nothing here is ever NaN: what has no rollout or
token behind it is left out.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_modules.metrics import CallAccuracy
from lightning_modules.objectives import zero_std_groups
from lightning_modules.objectives.advantages import BonusParts
from lightning_modules.rollout.rollout import Rollout

Sums = dict[str, float]
Peaks = dict[str, float]
OF_ALL_REWARDS = ("mean", "mean_first", "std", "errors", "frac_zero_std", "overlong_penalty")
"""Metrics under `reward/` that belong to no single function; no function may have one of these names."""


def reward_sums(rewards: Tensor, valid: Tensor, scores: dict[str, list[float | None]]) -> Sums:
    """Sums over the rewards [P, G] of a rank, and over the scores of each function.

    Args:
        rewards: What the advantages are made of.
        valid: Which rollouts have a reward, [P, G], bool.
        scores: For each function a score per rollout, None where it failed.
    """
    sums = {
        "rollouts": float(rewards.numel()),
        "groups": float(len(rewards)),
        "zero_std": float(zero_std_groups(rewards, valid).sum()),
        "errors": float(sum(score is None for column in scores.values() for score in column)),
    }
    for name, column in scores.items():
        known = [score for score in column if score is not None]
        sums |= {f"score/{name}": float(sum(known)), f"scored/{name}": float(len(known))}
    return sums


def rollout_sums(
    rollouts: Sequence[Rollout],
    rewards: Tensor,
    valid: Tensor,
    functions: Collection[str],
    stop_ids: Collection[int],
    penalized: bool,
) -> tuple[Sums, Peaks]:
    """Sums over the rewards and lengths of a rank's rollouts.

    Args:
        rollouts: P * G of them.
        rewards: What their advantages are made of, [P, G].
        valid: Which of them have a reward, [P, G], bool.
        functions: Names of the reward functions.
        stop_ids: Ids that end a completion.
        penalized: Whether their lengths take something off their rewards.
    """
    sums, peaks = length_sums(rollouts, stop_ids)
    known = [rollout.reward for rollout in rollouts if rollout.rewarded]
    more, more_peaks = moments("reward", torch.tensor(known, dtype=torch.float64))
    sums |= more | reward_sums(rewards, valid, {name: [r.scores[name] for r in rollouts] for name in functions})
    if penalized:
        sums["penalty"] = sum(rollout.penalty for rollout in rollouts)
    return sums, peaks | more_peaks


def moments(name: str, values: Tensor) -> tuple[Sums, Peaks]:
    """Sum, sum of squares and count of some values of a rank, and both extremes."""
    values = values.double()
    high = values.max().item() if len(values) else -torch.inf
    low = values.min().item() if len(values) else torch.inf
    sums = {f"{name}/sum": values.sum().item(), f"{name}/square": values.square().sum().item()}
    return sums | {f"{name}/count": float(len(values))}, {f"{name}/max": high, f"{name}/-min": -low}


def bonus_sums(advantages: Tensor, bonus: BonusParts) -> Sums:
    """Sums over the entropy bonus of a rank: one value per rollout, or per token where it is shaped by token.

    Args:
        advantages: A, [M].
        bonus: What `entropy_bonus` made of them, each [M].
    """
    sums = {
        "bonus/raw": bonus.raw.sum().item(),
        "bonus/capped": float(bonus.capped.sum()),
        "bonus/alive": float((advantages != 0).sum()),
        "bonus/advantage": advantages.abs().sum().item(),
    }
    return sums | moments("bonus", bonus.bonus)[0]


def length_sums(rollouts: Sequence[Rollout], stop_ids: Collection[int]) -> tuple[Sums, Peaks]:
    """Sums over the lengths of a rank's completions, and how they ended."""
    lengths = torch.tensor([len(rollout.token_ids) for rollout in rollouts], dtype=torch.float64)
    cut = torch.tensor([rollout.finish_reason == "length" for rollout in rollouts], dtype=torch.bool)
    no_end = sum(rollout.token_ids[-1:] == [] or rollout.token_ids[-1] not in stop_ids for rollout in rollouts)
    sums, peaks = moments("length", lengths)
    ended = lengths[~cut]
    return sums | {"truncated": float(cut.sum()), "no_eos": float(no_end), "ended": ended.sum().item()}, peaks


def merged(*counted: tuple[Sums, Peaks]) -> tuple[Sums, Peaks]:
    """Pairs of sums and peaks, whose names differ, merged into one pair."""
    sums, peaks = (
        {name: value for part in column for name, value in part.items()} for column in zip(*counted, strict=True)
    )
    return sums, peaks


def rollout_metrics(sums: Sums, peaks: Peaks) -> dict[str, float]:
    """Metrics of one batch of rollouts over all ranks.

    `reward/errors` counts failures, each function's own; `reward/NAME/mean` is over the completions on which that
    function did not fail. `reward/mean`, `reward/std`, `advantage/...` and `entropy_bonus/...` are over those on which
    no function with a weight failed, and `reward/mean_first` is over those of each prompt's first group, whatever was
    sampled after it. `reward/frac_zero_std` is the share of groups without two such completions of unlike rewards. All
    others are over all completions.
    """
    rollouts = sums["rollouts"]
    length = _spread("length", sums, peaks)
    metrics = {"reward/errors": sums["errors"], "reward/frac_zero_std": sums["zero_std"] / sums["groups"]}
    if sums["reward/count"]:
        reward, advantage = (_spread(name, sums, peaks) for name in ("reward", "advantage"))
        metrics |= {"reward/mean": reward["mean"], "reward/std": reward["std"]}
        metrics |= {f"advantage/{name}": value for name, value in advantage.items()}
    if sums["first/count"]:
        metrics["reward/mean_first"] = sums["first/sum"] / sums["first/count"]
    for name in sums:
        if name.startswith("score/") and sums[f"scored/{name.removeprefix('score/')}"]:
            function = name.removeprefix("score/")
            metrics[f"reward/{function}/mean"] = sums[name] / sums[f"scored/{function}"]
    if "penalty" in sums:
        metrics["reward/overlong_penalty"] = sums["penalty"] / rollouts
    metrics |= {f"completion/{name}_length": length[name] for name in ("mean", "min", "max")}
    metrics |= {
        "completion/truncated_frac": sums["truncated"] / rollouts,
        "completion/no_eos_frac": sums["no_eos"] / rollouts,
        "sampling/resampled_frac": sums["resampled"] / sums["groups"],
    }
    if "draws" in peaks:
        metrics |= {"sampling/tries": peaks["draws"], "sampling/filled_frac": 1 - sums["zero_std"] / sums["groups"]}
    if rollouts > sums["truncated"]:
        metrics["completion/mean_terminated_length"] = sums["ended"] / (rollouts - sums["truncated"])
    if sums.get("entropy/count"):
        metrics["entropy_bonus/cot_entropy"] = sums["entropy/sum"] / sums["entropy/count"]
    if sums.get("bonus/count"):
        metrics |= bonus_metrics(sums)
    if sums.get("sampling/tokens"):
        metrics |= sampling_metrics(sums, peaks)
    return metrics


def call_metrics(accuracy: CallAccuracy, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Accuracy of the calls of a batch of rollouts over all ranks; `accuracy` counts them and is reset."""
    for rollout in rollouts:
        accuracy.update(rollout)
    metrics = accuracy.compute()
    accuracy.reset()
    return {f"rollout/{k.removeprefix('tool/')}": v for k, v in metrics.items() if k.startswith("tool/")}


def bonus_metrics(sums: Sums) -> dict[str, float]:
    """Metrics of the entropy bonus: how large it is, and how often the cap holds it back."""
    return {
        "entropy_bonus/mean": sums["bonus/sum"] / sums["bonus/count"],
        "entropy_bonus/raw_mean": sums["bonus/raw"] / sums["bonus/count"],
        "entropy_bonus/clipped_frac": sums["bonus/capped"] / max(1.0, sums["bonus/alive"]),
        "entropy_bonus/share_of_advantage": sums["bonus/sum"] / (sums["bonus/advantage"] or 1.0),
    }


def sampling_metrics(sums: Sums, peaks: Peaks) -> dict[str, float]:
    """Metrics of importance sampling: how far the sampler's probabilities are from the policy's, before any cap."""
    tokens = sums["sampling/tokens"]
    return {
        "sampling/logp_diff_mean": sums["sampling/logprob_gap"] / tokens,
        "sampling/logp_diff_max": peaks["sampling/logprob_gap_max"],
        "sampling/is_ratio_raw_mean": sums["sampling/ratio"] / tokens,
        "sampling/is_ratio_raw_min": -peaks["sampling/-ratio_min"],
        "sampling/is_ratio_raw_max": peaks["sampling/ratio_max"],
        "sampling/masked_frac": sums["sampling/capped"] / tokens,
        "sampling/ess": sums["sampling/ratio"] ** 2 / (tokens * sums["sampling/ratio_squared"]),
    }


def update_metrics(sums: Sums, peaks: Peaks, has_reference: bool) -> dict[str, float]:
    """Metrics of one optimizer step over all ranks; without a token in it there are none but the loss."""
    metrics = {"policy/loss": sums["loss"]}
    tokens = sums["tokens"]
    if tokens:
        metrics |= {f"policy/{name}": sums[name] / tokens for name in ("entropy", "clip_low", "clip_high", "clip_dual")}
        metrics |= {"policy/ratio_mean": sums["ratio"] / tokens, "policy/ratio_max": peaks["ratio_max"]}
        if has_reference:
            metrics["policy/kl"] = sums["kl"] / tokens
    padded = sums["used"] + sums["padding"]
    return metrics | ({"perf/pad_frac": sums["padding"] / padded} if padded else {})


@contextmanager
def timed(clock: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds spent inside to a metric."""
    start = time.perf_counter()
    yield
    clock[name] = clock.get(name, 0.0) + time.perf_counter() - start


def _spread(name: str, sums: Sums, peaks: Peaks) -> dict[str, float]:
    """Mean, standard deviation (n below the root) and extremes of values that `moments` summed."""
    count = sums[f"{name}/count"]
    mean = sums[f"{name}/sum"] / count
    variance = max(0.0, sums[f"{name}/square"] / count - mean * mean)
    return {"mean": mean, "std": variance**0.5, "min": -peaks[f"{name}/-min"], "max": peaks[f"{name}/max"]}

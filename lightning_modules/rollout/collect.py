"""From a batch of prompts to a buffer to learn from: sample, score, compare within groups, shape by entropy."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datamodules.packing import IGNORED, PackedBatch, idle_batch
from datamodules.prompts import PromptBatch
from lightning_modules.objectives import (
    entropy_bonus,
    group_advantages,
    mean_cot_entropy,
    shaping_entropy,
    truncated_importance_weights,
)
from lightning_modules.objectives.advantages import EntropyBonus
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.reference import reference_policy
from lightning_modules.rollout.batching import cot_mask
from lightning_modules.rollout.buffer import RolloutBuffer
from lightning_modules.rollout.dynamic import draw_groups
from lightning_modules.rollout.groups import Group, Sample, all_alike, check_errors, score_groups
from lightning_modules.rollout.metrics import (
    Peaks,
    Sums,
    bonus_sums,
    length_sums,
    moments,
    reward_sums,
    rollout_metrics,
)

if TYPE_CHECKING:
    from lightning_modules.grpo import GRPOModule

IMPORTANCE_PEAKS = ("ratio_max", "logprob_gap_max")


def roll_out(module: "GRPOModule", batch: PromptBatch) -> tuple[RolloutBuffer, list[Sample], dict[str, float]]:
    """Sample a group for each of this rank's prompts, and prepare what the updates learn from.

    Args:
        module: Gives policy, generator, rewards and settings.
        batch: The prompts.

    Returns:
        The buffer, the samples in its order, and the metrics of all ranks.
    """
    clock: dict[str, float] = {}
    with timed(clock, "time/weight_sync"):
        policy = module.generating_policy()
        module.generator.sync(policy)
    sample = partial(sample_groups, module, policy, clock)
    drawn = draw_groups(batch, module.dynamic_sampling, sample, module.global_rank, module.trainer.world_size)
    groups = drawn.groups
    samples = [sample for group in groups for sample in group]
    completions = [sample.completion for sample in samples]
    with timed(clock, "time/reward"):
        cot = [cot_mask(module.tokenizer, s.completion.token_ids, bool(s.rollout.parsed.cot)) for s in samples]
    buffer = RolloutBuffer(
        rows=[example.id for example in batch.examples],
        prompts=[list(prompt) for prompt, group in zip(drawn.prompts, groups, strict=True) for _ in group],
        completions=[list(completion.token_ids) for completion in completions],
        cot=cot,
        groups=[number for number, group in zip(drawn.numbers, groups, strict=True) for _ in group],
        masked=[s.failed or (module.overlong == "mask" and s.completion.finish_reason == "length") for s in samples],
        advantages=torch.zeros(0, dtype=torch.float32),
    )
    entropy = score_tokens(module, buffer, clock)
    sums, peaks = totals_of(module, groups, drawn.sums)
    if module.dynamic_sampling:
        peaks["draws"] = drawn.further
    for more_sums, more_peaks in (
        set_advantages(module, buffer, groups, entropy),
        set_weights(module, buffer, completions),
    ):
        sums, peaks = sums | more_sums, peaks | more_peaks
    sums, peaks = module.over_ranks(sums, peaks)
    buffer.batch_prompts = int(sums["groups"])
    metrics = rollout_metrics(sums, peaks)
    for sample in samples:
        module.sampled.update(sample.rollout)
    judged = module.sampled.compute()
    module.sampled.reset()
    metrics |= {f"rollout/{k.removeprefix('tool/')}": v for k, v in judged.items() if k.startswith("tool/")}
    return buffer, samples, metrics | clock


def sample_groups(
    module: "GRPOModule", policy: ScoredCausalLM, clock: dict[str, float], batch: PromptBatch
) -> tuple[list[Group], Sums]:
    """Sample and score a group for each prompt; anew, up to `max_resample` times, where all rewards are equal.

    Unlike dynamic sampling (`draw_groups`), which draws other prompts, this draws from the same ones once more, so that
    a batch of prompts stays one. The random numbers of a group derive from the number of the optimizer step, the row's
    id and the attempt.

    A group that is alike teaches nothing, so what changes is how often each prompt teaches something; the differences
    shrink. In groups of two, of a prompt whose completions are right with p = 0.1 and of one with p = 0.5, rewards
    differ in 2 p (1 - p) = 18 % and 50 % of the cases, and within two attempts in 1 - 0.82^2 = 33 % and 1 - 0.5^2 =
    75 %: the hard prompt's share of the groups that teach grows from 26 % to 30 %. `reward/mean`, of the last attempt,
    is drawn towards that of such groups: it is 0.18 * 0.5 + 0.82 * 0.1 = 0.17 for the hard prompt, and 0.83 for one
    with p = 0.9. `reward/mean_first`, of the first attempt, is the policy's: 0.1 and 0.9.

    Returns:
        A group for each prompt; how many groups were sampled anew, each attempt counted, and the sum and number of the
        rewards of the first attempt.
    """
    groups: list[Group] = [[] for _ in batch.examples]
    wanted, resampled = list(range(len(groups))), 0
    ranks, tried = module.trainer.world_size, []
    most = (len(groups) + (ranks > 1)) * ranks * module.group_size  # that all ranks sample at once: they differ by one
    for attempt in range(1 + module.max_resample):
        examples, prompts = ([column[i] for i in wanted] for column in (batch.examples, batch.prompt_ids))
        again = f"/{attempt}" if attempt else ""
        names = [f"{module.global_step}/{example.id}{again}" for example in examples]
        with timed(clock, "time/generate"):
            completions = module.generator(
                policy,
                prompts,
                names,
                n=module.group_size,
                stop_ids=module.stop_ids,
                temperature=module.temperature,
                top_p=module.top_p,
            )
        with timed(clock, "time/reward"):
            scored = score_groups(
                completions,
                lambda i, completion: module.score(examples[i], prompts[i], completion),  # noqa: B023  (called at once)
                module.rewards,
                module.penalty if module.overlong == "penalty" else None,
                of=most * (attempt + 1),
            )
        tried += scored
        with timed(clock, "time/wait"):
            check_errors(tried, module.rewards.max_error_share)
        for i, group in zip(wanted, scored, strict=True):
            groups[i] = group
        wanted = [i for i in wanted if all_alike(groups[i])]
        # Generation is a collective where the policy is sharded: all ranks take part in an attempt, or none.
        if attempt == module.max_resample or not module.trainer.strategy.reduce_boolean_decision(
            bool(wanted), all=False
        ):
            break
        resampled += len(wanted)
    return groups, first_sums(tried[: len(groups)]) | {"resampled": float(resampled)}


def totals_of(module: "GRPOModule", groups: list[Group], counted: Sums) -> tuple[Sums, Peaks]:
    """What is summed over rewards and lengths."""
    samples = [sample for group in groups for sample in group]
    scores = {name: [sample.scores[name] for sample in samples] for name in module.rewards.weights}
    sums, peaks = length_sums([sample.completion for sample in samples], module.stop_ids)
    known = [sample.reward for sample in samples if not sample.failed]
    rewards, reward_peaks = moments("reward", torch.tensor(known, dtype=torch.float64))
    sums |= rewards | reward_sums(*matrix(module, groups), scores) | counted
    if module.overlong == "penalty":
        sums["penalty"] = sum(sample.penalty for sample in samples)
    return sums, peaks | reward_peaks


def first_sums(groups: list[Group]) -> Sums:
    """Sum and number of the rewards of the groups that were sampled first."""
    rewards = [sample.reward for group in groups for sample in group if not sample.failed]
    return {"first/sum": float(sum(rewards)), "first/count": float(len(rewards))}


def matrix(module: "GRPOModule", groups: list[Group]) -> tuple[Tensor, Tensor]:
    """Rewards of the groups, penalties included, float64, and which completions have one, bool; both [P, G]."""
    samples = [sample for group in groups for sample in group]
    totals = torch.tensor([0.0 if s.failed else s.total for s in samples], dtype=torch.float64)
    valid = torch.tensor([not s.failed for s in samples], dtype=torch.bool)
    return totals.view(-1, module.group_size), valid.view(-1, module.group_size)


def score_tokens(module: "GRPOModule", buffer: RolloutBuffer, clock: dict[str, float]) -> Tensor | None:
    """Fill in the old and the reference's log-probabilities; entropies [N] come from the same pass as the old ones.

    That pass is left out where nothing depends on it: the one update of a batch of rollouts is made of the policy that
    sampled them, so that its own log-probabilities are the old ones, and no bonus asks for entropy.
    """
    micros = buffer.pack(module.micro_batch_tokens, packed=module.packed)
    with timed(clock, "time/wait"):  # for the rank that sampled longest
        rounds = int(module.over_ranks({}, {"micros": len(micros)})[1]["micros"])
    entropy = None
    corrected = module.generator.reports_logprobs and module.importance_cap is not None
    if module.entropy_scale > 0 or module.repeats > 1 or corrected:
        with timed(clock, "time/old_logprob"):
            buffer.old_logprobs, entropy = score(module.policy, micros, rounds, module.device, module.temperature, True)
    if module.kl_coef > 0:
        with timed(clock, "time/ref_logprob"), reference_policy(module.policy, module.reference) as reference:
            buffer.ref_logprobs, _ = score(reference, micros, rounds, module.device, module.temperature, False)
    return entropy


@torch.no_grad()
def score(
    model: ScoredCausalLM,
    micros: Sequence[PackedBatch],
    rounds: int,
    device: torch.device,
    temperature: float,
    entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities, and entropies if asked for, of all completion tokens, at the sampling temperature.

    Every rank runs as many rounds as the rank with most micro-batches, because forwards are collectives where the model
    is sharded.

    Args:
        model: The policy, or the reference.
        micros: All rollouts, as `pack_rollouts` packs them.
        rounds: Forwards; at least as many as there are micro-batches.
        device: Where the model computes.
        temperature: Divides the logits.
        entropy: Whether to return entropies as well.

    Returns:
        Both [N], float32 at least, on the CPU; None for entropies not asked for.
    """
    places, logprobs, entropies = [], [], []
    training = model.training
    model.eval()  # without dropout, as when the tokens were sampled
    for i in range(rounds):
        micro = {name: x.to(device) for name, x in micros[i].items()} if i < len(micros) else idle_batch(device)
        scored = model(micro["input_ids"], micro["position_ids"], micro["targets"], temperature, entropy)
        if i < len(micros):
            places.append(micro["tokens"][micro["targets"] != IGNORED].cpu())
            logprobs.append(scored.logprobs.cpu())
            entropies.append(scored.entropy.cpu() if entropy else scored.logprobs.cpu())
    model.train(training)
    order = torch.cat([*places, torch.zeros(0, dtype=torch.long)]).argsort()
    nothing = torch.zeros(0, dtype=torch.float32)
    values = [torch.cat(column)[order] if column else nothing for column in (logprobs, entropies)]
    return values[0], values[1] if entropy else None


def set_advantages(
    module: "GRPOModule", buffer: RolloutBuffer, groups: list[Group], entropy: Tensor | None
) -> tuple[Sums, Peaks]:
    """Give each token its advantage, with the entropy bonus, and sum up what is logged of it."""
    samples = buffer.samples
    cot = torch.tensor([inside for mask in buffer.cot for inside in mask], dtype=torch.bool)
    rollouts = len(buffer.completions)
    rewards, valid = matrix(module, groups)
    plain = group_advantages(rewards, module.advantage_scale, valid).flatten()  # [R]
    known = valid.flatten()
    sums: Sums = {}
    if entropy is None:
        shaped = plain
    else:
        by_rollout = module.entropy_level == "rollout_cot"
        level = entropy
        if by_rollout:
            level = mean_cot_entropy(entropy, cot, samples, rollouts)  # [R]
        else:
            plain, level = plain[samples], shaping_entropy(entropy, cot, samples, rollouts, module.entropy_level)
            known = known[samples]
        bonus = entropy_bonus(plain, level, module.entropy_scale, module.clip_divisor)
        shaped = plain + bonus.bonus
        sums = bonus_sums(plain[known], level[known], EntropyBonus(*(part[known] for part in bonus)))
    more, peaks = moments("advantage", shaped[known])
    buffer.advantages = shaped[samples] if len(shaped) == rollouts else shaped
    return sums | more, peaks


def set_weights(module: "GRPOModule", buffer: RolloutBuffer, completions: list) -> tuple[Sums, Peaks]:
    """Give each token its importance weight where the generator reports log-probabilities, and sum up the ratios."""
    if not module.generator.reports_logprobs or module.importance_cap is None:
        return {}, {}
    logprobs = [logprob for completion in completions for logprob in completion.logprobs]
    reported = torch.tensor(logprobs, dtype=torch.float64)
    buffer.weights, parts = truncated_importance_weights(
        buffer.old_logprobs, reported, module.importance_cap, module.importance_above
    )
    values = {f"sampling/{name}": value.item() for name, value in parts.items()}
    lowest = {"sampling/-ratio_min": -values.pop("sampling/ratio_min")}
    peaks = {f"sampling/{name}": values.pop(f"sampling/{name}") for name in IMPORTANCE_PEAKS}
    return values, peaks | lowest


@contextmanager
def timed(clock: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds spent inside to a metric."""
    start = time.perf_counter()
    yield
    clock[name] = clock.get(name, 0.0) + time.perf_counter() - start

"""From groups of rollouts to the rollout buffer: log-probabilities, advantages with the bonus, importance weights."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules.loading import PromptBatch
from datamodules.packing import IGNORED, PackedBatch, idle_batch
from lightning_modules.objectives import (
    EntropyBonus,
    ImportanceSampling,
    group_advantages,
    mean_cot_entropy,
    shaping_entropy,
)
from lightning_modules.objectives.advantages import BonusParts
from lightning_modules.policy.dropout import evaluating
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.ranks import over_ranks
from lightning_modules.rollout.batching import cot_mask
from lightning_modules.rollout.buffer import RolloutBuffer
from lightning_modules.rollout.dynamic import Drawn
from lightning_modules.rollout.groups import Overlong
from lightning_modules.rollout.metrics import Peaks, Sums, bonus_sums, moments, timed
from lightning_modules.rollout.rollout import Rollout

IMPORTANCE_PEAKS = ("ratio_max", "logprob_gap_max")


def make_buffer(
    batch: PromptBatch, drawn: Drawn, tokenizer: PreTrainedTokenizerBase, overlong: Overlong
) -> RolloutBuffer:
    """A rollout buffer with tokens and masks, still without log-probabilities and advantages.

    Args:
        batch: The prompts that they were sampled for.
        drawn: The groups to learn from.
        tokenizer: Of the model that generated them.
        overlong: Says which of those that were cut are left out.
    """
    rollouts = drawn.rollouts
    return RolloutBuffer(
        rows=[example.id for example in batch.examples],
        prompts=[list(prompt) for prompt, group in zip(drawn.prompts, drawn.groups, strict=True) for _ in group],
        completions=[list(rollout.token_ids) for rollout in rollouts],
        cot=[cot_mask(tokenizer, rollout.token_ids, bool(rollout.parsed.cot)) for rollout in rollouts],
        groups=[number for number, group in zip(drawn.numbers, drawn.groups, strict=True) for _ in group],
        masked=[not rollout.rewarded or overlong.masks(rollout) for rollout in rollouts],
        advantages=torch.zeros(0, dtype=torch.float32),
    )


@torch.no_grad()
def score_tokens(
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
    nothing = torch.zeros(0, dtype=torch.float32)
    places, logprobs, entropies = [nothing.long()], [nothing], [nothing]
    with evaluating(model):  # without dropout, as when the tokens were sampled
        for i in range(rounds):
            micro = {name: x.to(device) for name, x in micros[i].items()} if i < len(micros) else idle_batch(device)
            scored = model(micro["input_ids"], micro["position_ids"], micro["targets"], temperature, entropy)
            if i < len(micros):
                places.append(micro["tokens"][micro["targets"] != IGNORED].cpu())
                logprobs.append(scored.logprobs.cpu())
                if entropy:
                    entropies.append(scored.entropy.cpu())
    order = torch.cat(places).argsort()
    return torch.cat(logprobs)[order], torch.cat(entropies)[order] if entropy else None


def set_advantages(
    buffer: RolloutBuffer,
    rewards: Tensor,
    valid: Tensor,
    entropy: Tensor | None,
    scale: Literal["std", "none"],
    bonus: EntropyBonus,
) -> tuple[Sums, Peaks]:
    """Set the advantage of each token, entropy bonus included, and return sums and peaks for its metrics.

    Args:
        buffer: The rollouts, R of them with N tokens.
        rewards: Their rewards by group, [P, G].
        valid: Which rollouts have a reward, [P, G], bool.
        entropy: Of each token, [N]; None where no bonus asks for it.
        scale: See `group_advantages`.
        bonus: The entropy bonus.
    """
    doc_ids, rollouts = buffer.doc_ids, len(buffer.completions)
    by_token = entropy is not None and bonus.level != "rollout_cot"
    plain, known = group_advantages(rewards, scale, valid).flatten(), valid.flatten()  # [R]
    shaped, sums = plain, Sums()
    if entropy is not None:
        level = mean_cot_entropy(entropy, buffer.in_cot, doc_ids, rollouts)  # [R]
        thinking = torch.tensor([any(mask) for mask in buffer.cot], dtype=torch.bool)  # others count 0 for the bonus
        sums = moments("entropy", level[known & thinking])[0]
        if by_token:
            plain, known = plain[doc_ids], known[doc_ids]  # [N]
            level = shaping_entropy(entropy, buffer.in_cot, doc_ids, rollouts, bonus.level)
        parts = bonus(plain, level)
        shaped = parts.shaped
        sums |= bonus_sums(plain[known], BonusParts(*(part[known] for part in parts)))
    more, peaks = moments("advantage", shaped[known])
    buffer.advantages = shaped if by_token else shaped[doc_ids]
    return sums | more, peaks


def set_weights(
    buffer: RolloutBuffer, rollouts: Sequence[Rollout], importance: ImportanceSampling
) -> tuple[Sums, Peaks]:
    """Set importance weights from the generator's log-probabilities, and return sums and peaks for their metrics."""
    reported = torch.tensor([logprob for rollout in rollouts for logprob in rollout.logprobs], dtype=torch.float64)
    buffer.weights, parts = importance(buffer.old_logprobs, reported)
    values = {f"sampling/{name}": value.item() for name, value in parts.items()}
    lowest = {"sampling/-ratio_min": -values.pop("sampling/ratio_min")}
    peaks = {f"sampling/{name}": values.pop(f"sampling/{name}") for name in IMPORTANCE_PEAKS}
    return values, peaks | lowest


def fill_logprobs(
    buffer: RolloutBuffer,
    micros: Sequence[PackedBatch],
    policy: ScoredCausalLM | None,
    reference: AbstractContextManager[ScoredCausalLM] | None,
    device: torch.device,
    temperature: float,
    clock: dict[str, float],
) -> Tensor | None:
    """Set log-probabilities of old policy and reference, and return entropies [N] of the old one; a collective.

    Args:
        buffer: The rollouts.
        micros: All of them, packed.
        policy: The one that sampled. None leaves out its pass, where nothing depends on it: no bonus asks for entropy,
            and in a single update per batch the policy's own log-probabilities are the old ones.
        reference: Gives the reference, if there is one.
        device: Where they compute.
        temperature: Divides the logits.
        clock: Seconds are added to it.
    """
    with timed(clock, "time/wait"):  # for the rank that sampled longest
        rounds = int(over_ranks({}, {"micros": len(micros)}, device)[1]["micros"])
    entropy = None
    if policy is not None:
        with timed(clock, "time/old_logprob"):
            buffer.old_logprobs, entropy = score_tokens(policy, micros, rounds, device, temperature, entropy=True)
    if reference is not None:
        with timed(clock, "time/ref_logprob"), reference as model:
            buffer.ref_logprobs, _ = score_tokens(model, micros, rounds, device, temperature, entropy=False)
    return entropy

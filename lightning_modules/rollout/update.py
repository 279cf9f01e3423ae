"""One optimizer step on the rollout buffer: which rollouts need it, their micro-batches, their losses and sums."""

import torch
from torch import Tensor

from datamodules.packing import IGNORED, PackedBatch
from lightning_modules.objectives import PolicyLoss, PolicyTotals
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.rollout.buffer import RolloutBuffer, at
from lightning_modules.rollout.metrics import Peaks, Sums


def moving(buffer: RolloutBuffer, chosen: list[int], loss: PolicyLoss) -> tuple[list[int], list[int]]:
    """Rollouts that move the policy, and those that do not: their advantages are 0, and there is no KL.

    The loss of a user may have a gradient all the same: with it all rollouts count as moving the policy.
    """
    if loss.kl_coef > 0 or type(loss) is not PolicyLoss:
        return chosen, []
    sizes = buffer.per_rollout(buffer.advantages.abs())
    return [i for i in chosen if sizes[i] != 0], [i for i in chosen if sizes[i] == 0]


def micro_batches_of(
    buffer: RolloutBuffer,
    chosen: list[int],
    loss: PolicyLoss,
    device: torch.device,
    micro_batch_tokens: int,
    packed: bool,
    shared: bool,
) -> tuple[list[PackedBatch], list[PackedBatch]]:
    """Micro-batches of the rollouts of an optimizer step that move the policy, and of those that do not (`moving`).

    Args:
        buffer: The rollouts.
        chosen: Those of this step.
        loss: The policy loss.
        device: Where the policy is.
        micro_batch_tokens: See `pack_rollouts`, for this and the next two.
        packed: Whether rollouts share a row.
        shared: Whether those of a prompt share it in a row.
    """

    def packed_on_device(rollouts: list[int]) -> list[PackedBatch]:
        micros = buffer.pack(micro_batch_tokens, rollouts, packed, shared)
        return [{name: tensor.to(device) for name, tensor in micro.items()} for micro in micros]

    moved, still = moving(buffer, chosen, loss)
    return packed_on_device(moved), packed_on_device(still)


def step_sizes(buffer: RolloutBuffer, chosen: list[int]) -> Sums:
    """Rollouts of this rank in an optimizer step, their tokens, and those with their prompts, which are read."""
    tokens = sum(len(buffer.completions[i]) for i in chosen)
    read = tokens + sum(len(buffer.prompts[i]) for i in chosen)  # a shared prompt counts for each of them
    return {"rollouts": len(chosen), "tokens": tokens, "read": read}


def micro_loss(
    policy: ScoredCausalLM,
    micro: PackedBatch,
    buffer: RolloutBuffer,
    loss: PolicyLoss,
    totals: PolicyTotals,
    temperature: float,
    max_length: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one micro-batch, divided by the counts of the whole step, and sums for the metrics.

    Args:
        policy: The model that learns.
        micro: Some of the buffer's rollouts, as `pack_rollouts` packs them, where the policy is.
        buffer: Advantages, log-probabilities and weights of all tokens.
        loss: The policy loss.
        totals: The denominators.
        temperature: Divides the logits.
        max_length: Most tokens of a completion.
    """
    targets = micro["targets"] != IGNORED
    doc_ids, tokens = micro["doc_ids"][targets], micro["tokens"][targets]  # [N]
    scored = policy(micro["input_ids"], micro["position_ids"], micro["targets"], temperature, entropy=True)
    value, parts = loss(
        scored.logprobs,
        scored.logprobs.detach() if buffer.old_logprobs is None else at(buffer.old_logprobs, tokens),
        at(buffer.advantages, tokens),
        doc_ids,
        weights=None if buffer.weights is None else at(buffer.weights, tokens),
        ref_logprobs=None if buffer.ref_logprobs is None else at(buffer.ref_logprobs, tokens),
        totals=totals,
        max_length=max_length,
    )
    return value, parts | {
        "entropy": torch.where(doc_ids >= 0, scored.entropy.detach(), 0).sum(),
        "used": (micro["doc_ids"] >= 0).sum(),
        "padding": (micro["doc_ids"] < 0).sum(),
    }


def summed(parts: list[dict[str, Tensor]]) -> tuple[Sums, Peaks]:
    """The sums for the metrics of all micro-batches of this rank, and the peak among their ratios."""
    sums = {name: float(sum(part[name] for part in parts)) for name in parts[0] if name != "ratio_max"}
    return sums, {"ratio_max": max(float(part["ratio_max"]) for part in parts)}

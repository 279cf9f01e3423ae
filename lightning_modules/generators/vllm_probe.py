"""The ids that a policy and an engine with its weights score, to see whether they are the same model."""

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from lightning_modules.policy.dropout import evaluating
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.probe import rounding
from lightning_modules.policy.unshard import computing_device

PROBE_TOKENS = 64


def probe_ids(policy: ScoredCausalLM) -> list[int]:
    """Ids from all over the vocabulary, but not padding: of its zeros a norm makes much of any rounding."""
    config = policy.causal_lm.config
    ids = torch.linspace(0, config.vocab_size - 1, PROBE_TOKENS, dtype=torch.float32).long().tolist()
    return [token for token in ids if token != config.pad_token_id]


def probe_scores(policy: ScoredCausalLM) -> Tensor:
    """The policy's log-probability of each id of the probe but the first, float32, on the CPU."""
    device = computing_device(policy)
    plain = torch.autocast(device.type, enabled=False)  # the engine computes in the dtype of its weights
    # FSDP2 keeps what it gathers: not as tensors of inference.
    with evaluating(policy), plain, torch.inference_mode(False), torch.no_grad():
        ids = torch.tensor([probe_ids(policy)], device=device)
        scored = policy(ids[:, :-1], torch.arange(ids.shape[1] - 1, device=device)[None], ids[:, 1:])
    if isinstance(policy, FSDPModule):
        policy.reshard()  # what the forward pass leaves whole: embedding and head
    return scored.logprobs.float().cpu()


def distance(some: Tensor, others: Tensor) -> float:
    """Mean absolute difference of two scores of the probe, in nats."""
    return (some - others).abs().mean().item()


def check_scores(
    engine: str,
    want: Tensor,
    got: Tensor,
    before: tuple[Tensor, Tensor] | None,
    dtype: torch.dtype,
    tolerance: float | None,
) -> None:
    """Raise where an engine does not score the ids of the probe as the policy does, or has not moved with it.

    Args:
        engine: What the engine is called in the sentence.
        want: Scores by the policy, [T].
        got: Scores by the engine, [T].
        before: Both after the last sync, None if there was none.
        dtype: Of the engine's weights.
        tolerance: Greatest mean difference in nats. When None: 0.005 for an engine in float32; for others 0.25 or,
            where that is more, what rounding may do by the spread of the policy's scores.

    Raises:
        RuntimeError: Saying by how much.
    """
    gap = distance(want, got)
    tolerance = tolerance or (5e-3 if dtype == torch.float32 else max(0.25, rounding(want, dtype)))
    if not gap <= tolerance:  # nor is not-a-number
        raise RuntimeError(
            f"After a weight sync the log-probabilities of {engine} are {gap:.2g} nats from the policy's on "
            f"average, more than probe_tolerance {tolerance:g}: it does not hold the policy's weights, "
            "or its dtype is too coarse for them."
        )
    if before is not None:
        asked, answered = before
        moved = distance(want, asked)
        if moved > distance(asked, answered) and torch.equal(got, answered):
            raise RuntimeError(
                f"A weight sync changed nothing: the policy's log-probabilities have moved by {moved:.2g} nats on "
                f"average since the one before, and those of {engine} have not moved at all."
            )

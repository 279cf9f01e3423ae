"""Scores of documents by a policy that is evaluated: log-probabilities of their supervised tokens."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from datamodules.packing import IGNORED, Encoded, PackedBatch, collate_packed, idle_batch, micro_batches
from lightning_modules.policy.model import ScoredCausalLM, ScoredTokens
from lightning_modules.policy.unshard import is_sharded
from lightning_modules.ranks import of_every_rank

SCORED_TOKENS = 8192  # of a forward pass, padding included


def score_documents(
    policy: ScoredCausalLM, documents: Sequence[Encoded], packed: bool, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Score the supervised tokens of documents; no random number is drawn. A collective where the policy is sharded.

    Args:
        policy: The model.
        documents: This rank's; other ranks may have more, or none.
        packed: Whether they may share a row.
        device: Where the policy computes.

    Yields:
        Of the N supervised tokens of a micro-batch: log-probabilities [N], segments [N], numbers of documents [N].
    """
    lengths = [len(document.input_ids) for document in documents]
    longest = max(lengths, default=0)
    batches = micro_batches(lengths, longest, max(SCORED_TOKENS, longest), packed)
    # Forward passes of shards are collectives: a rank with fewer batches takes part in those of the others.
    most = max(of_every_rank(len(batches))) if is_sharded(policy) else len(batches)
    for rows in batches:
        micro = {name: tensor.to(device) for name, tensor in collate_packed(documents, rows).items()}
        scored = _score(policy, micro)
        supervised = micro["targets"] != IGNORED
        yield scored.logprobs, micro["segments"][supervised], micro["doc_ids"][supervised]
    for _ in range(most - len(batches)):
        _score(policy, idle_batch(device))


def _score(policy: ScoredCausalLM, micro: PackedBatch) -> ScoredTokens:
    with torch.inference_mode(False), torch.no_grad():  # FSDP2 keeps what it gathers: not as tensors of inference
        return policy(micro["input_ids"], micro["position_ids"], micro["targets"])

"""The ids that a policy and an engine with its weights score, to see whether they are the same model."""

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from lightning_modules.policy.model import ScoredCausalLM
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
    modes = [(module, module.training) for module in policy.modules()]
    policy.eval()
    # The engine computes in the dtype of its weights. FSDP2 keeps what it gathers: not as tensors of inference.
    with torch.autocast(device.type, enabled=False), torch.inference_mode(False), torch.no_grad():
        ids = torch.tensor([probe_ids(policy)], device=device)
        scored = policy(ids[:, :-1], torch.arange(ids.shape[1] - 1, device=device)[None], ids[:, 1:])
    for module, training in modes:
        module.training = training
    if isinstance(policy, FSDPModule):
        policy.reshard()  # what the forward pass leaves whole: embedding and head
    return scored.logprobs.float().cpu()


def distance(some: Tensor, others: Tensor) -> float:
    """Mean absolute difference of two scores of the probe, in nats."""
    return (some - others).abs().mean().item()

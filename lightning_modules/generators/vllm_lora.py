"""A policy's adapters in a vLLM engine that applies them itself: what it cannot take, is started with and is given."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_modules.generators.vllm_probe import probe_scores
from lightning_modules.generators.weight_folder import write_adapters, write_weights
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import ScoredCausalLM

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM keeps room for; an adapter of a lower one is padded with zeros."""
NONE = (
    "model.generator: enable_lora has vLLM apply the policy's adapters, and it has none: set model.lora, or "
    "enable_lora to false."
)
MERGED = (
    "model.generator merges what model.lora learns into weights in {}, where a change of less than half their step is "
    "lost: at first the engine samples almost from the model without adapters. Better "
)
"""Of adapters in weights that are too coarse for what they learn at first; what to do follows."""


def check_lora(lora: LoRA | None, dtype: torch.dtype, device: torch.device) -> None:
    """Raise where an engine cannot apply the adapters of a run, before any weight is loaded.

    Args:
        lora: Settings of the adapters; None where there are none.
        dtype: Of the engine's weights.
        device: Of the rank that starts it.

    Raises:
        ValueError: Saying why not, and what to set.
    """
    if lora is None:
        raise ValueError(NONE)
    max_lora_rank(lora.r)
    if device.type == "cuda" and dtype == torch.float32:
        raise ValueError(
            "model.generator: enable_lora needs an engine in bfloat16 or float16, for which alone vLLM has kernels of "
            "adapters on GPUs: set the generator's dtype or trainer.precision bf16-mixed, or enable_lora to false."
        )


def max_lora_rank(r: int) -> int:
    """The least rank that vLLM keeps room for and that holds an adapter of rank `r`; ValueError if there is none."""
    if r > RANKS[-1]:
        raise ValueError(
            f"model.generator: enable_lora takes adapters up to rank {RANKS[-1]}, and model.lora.r is {r}: lower r or "
            "set enable_lora to false."
        )
    return min(rank for rank in RANKS if rank >= r)


def lora_options(policy: ScoredCausalLM) -> dict[str, Any]:
    """Options of `vllm.LLM` for the adapters of a policy: it wraps their layers alone, and fails where it cannot."""
    layers = {name.partition(".lora_")[0] for name, _ in policy.causal_lm.named_parameters() if ".lora_" in name}
    return {
        "enable_lora": True,
        "max_lora_rank": max_lora_rank(policy.model.active_peft_config.r),
        "lora_target_modules": sorted({layer.rpartition(".")[2] for layer in layers}),
    }


def base_scores(policy: ScoredCausalLM) -> Tensor:
    """Scores of the probe by a policy without its adapters; ValueError if it has none. See `probe_scores`."""
    if not policy.has_adapters:
        raise ValueError(NONE)
    with policy.model.disable_adapter():
        return probe_scores(policy)


def write_apart(
    policy: ScoredCausalLM, folder: str, dtype: torch.dtype, weights: bool = True, write: bool = True
) -> str:
    """Write adapters into a folder beside the weights, which are not merged with them.

    Args:
        policy: The model; where it is sharded, every rank has to take part.
        folder: An empty folder for the weights.
        dtype: Of all that is written.
        weights: Whether to write the weights, too.
        write: Whether this rank writes; the others only help to gather.

    Returns:
        The folder of the adapters.

    Raises:
        OSError: See `write_weights` and `write_adapters`.
        ValueError: See `write_weights`.
    """
    if weights:
        with policy.model.disable_adapter():
            write_weights(policy, folder, dtype, write)
    adapters = Path(folder, "adapters")
    write_adapters(policy, adapters, dtype, write)
    return str(adapters)

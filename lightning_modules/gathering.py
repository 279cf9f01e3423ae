"""Weights that strategies keep in shards, whole again: to export them, to sync a rollout engine, to generate."""

from collections.abc import Iterator

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from lightning_modules.models import ScoredCausalLM


def is_sharded(policy: ScoredCausalLM) -> bool:
    """Whether every rank holds a shard only, so that forward passes and gathering are collectives."""
    return isinstance(policy, FullyShardedDataParallel) or any(isinstance(p, DTensor) for p in policy.parameters())


@torch.no_grad()
def merged_weights(policy: ScoredCausalLM) -> Iterator[tuple[str, Tensor]]:
    """The weights of the Hugging Face model, whole and with adapters added in; the policy is left as it is.

    They come one at a time, so that where they are sharded no more than one is gathered; every rank has to take all of
    them then. (FSDP1 gathers all of them at once.)

    Args:
        policy: The model, sharded or not, with or without LoRA layers.

    Yields:
        Name in the model without adapters, and tensor in the dtype of the policy's; those that carry no adapter are
        shared with it.
    """
    state = named_state(policy)
    modules = {name.replace(FSDP1_PREFIX, ""): module for name, module in policy.causal_lm.named_modules()}
    names = {id(module): name for name, module in modules.items()}
    embedding, head = policy.causal_lm.get_input_embeddings(), policy.causal_lm.get_output_embeddings()
    tied = f"{names[id(head)]}.weight" if embedding.weight is head.weight else None
    for name, shard in state.items():
        layer, _, leaf = name.replace(".base_layer.", ".").rpartition(".")
        if ".lora_" in name or f"{layer}.{leaf}" == tied:
            continue
        weight, module = whole(shard), modules[layer]
        if isinstance(module, LoraLayer) and leaf == "weight":
            adapter = module.active_adapters[0]
            wide = torch.promote_types(weight.dtype, torch.float32)
            down, up = (whole(state[f"{layer}.lora_{half}.{adapter}.weight"]).to(wide) for half in "AB")
            weight = weight + (module.scaling[adapter] * (up @ down)).to(weight.dtype)  # [out, r] @ [r, in]
        yield f"{layer}.{leaf}", weight
        if tied and module is embedding:
            yield tied, weight


FSDP1_PREFIX = "_fsdp_wrapped_module."


def named_state(policy: ScoredCausalLM) -> dict[str, Tensor]:
    """Weights of the Hugging Face model, adapters included, by name in it: sharded as they are, FSDP1's whole."""
    if isinstance(policy, FullyShardedDataParallel):
        state = get_model_state_dict(policy, options=StateDictOptions(full_state_dict=True))
    else:
        state = policy.state_dict()  # of the root: FSDP2 puts back into shards what a forward pass has left whole
    names = (name.replace(FSDP1_PREFIX, "") for name, module in policy.named_modules() if module is policy.causal_lm)
    root = f"{next(names)}."
    return {name.removeprefix(root): weight for name, weight in state.items()}


def whole(weight: Tensor) -> Tensor:
    """A weight as a plain tensor; a collective where it is sharded."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def whole_copy(
    policy: ScoredCausalLM, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> ScoredCausalLM:
    """A model of its own with the merged weights of a sharded policy, to generate with; a collective.

    Args:
        policy: The sharded policy.
        dtype: Of the copy's weights; the policy's when None.
        device: Of the copy; that of the policy's shards when None, which wait on the CPU where they are offloaded.

    Returns:
        The copy, in eval mode.
    """
    model, device = policy.causal_lm, device or next(policy.parameters()).device
    with no_init_weights(), torch.device(device):
        copy = AutoModelForCausalLM.from_config(model.config, dtype=dtype or next(policy.parameters()).dtype)
    places = copy.state_dict(keep_vars=True)
    for name, weight in merged_weights(policy):
        with torch.no_grad():
            places[name].copy_(weight)
    copy.tie_weights()
    copy.generation_config = model.generation_config
    return ScoredCausalLM(copy.requires_grad_(False), policy.chunk_tokens).eval()

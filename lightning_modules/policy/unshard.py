"""Unshard the weights of a policy under FSDP: to export them, to sync a rollout engine, to generate."""

from collections.abc import Iterator
from copy import deepcopy

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from lightning_modules.policy.model import ScoredCausalLM

FSDP1_PREFIX = "_fsdp_wrapped_module."  # of names inside what FSDP1 wraps


def is_sharded(policy: ScoredCausalLM) -> bool:
    """Whether FSDP shards the policy, so that forward passes and unsharding are collectives."""
    return isinstance(policy, FullyShardedDataParallel) or any(isinstance(p, DTensor) for p in policy.parameters())


def computing_device(policy: ScoredCausalLM) -> torch.device:
    """Where a policy computes; shards that are offloaded wait on the CPU."""
    if isinstance(policy, FullyShardedDataParallel):
        return policy.compute_device
    first = next(policy.parameters())
    if isinstance(first, DTensor) and first.device_mesh.device_type == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return first.device


def merged_weights(policy: ScoredCausalLM) -> Iterator[tuple[str, Tensor]]:
    """The unsharded weights of the Hugging Face model with adapters merged, unless peft has them disabled.

    The policy is left as it is. They come one at a time, so that where they are sharded no more than one is gathered,
    if the caller lets go of it; every rank has to take all of them then.

    Args:
        policy: The model, sharded or not, with or without LoRA layers.

    Yields:
        Name in the model without adapters, and tensor in the dtype of the policy's, to which a sum with an adapter is
        rounded (from bfloat16 weights, most of a small one is then lost); those that carry no adapter are shared.
    """
    state = named_state(policy)
    modules = _modules(policy)
    for name, targets in _targets(policy, state).items():
        layer = targets[0].rpartition(".")[0]
        with torch.no_grad():  # as a decorator it would hold a weight while the next one is gathered
            weight = unshard(state[name])
            if name.endswith(".base_layer.weight") and not modules[layer].disable_adapters:  # of one with an adapter
                weight = _merged(weight, modules[layer], layer, state)
        for target in targets:
            yield target, weight
        del weight  # before the next one is gathered


def merged_on_meta(policy: ScoredCausalLM) -> dict[str, Tensor]:
    """What `merged_weights` yields, in its order, on the meta device; nothing is gathered."""
    state, found = named_state(policy), {}
    for name, targets in _targets(policy, state).items():
        empty = torch.empty(state[name].shape, dtype=state[name].dtype, device="meta")
        found |= dict.fromkeys(targets, empty)
    return found


def tied_head(policy: ScoredCausalLM) -> str | None:
    """Name of the head's weight where it is the embedding's, too."""
    embedding, head = policy.causal_lm.get_input_embeddings(), policy.causal_lm.get_output_embeddings()
    names = (name for name, module in _modules(policy).items() if module is head)
    return f"{next(names)}.weight" if embedding.weight is head.weight else None


def _modules(policy: ScoredCausalLM) -> dict[str, nn.Module]:
    return {name.replace(FSDP1_PREFIX, ""): module for name, module in policy.causal_lm.named_modules()}


def _targets(policy: ScoredCausalLM, state: dict[str, Tensor]) -> dict[str, list[str]]:
    """Names without adapters of each weight of a state but the adapters': a tied embedding is the head, too."""
    embedding, tied = policy.causal_lm.get_input_embeddings(), tied_head(policy)
    table = next(f"{name}.weight" for name, module in _modules(policy).items() if module is embedding)
    plain = {name: name.replace(".base_layer.", ".") for name in state if ".lora_" not in name}
    return {
        name: [target, tied] if tied and target == table else [target]
        for name, target in plain.items()
        if target != tied
    }


def _merged(weight: Tensor, module: nn.Module, layer: str, state: dict[str, Tensor]) -> Tensor:
    """The weight of a linear layer plus what its adapter adds; a collective where they are sharded."""
    adapter, wide = module.active_adapters[0], torch.promote_types(weight.dtype, torch.float32)
    down, up = (unshard(state[f"{layer}.lora_{half}.{adapter}.weight"]).to(wide) for half in "AB")
    added = module.scaling[adapter] * (up @ down)  # [out, r] @ [r, in]; GPT-2's matrices are [in, out]
    return (weight.to(wide) + (added.T if module.fan_in_fan_out else added)).to(weight.dtype)


def named_state(policy: ScoredCausalLM) -> dict[str, Tensor]:
    """State dict of the Hugging Face model, adapters included, by its names: sharded as it is."""
    if isinstance(policy, FullyShardedDataParallel):
        state = get_model_state_dict(policy)  # copies of the shards; a collective
    else:
        state = policy.state_dict()  # of the root: FSDP2 puts back into shards what a forward pass has left whole
    names = (name.replace(FSDP1_PREFIX, "") for name, module in policy.named_modules() if module is policy.causal_lm)
    root = f"{next(names)}."
    return {name.removeprefix(root): weight for name, weight in state.items()}


def unshard(weight: Tensor) -> Tensor:
    """A weight as a plain tensor; a collective where it is sharded."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def unsharded_copy(policy: ScoredCausalLM, dtype: torch.dtype | None, device: torch.device) -> ScoredCausalLM:
    """An unsharded copy of a sharded policy, to generate with; a collective.

    Adapters stay apart and in the dtype that they learn in: added into bfloat16 weights, most of what they have learnt
    would be rounded away, and another policy evaluated than the one that is trained.

    Args:
        policy: The sharded policy.
        dtype: Of the copy's weights, without adapters and buffers; the policy's when None.
        device: Of the copy; shards that are offloaded wait on the CPU.

    Returns:
        The copy, in eval mode.
    """
    model, first = policy.causal_lm, next(policy.parameters())
    with init_empty_weights(include_buffers=False):
        empty = AutoModelForCausalLM.from_config(deepcopy(model.config), dtype=dtype or first.dtype)
        if policy.has_adapters:
            from peft import get_peft_model

            empty = get_peft_model(empty, deepcopy(policy.model.active_peft_config))
    copy = ScoredCausalLM(empty)
    copy.causal_lm.tie_weights()  # what was shared was emptied apart
    parameters, buffers = (dict(named()) for named in (copy.causal_lm.named_parameters, copy.causal_lm.named_buffers))
    weights = {}
    for name, shard in named_state(policy).items():
        if name in parameters or name in buffers:  # what modules share has one name
            weight = unshard(shard)
            own = dtype is None or name in buffers or ".lora_" in name
            weights[name] = weight.to(device, weight.dtype if own else dtype, copy=True)
    copy.causal_lm.load_state_dict(weights, strict=False, assign=True)
    copy.causal_lm.tie_weights()
    copy.causal_lm.generation_config = model.generation_config
    return copy.to(device).requires_grad_(False).eval()

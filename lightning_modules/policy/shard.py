"""Before a policy is sharded: what is gathered at a time, memory for weights to come, the dtypes that they have."""

import torch
from torch import nn

from lightning_modules.policy.model import ScoredCausalLM


def blocks_of(policy: ScoredCausalLM, names: list[str] | None) -> list[nn.Module]:
    """The modules that FSDP shards and gathers one at a time: layers, or the classes named.

    Args:
        policy: The model.
        names: Class names; when None those of the model's layers, of which transformers may name some that it lacks.

    Raises:
        ValueError: If the model has no module of one of these classes.
    """
    model = policy.causal_lm
    wanted = names if names is not None else list(model._no_split_modules or [])
    found = [module for module in model.modules() if type(module).__name__ in wanted]
    unknown = set(names or []) - {type(module).__name__ for module in found}
    if unknown or not found:
        layers = sorted({type(m).__name__ for m in model.modules() if type(m).__name__.endswith("Layer")})
        raise ValueError(
            f"trainer.strategy: wrap names {', '.join(sorted(unknown)) or 'nothing'}, and "
            f"{type(model).__name__} has no such modules; its layers are {', '.join(layers)}."
        )
    return found


def allocate(module: nn.Module, device: torch.device) -> None:
    """Give parameters on the meta device memory, without values; or take it from all, if that is the device.

    A parameter that modules share stays one.
    """
    made: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.is_meta or device.type == "meta":
                memory = torch.empty_like(parameter, device=device)
                made.setdefault(parameter, nn.Parameter(memory, requires_grad=parameter.requires_grad))
                setattr(part, name, made[parameter])


def dtypes_of(policy: ScoredCausalLM) -> dict[str, torch.dtype]:
    """The dtypes that weights and buffers have in training; parameters may still be as they lie in files."""
    dtype = policy.causal_lm.config.dtype
    state = policy.state_dict(keep_vars=True).items()
    return {n: torch.promote_types(w.dtype, dtype) if isinstance(w, nn.Parameter) else w.dtype for n, w in state}


def set_dtypes(module: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    """Cast weights and buffers to the dtypes of another rank: some that loading keeps in float32 are not made so."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.dtype != dtypes[name]:
            tensor.data = tensor.data.to(dtypes[name])

"""Whether a run fits into the memory of its GPUs, by the estimate, and the settings with which it would."""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import combinations
from typing import Any

import torch
from lightning.pytorch import Trainer

from datamodules.prompts import XLAMPromptDataModule
from datamodules.sft import XLAMSFTDataModule
from lightning_modules.base import FunctionCallingModule
from lightning_modules.callbacks.memory import Plan, estimate, has_room, room
from lightning_modules.callbacks.plan import (
    build_empty,
    cheaper,
    engine_bytes,
    longest_prompt,
    offloads,
    plan_of,
    shards_of,
    shown,
    size_of,
    streamed,
    whole,
)
from lightning_modules.evaluation import EvaluationModule
from lightning_modules.generators import Generator, HFGenerator, VLLMGenerator
from lightning_modules.generators.base import HoldsWeights
from lightning_modules.grpo import GRPOModule
from lightning_modules.policy.model import build_policy
from lightning_modules.ranks import failing_together
from lightning_modules.strategies import FSDP1, FSDP2

PRESUMED = ("policy", "packed", "why_not_packed", "shares_prefixes", "sizes_of_weights")
"""What `build_empty` sets."""
NAMED = 3
"""Ways to fit that a refusal names."""
UTILIZATION = 0.3
"""`gpu_memory_utilization` of `VLLMGenerator` unless set."""


def check_fits(
    trainer: Trainer, module: FunctionCallingModule, planned: Callable[[Trainer, FunctionCallingModule], Plan | None]
) -> None:
    """Refuse a run that cannot fit into the memory of its GPUs; a collective. On CPUs nothing is refused.

    Args:
        trainer: The run's; its attribute `fit_anyway` lets everything pass.
        module: The run's.
        planned: Gives the `Plan`: `plan_of` with the model at hand, `plan_ahead` before it is loaded.

    Raises:
        ValueError: Naming what is needed, what there is, and settings with which it would fit; also if a rollout
            engine is to have less than it starts with.
    """
    available = gpu_memory(module.device)
    if available is None or getattr(trainer, "fit_anyway", False):
        return
    with failing_together():
        if (plan := planned(trainer, module)) and not has_room(plan, available):
            raise ValueError(refusal(plan, available, changes(trainer, module, plan, available)))
        if plan and isinstance(module.generator, VLLMGenerator):
            check_share(plan, module.generator, available)


def check_share(plan: Plan, generator: VLLMGenerator, available: int) -> None:
    """Refuse a share of the GPU that is too small for an engine, as vLLM would once it has loaded the weights.

    Args:
        plan: What the run does.
        generator: The engine's settings.
        available: Bytes of a GPU.

    Raises:
        ValueError: Naming what is needed, and the settings.
    """
    utilization = generator.options["gpu_memory_utilization"]
    share, given = int(utilization * available), generator.options["kv_cache_memory_bytes"] is not None
    if plan.engine > share and not given:
        raise ValueError(
            f"The vLLM engine is estimated to need {shown(plan.engine)} of each GPU for weights and keys and values "
            f"of its longest row, and gpu_memory_utilization {utilization:g} gives it {shown(share)}: set "
            f"model.generator.gpu_memory_utilization to {math.ceil(100 * plan.engine / available) / 100:g} or more, or "
            f"tensor_parallel_size above {generator.tensor_parallel_size}; --fit_anyway starts the run all the same."
        )


def check_evaluation(trainer: Trainer, module: EvaluationModule) -> None:
    """Refuse an evaluation whose GPUs cannot hold a whole copy of a sharded model, or an engine in its share of them.

    A collective. On CPUs nothing is refused.

    Args:
        trainer: The run's; its attribute `fit_anyway` lets everything pass.
        module: The run's, its weights not loaded yet.

    Raises:
        ValueError: Naming what is needed, what there is, and what would need less.
    """
    available, strategy, generator = gpu_memory(module.device), trainer.strategy, module.generator
    streams = isinstance(strategy, FSDP2) and isinstance(generator, HoldsWeights)  # gathers a weight at a time
    copies = isinstance(strategy, FSDP1 | FSDP2) and not streams
    if available is None or getattr(trainer, "fit_anyway", False):
        return
    if copies or isinstance(generator, VLLMGenerator):
        with failing_together():
            plan = plan_of_evaluation(trainer, module, copies, available)
            if copies:
                check_copy(plan, generator, available)
            if isinstance(generator, VLLMGenerator):
                check_share(plan, generator, available)


def plan_of_evaluation(trainer: Trainer, module: EvaluationModule, copies: bool, available: int) -> Plan:
    """The `Plan` of a run in which nothing is learnt, its weights not loaded yet.

    Args:
        trainer: The run's.
        module: The run's.
        copies: Whether each GPU makes a whole copy of the weights.
        available: Bytes of a GPU.
    """
    strategy, generator = trainer.strategy, module.generator
    model, fsdp = build_policy(module.init_from, empty=True).causal_lm, isinstance(strategy, FSDP1 | FSDP2)
    plan = Plan(
        config=model.config.get_text_config(),
        trained=0,
        frozen=sum(weight.numel() for weight in model.parameters()),
        precision=str(trainer.precision),
        rows=0,
        length=0,
        checkpointing=False,
        fsdp=fsdp,
        shards=shards_of(trainer),
        offload=fsdp and offloads(strategy),
        cuda=module.device.type == "cuda",
    )
    engine = 0
    if isinstance(generator, VLLMGenerator):
        prompt = getattr(trainer.datamodule, "longest_prompt", 0)  # of data that say so; else a completion alone counts
        share = int(generator.options["gpu_memory_utilization"] * available)
        engine = engine_bytes(plan, generator, prompt, generator.tensor_parallel_size, share)
    return replace(plan, copy=whole(plan) if copies else 0, engine=engine)


def check_copy(plan: Plan, generator: Generator, available: int) -> None:
    """Refuse an evaluation for which each GPU would need a whole copy of a sharded model, and cannot hold it.

    Args:
        plan: What the run does.
        generator: The run's.
        available: Bytes of a GPU.

    Raises:
        ValueError: Naming what is needed, what there is, and what would need less.
    """
    memory = estimate(plan)
    moments = (sum(memory.moments[name].values()) for name in ("unsharding the weights", "sampling rollouts"))
    needed = sum(memory.always.values()) + max(moments)
    if needed <= room(plan, available):
        return
    whose, advice = "", "Set model.generator to VLLMGenerator with a tensor_parallel_size under FSDP2"
    if isinstance(generator, HoldsWeights):
        whose = ", under FSDP1 for an engine"
        advice = "Take FSDP2 (--config configs/trainer/fsdp2.yaml), which gives it one weight after the other"
    raise ValueError(
        f"To generate with a sharded model each GPU makes a whole copy of it{whose}: that is estimated to need "
        f"{shown(needed)} of each, and there are {size_of(plan, available)}. {advice}, or leave the sharding out "
        "(--config configs/trainer/ddp.yaml with --trainer.precision bf16-true: "
        f"{shown(2 * plan.frozen + plan.engine)}); --fit_anyway starts it all the same."
    )


def gpu_memory(device: torch.device) -> int | None:
    """Bytes of a GPU's memory; None of another device."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def plan_ahead(trainer: Trainer, module: FunctionCallingModule) -> Plan | None:
    """The `Plan` of a run whose weights are not loaded yet; the module is left as it was."""
    data = trainer.datamodule
    if not isinstance(module, FunctionCallingModule) or not isinstance(data, XLAMPromptDataModule | XLAMSFTDataModule):
        return None
    if module.policy is not None:
        return plan_of(trainer, module)
    before = {name: getattr(module, name) for name in PRESUMED}
    build_empty(module)
    try:
        return plan_of(trainer, module)
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def refusal(plan: Plan, available: int, changes: dict[str, Plan]) -> str:
    """The sentence with which a run that does not fit is refused.

    Args:
        plan: What it does.
        available: Bytes of the device.
        changes: Other plans by the settings that make them.
    """
    memory, found = estimate(plan), ways(plan, available, changes)
    fits = ", or ".join(f"{' and '.join(names)} ({shown(peak)})" for names, peak in found)
    advice = f"it would fit with {fits}" if found else f"not even all of {', '.join(changes)} together make it fit"
    return (
        f"This run is estimated to need {shown(memory.peak)} of each GPU, most at {memory.moment} ({plan.counted}), "
        f"and there are {size_of(plan, available)}: {advice}; --fit_anyway starts it all the same, and "
        "`funreason show` prints the estimate part by part."
    )


def ways(plan: Plan, available: int, changes: dict[str, Plan]) -> list[tuple[tuple[str, ...], int]]:
    """The fewest changes that make a plan fit together, and the bytes that it takes then.

    Args:
        plan: What does not fit.
        available: Bytes of the device.
        changes: Plans of a single change each, those that change the recipe least first.

    Returns:
        At most `NAMED` ways, in the order of the changes; all of as many changes, none where no number of them helps.
    """
    differ = {
        name: {f.name: value for f in fields(Plan) if (value := getattr(other, f.name)) != getattr(plan, f.name)}
        for name, other in changes.items()
    }
    for count in range(1, len(changes) + 1):
        found = []
        for names in combinations(differ, count):
            together: dict[str, Any] = {}
            for name in names:
                together |= differ[name]
            if has_room(other := replace(plan, **together), available):
                found.append((names, estimate(other).peak))
        if found:
            return found[:NAMED]
    return []


def with_engine(plan: Plan, available: int) -> Plan:
    """The plan of a sharded run with an engine over several of its GPUs, which is given the weights layer by layer."""
    return replace(plan, copy=streamed(plan), cache=0, engine=int(UTILIZATION * available))


def over_more_gpus(trainer: Trainer, generator: VLLMGenerator, plan: Plan, available: int) -> dict[str, Plan]:
    """The plan with the engine over more GPUs of a node, as many as its share of them is enough on, by the setting."""
    share = int(generator.options["gpu_memory_utilization"] * available)
    prompt = longest_prompt(trainer.datamodule)
    for gpus in (2, 4, 8):
        engine = engine_bytes(plan, generator, prompt, gpus, share)
        enough = engine <= share or generator.options["kv_cache_memory_bytes"] is not None
        if enough and engine < plan.engine and trainer.num_devices % gpus == 0:
            return {f"model.generator.tensor_parallel_size {gpus}": replace(plan, engine=engine)}
    return {}


def changes(trainer: Trainer, module: FunctionCallingModule, plan: Plan, available: int) -> dict[str, Plan]:
    """Plans that need less memory, by the settings that make each: those of `cheaper`, and further ones for GPUs.

    Args:
        trainer: The run's.
        module: The run's.
        plan: What does not fit.
        available: Bytes of a GPU.
    """
    found = cheaper(trainer, module, plan, available)
    if isinstance(trainer.strategy, FSDP2) and not plan.offload:
        found["trainer.strategy.init_args.cpu_offload true"] = replace(plan, offload=True)
    if isinstance(trainer.strategy, FSDP2) and plan.copy and isinstance(module.generator, HFGenerator):
        shared = with_engine(plan, available)
        sizes = [n for n in (1, 2, 4, 8) if trainer.num_devices % n == 0]  # neighbours on one node
        ranks = next((n for n in sizes if whole(plan) // n <= shared.engine // 2), sizes[-1])
        if whole(plan) // ranks < shared.engine:
            found[f"model.generator VLLMGenerator with tensor_parallel_size {ranks}"] = shared
    if isinstance(module.generator, VLLMGenerator):
        found |= over_more_gpus(trainer, module.generator, plan, available)
    if not isinstance(module, GRPOModule):
        half = plan.length // 2
        found[f"data.max_length and data.micro_batch_tokens {half}"] = replace(plan, rows=1, length=half)
    return found

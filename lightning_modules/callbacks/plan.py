"""The memory that a run is going to need, from its settings: the plan of its steps, and what would need less."""

import os
from dataclasses import replace

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from datamodules.prompts import XLAMPromptDataModule
from datamodules.sft import XLAMSFTDataModule
from lightning_modules.base import FunctionCallingModule
from lightning_modules.callbacks.memory import Plan, adapters, derived, estimate
from lightning_modules.generators import VLLMGenerator
from lightning_modules.grpo import GRPOModule
from lightning_modules.policy.gradient_checkpointing import settings_of
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.reference import PREFIX
from lightning_modules.policy.unshard import FSDP1_PREFIX
from lightning_modules.strategies import FSDP1, FSDP2


def plan_of(trainer: Trainer, module: FunctionCallingModule) -> Plan | None:
    """The `Plan` of this run's steps for the estimate of memory; None for data that are not cut by a token budget."""
    data, strategy, ranks = trainer.datamodule, trainer.strategy, trainer.world_size
    if isinstance(module, GRPOModule) and isinstance(data, XLAMPromptDataModule):
        budget, longest = module.micro_batch_tokens, module.generator.max_new_tokens
        documents = -(-data.hparams.prompts_per_step * module.sampling.group_size // ranks)
    elif isinstance(data, XLAMSFTDataModule):
        budget, longest, documents = data.hparams.micro_batch_tokens, 0, -(-data.hparams.batch_size // ranks)
    else:
        return None
    longest += int(data.lengths[data.train_indices].max())
    # Rollouts are packed in rows as long as the longest of them, or in a single row that they share prompts in;
    # documents in rows of `max_length`.
    if module.shares_prefixes and isinstance(module, GRPOModule):
        length = max(longest, min(budget, documents * longest))
    else:
        alone = isinstance(module, GRPOModule) or not module.packed
        length = longest if alone else min(data.hparams.max_length, documents * longest)
    trained, frozen = parameter_counts(module)
    config, precision = module.policy.causal_lm.config.get_text_config(), str(trainer.precision)
    fsdp = isinstance(strategy, FSDP1 | FSDP2)
    engine, sleeps = rollout_engine(trainer, module, trained + frozen)
    recomputed = settings_of(module.gradient_checkpointing)
    return Plan(
        config=config,
        trained=trained,
        frozen=frozen,
        precision=precision,
        rows=max(1, min(budget, documents * longest) // length),
        length=length,
        checkpointing=recomputed is not None,
        every_n_layers=recomputed.every_n_layers if recomputed else 1,
        offload_activations=recomputed is not None and recomputed.offload,
        fsdp=fsdp,
        shards=shards_of(trainer),
        unsharded=fsdp and strategy.accumulate_unsharded,
        offload=fsdp and bool(getattr(strategy.cpu_offload, "offload_params", strategy.cpu_offload)),
        buckets=isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("gradient_as_bucket_view"),
        reference=getattr(module, "reference", None) is not None,
        attention=config._attn_implementation,
        cuda=module.device.type == "cuda",
        engine=engine,
        sleeps=sleeps,
    )


def parameter_counts(module: FunctionCallingModule) -> tuple[int, int]:
    """Numbers of trained and of frozen parameters, over all shards and without a frozen reference."""
    counts = {True: 0, False: 0}
    for name, weight in module.named_parameters():
        if not name.startswith(PREFIX):
            inside = name.replace(FSDP1_PREFIX, "").removeprefix("policy.")
            size = module.sizes_of_weights.get(inside, weight.shape)  # FSDP1 shows shards
            counts[weight.requires_grad] += size.numel()
    return counts[True], counts[False]


def shards_of(trainer: Trainer) -> int:
    """Ranks that share one copy of the weights."""
    strategy = trainer.strategy
    if isinstance(strategy, FSDP2):
        return strategy.shard_size or trainer.world_size
    if isinstance(strategy, FSDP1):
        return strategy.num_processes if "HYBRID" in strategy.sharding_strategy.name else trainer.world_size
    return 1


def rollout_engine(trainer: Trainer, module: FunctionCallingModule, parameters: int) -> tuple[int, bool]:
    """Bytes that generating takes besides the policy, and whether they are free while it learns."""
    generator = module.generator
    if isinstance(generator, VLLMGenerator):
        share = generator.options["gpu_memory_utilization"]
        return int(share * device_memory(trainer, module.device)), generator.sleep and module.device.type == "cuda"
    half = 2 if "16" in str(trainer.precision) else 4
    return parameters * half if isinstance(trainer.strategy, FSDP1 | FSDP2) else 0, True


def device_memory(trainer: Trainer, device: torch.device) -> int:
    """Bytes of the GPU's memory, or of this process's share of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // trainer.num_devices


def cheaper(trainer: Trainer, module: FunctionCallingModule, plan: Plan) -> dict[str, Plan]:
    """Plans that need less memory, by the setting that makes each."""
    found = {}
    if not plan.checkpointing:
        found["model.gradient_checkpointing true"] = replace(plan, checkpointing=True)
    elif plan.every_n_layers > 1:
        found["model.gradient_checkpointing true"] = replace(plan, every_n_layers=1)
    # What learns has to be float32 (`check_precision`).
    if plan.widths[0] > 2 and module.lora is not None and not isinstance(trainer.strategy, FSDP1):
        found["trainer.precision bf16-true"] = replace(plan, precision="bf16-true")
    key = "model" if isinstance(module, GRPOModule) else "data"
    least = max(plan.length, 0 if key == "model" else trainer.datamodule.hparams.max_length)  # it takes no less
    if plan.rows > least // plan.length:
        found[f"{key}.micro_batch_tokens {least}"] = replace(plan, rows=least // plan.length)
    if module.lora is None:
        rank = LoRA().r
        found[f"model.lora.r {rank}"] = replace(
            plan, trained=adapters(plan.config, rank), frozen=plan.trained, reference=False
        )
    if plan.cuda:
        ranks = 2 * plan.shards if plan.fsdp else max(8, trainer.world_size)
        overlay = "" if plan.fsdp else "--config configs/trainer/fsdp2.yaml on "
        found[f"{overlay}{ranks} devices"] = replace(plan, fsdp=True, shards=ranks, buckets=False)
    return found


def memory_rows(plan: Plan, available: int, changes: dict[str, Plan]) -> dict[str, str]:
    """The estimate as rows of the table; if it is more than there is, also what would need less.

    Args:
        plan: What the run does.
        available: Bytes of the device.
        changes: Other plans by the settings that make them.
    """
    memory, words = estimate(plan), derived(plan)
    rows = {"memory": f"about {shown(memory.peak)} of {shown(available)} a device, most at {memory.moment}"}
    rows |= {f"  {name}": f"{shown(size)}: {words[name]}" for name, size in memory.parts.items()}
    if memory.peak > available:
        less = {setting: estimate(change).peak for setting, change in changes.items()}
        better = [
            f"{key} ({shown(peak)})" for key, peak in sorted(less.items(), key=lambda x: x[1]) if peak < memory.peak
        ]
        rows["TOO MUCH"] = "it is likely to run out of memory; less need " + ", ".join(better)
    return rows


def shown(size: int) -> str:
    """Bytes in MiB or GiB."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"

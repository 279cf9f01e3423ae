"""The memory that a run is going to need, from its settings: the plan of its steps, and what would need less."""

import os
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from datamodules.base import XLAMDataModule
from datamodules.prompts import XLAMPromptDataModule
from datamodules.sft import XLAMSFTDataModule
from lightning_modules.base import FunctionCallingModule
from lightning_modules.callbacks.memory import Plan, adapters, cache_bytes, derived, estimate, has_room, room
from lightning_modules.generators import HFGenerator, VLLMGenerator
from lightning_modules.generators.base import HoldsWeights
from lightning_modules.generators.ipc_transfer import PACK
from lightning_modules.grpo import GRPOModule
from lightning_modules.policy.gradient_checkpointing import settings_of
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.probe import known_leak, may_attend_by_document
from lightning_modules.policy.reference import PREFIX
from lightning_modules.policy.unshard import FSDP1_PREFIX
from lightning_modules.strategies import FSDP1, FSDP2

MOST_RANKS = 1024  # that are thought of


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
    fsdp, shards = isinstance(strategy, FSDP1 | FSDP2), shards_of(trainer)
    recomputed = settings_of(module.gradient_checkpointing)
    plan = Plan(
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
        shards=shards,
        hybrid=isinstance(strategy, FSDP2) and shards < ranks,
        unsharded=fsdp and strategy.accumulate_unsharded,
        offload=fsdp and offloads(strategy),
        buckets=isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("gradient_as_bucket_view"),
        reference=isinstance(module, GRPOModule) and module.loss.kl_coef > 0 and module.lora is None,
        attention=config._attn_implementation,
        cuda=module.device.type == "cuda",
        compiled=module.torch_compile,
    )
    return replace(plan, **generation(trainer, module, plan))


def generation(trainer: Trainer, module: FunctionCallingModule, plan: Plan) -> dict[str, Any]:
    """What generating takes besides the policy, as settings of the `Plan`; nothing where no completion is asked for."""
    generator, data, samples = module.generator, trainer.datamodule, isinstance(module, GRPOModule)
    validates = trainer.limit_val_batches and len(data.val_indices)
    if not samples and not validates:
        return {}
    copy = whole(plan) if plan.fsdp else 0
    if isinstance(generator, HoldsWeights) and isinstance(trainer.strategy, FSDP2):
        copy = streamed(plan)  # shards are gathered one after the other
    if isinstance(generator, VLLMGenerator):
        share = int(generator.options["gpu_memory_utilization"] * device_memory(trainer, module.device))
        engine = engine_bytes(plan, generator, longest_prompt(data), generator.tensor_parallel_size, share)
        copy += PACK if generator.transfer == "ipc" else 0
        return {"copy": copy, "engine": engine, "sleeps": generator.sleep and plan.cuda}
    if not isinstance(generator, HFGenerator):
        return {"copy": copy}
    asked = []  # completions at a time, and tokens of the longest prompt
    if samples:
        asked.append((data.hparams.prompts_per_step * module.sampling.group_size, _longest_row(data)))
    if validates:
        asked.append((min(data.hparams.eval_batch_size, len(data.val_indices)), data.longest_prompt))
    caches = []
    for completions, prompt in asked:
        rows = min(generator.rows_together(prompt), -(-completions // trainer.world_size))
        caches.append(cache_bytes(plan.config, rows, prompt + generator.max_new_tokens))
    return {"copy": copy + cast(plan), "cache": max(caches) * plan.widths[1]}


def longest_prompt(data: XLAMDataModule) -> int:
    """Tokens of the longest prompt to generate from; rows to fine-tune on count with their answers."""
    return max(_longest_row(data), getattr(data, "longest_prompt", 0))


def _longest_row(data: XLAMDataModule) -> int:
    """Tokens of the longest row to train on: of a prompt alone where completions are sampled."""
    return int(data.lengths[data.train_indices].max())


def engine_bytes(plan: Plan, generator: VLLMGenerator, prompt: int, gpus: int, share: int) -> int:
    """Bytes that an engine takes of each of its GPUs: its share, or more where it needs more to start.

    vLLM loads the weights whatever its share is, and then wants room for keys and values of its longest row. A cache of
    a given size comes on top of the weights, and the share counts for nothing.

    Args:
        plan: What the run does.
        generator: The engine's settings.
        prompt: Tokens of the longest prompt.
        gpus: That one engine is spread over.
        share: Bytes by `gpu_memory_utilization`.
    """
    width = getattr(torch, generator.dtype).itemsize if generator.dtype else plan.widths[1]
    head = plan.root if plan.config.tie_word_embeddings else 0  # the engine has one of its own: `untied_config`
    weights = (plan.trained + plan.frozen + head) * width // gpus
    if (cache := generator.options["kv_cache_memory_bytes"]) is not None:
        return int(weights + cache)
    tokens = generator.options["max_model_len"] or prompt + generator.max_new_tokens
    return max(share, weights + cache_bytes(plan.config, 1, tokens) * width // gpus)


def whole(plan: Plan) -> int:
    """Bytes of an unsharded copy of the weights, in the dtype of products."""
    return (plan.trained + plan.frozen) * plan.widths[1]


def streamed(plan: Plan) -> int:
    """Bytes of the largest part of the model that is unsharded at a time for an engine."""
    return max(plan.block, plan.config.vocab_size * plan.config.hidden_size) * plan.widths[1]


def cast(plan: Plan) -> int:
    """Bytes of the copies of linear weights that transformers generates with: see `generators.casting`."""
    w, c, _ = plan.widths
    embedding = 0 if plan.config.tie_word_embeddings else plan.root // 2
    needed = not plan.cuda or (w > c and not plan.fsdp)  # a CPU packs them in any case
    return (plan.trained + plan.frozen - embedding) * c if needed else 0


def build_empty(module: FunctionCallingModule) -> None:
    """Give a module its model without weights, and presume what their probe finds for nearly every model."""
    policy = build_policy(
        module.init_from,
        lora=module.lora,
        gradient_checkpointing=module.gradient_checkpointing,
        attn_implementation=module.attn_implementation,
        empty=True,
    )
    module.sizes_of_weights = {name: weight.shape for name, weight in policy.state_dict().items()}
    if may_attend_by_document(policy):
        policy.by_document = policy.shares_prefixes = True
    module.pack(policy, known_leak(policy))
    module.policy = policy


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


def offloads(strategy: FSDP1 | FSDP2) -> bool:
    """Whether shards and their optimizer stay in the memory of the CPU."""
    return bool(getattr(strategy.cpu_offload, "offload_params", strategy.cpu_offload))


def device_memory(trainer: Trainer, device: torch.device) -> int:
    """Bytes of the GPU's memory, or of this process's share of the machine's."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // trainer.num_devices


def cheaper(
    trainer: Trainer, module: FunctionCallingModule, plan: Plan, available: int | None = None
) -> dict[str, Plan]:
    """Plans that need less memory, by the setting that makes each.

    Args:
        trainer: The run's.
        module: The run's.
        plan: What it does.
        available: Bytes of a device; the weights are spread over as many as it takes then.
    """
    found = {}
    if not plan.checkpointing:
        found["model.gradient_checkpointing true"] = replace(plan, checkpointing=True)
    elif plan.every_n_layers > 1:
        found["model.gradient_checkpointing true"] = replace(plan, every_n_layers=1)
    # What learns has to be float32 (`check_precision`).
    if plan.widths[0] > 2 and module.lora is not None and not isinstance(trainer.strategy, FSDP1):
        half = replace(plan, precision="bf16-true")
        found["trainer.precision bf16-true"] = half if plan.fsdp else replace(half, copy=min(plan.copy, cast(half)))
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
        most = trainer.world_size if plan.hybrid else MOST_RANKS
        generates = not plan.fsdp and (plan.copy or plan.cache or plan.engine)  # of an unsharded copy then
        held = isinstance(getattr(module, "generator", None), HoldsWeights)  # is given shards as they come
        copy = (streamed(plan) if held else whole(plan)) if generates else plan.copy
        spread = replace(plan, fsdp=True, shards=ranks, buckets=False, copy=copy)
        if available:
            learning = replace(spread, copy=0, cache=0)  # of a copy each rank has the whole
            ranks = enough(spread, available, most) or enough(learning, available, most) or ranks
            spread = replace(spread, shards=ranks)
        if plan.hybrid:
            name = f"trainer.strategy.init_args.shard_size {ranks}"
            spread = replace(spread, hybrid=ranks < trainer.world_size)
        else:
            name = f"{'' if plan.fsdp else '--config configs/trainer/fsdp2.yaml on '}{ranks} devices"
        found[name] = spread
    return found


def enough(plan: Plan, available: int, most: int) -> int | None:
    """The fewest ranks, by doubling those that share the weights, with which a plan fits; None up to the most."""
    while not has_room(plan, available) and 2 * plan.shards <= most:
        plan = replace(plan, shards=2 * plan.shards)
    return plan.shards if has_room(plan, available) else None


def memory_rows(plan: Plan, available: int, changes: dict[str, Plan]) -> dict[str, str]:
    """The estimate as rows of the table; if it is more than there is, also what would need less.

    Args:
        plan: What the run does.
        available: Bytes of the device.
        changes: Other plans by the settings that make them.
    """
    memory, words = estimate(plan), derived(plan)
    most = f"about {shown(memory.peak)} of {size_of(plan, available)} a device, most at {memory.moment}"
    rows = {"memory": f"{most} ({plan.counted})"}
    rows |= {f"  {name}": f"{shown(size)}: {words[name]}" for name, size in memory.parts.items()}
    if not has_room(plan, available):
        less = {setting: estimate(change).peak for setting, change in changes.items()}
        better = [
            f"{key} ({shown(peak)})" for key, peak in sorted(less.items(), key=lambda x: x[1]) if peak < memory.peak
        ]
        rows["TOO MUCH"] = "it is likely to run out of memory; less need " + ", ".join(better)
    return rows


def size_of(plan: Plan, available: int) -> str:
    """Bytes of a device in words, and how many of them are left for what the estimate does not count."""
    kept = available - room(plan, available)
    rest = f", {shown(kept)} of them left for CUDA's context, buffers of NCCL and fragments" if kept else ""
    return f"{shown(available)}{rest}"


def shown(size: int) -> str:
    """Bytes in MiB or GiB."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"

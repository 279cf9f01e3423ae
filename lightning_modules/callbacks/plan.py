"""The `Plan` of a run, on which the memory depends that it is going to need: from its settings, data and model."""

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
from lightning_modules.callbacks.memory import Plan, cached_numbers
from lightning_modules.evaluation import EvaluationModule
from lightning_modules.generators import HFGenerator, VLLMGenerator
from lightning_modules.generators.base import HoldsWeights
from lightning_modules.generators.ipc_transfer import PACK
from lightning_modules.grpo import GRPOModule
from lightning_modules.policy.gradient_checkpointing import resolve_gradient_checkpointing
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.probe import known_leak, may_attend_by_document
from lightning_modules.policy.reference import PREFIX
from lightning_modules.policy.unshard import FSDP1_PREFIX
from lightning_modules.strategies import FSDP1, FSDP2

PRESUMED = ("policy", "packed", "why_not_packed", "shares_prefixes", "sizes_of_weights")
"""What `build_empty` sets."""


def plan_of(trainer: Trainer, module: FunctionCallingModule) -> Plan | None:
    """The `Plan` of this run's steps for the estimate of memory; None for data that are not cut by a token budget."""
    if (micro_batch := micro_batch_of(trainer, module)) is None:
        return None
    rows, length = micro_batch
    strategy, config = trainer.strategy, module.policy.causal_lm.config.get_text_config()
    trained, frozen = parameter_counts(module)
    recomputed = resolve_gradient_checkpointing(module.gradient_checkpointing)
    plan = Plan(
        config=config,
        trained=trained,
        frozen=frozen,
        precision=str(trainer.precision),
        rows=rows,
        length=length,
        checkpointing=recomputed is not None,
        every_n_layers=recomputed.every_n_layers if recomputed else 1,
        offload_activations=recomputed is not None and recomputed.offload,
        buckets=isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("gradient_as_bucket_view"),
        reference=isinstance(module, GRPOModule) and module.loss.kl_coef > 0 and module.lora is None,
        attention=config._attn_implementation,
        cuda=module.device.type == "cuda",
        compiled=module.torch_compile,
        optimizer=optimizer_of_ones_own(module),
        **sharding(trainer),
    )
    return replace(plan, **generation(trainer, module, plan))


def optimizer_of_ones_own(module: FunctionCallingModule) -> str:
    """The method of a subclass that makes its optimizer; "" where the optimizer is this project's."""
    own = type(module).configure_optimizers is not FunctionCallingModule.configure_optimizers
    return f"{type(module).__name__}.configure_optimizers" if own else ""


def micro_batch_of(trainer: Trainer, module: FunctionCallingModule) -> tuple[int, int] | None:
    """Rows and tokens of a row of the largest micro-batch; None for data that are not cut by a token budget."""
    data, ranks, samples = trainer.datamodule, trainer.world_size, isinstance(module, GRPOModule)
    if samples and isinstance(data, XLAMPromptDataModule):
        budget, longest = module.micro_batch_tokens, _longest_row(data) + module.generator.max_new_tokens
        documents = -(-data.hparams.prompts_per_step * module.sampling.group_size // ranks)
    elif isinstance(data, XLAMSFTDataModule):
        budget, longest = data.hparams.micro_batch_tokens, _longest_row(data)
        documents = -(-data.hparams.batch_size // ranks)
    else:
        return None
    # Rollouts are packed in rows as long as the longest of them, or in a single row that they share prompts in;
    # documents in rows of `max_length`.
    if samples and module.shares_prefixes:
        length = max(longest, min(budget, documents * longest))
    else:
        length = longest if samples or not module.packed else min(data.hparams.max_length, documents * longest)
    return max(1, min(budget, documents * longest) // length), length


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


def plan_of_evaluation(trainer: Trainer, module: EvaluationModule, copies: bool, available: int) -> Plan:
    """The `Plan` of a run in which nothing is learnt, its weights not loaded yet.

    Args:
        trainer: The run's.
        module: The run's.
        copies: Whether each GPU makes a whole copy of the weights.
        available: Bytes of a GPU.
    """
    generator, model = module.generator, build_policy(module.init_from, empty=True).causal_lm
    plan = Plan(
        config=model.config.get_text_config(),
        trained=0,
        frozen=sum(weight.numel() for weight in model.parameters()),
        precision=str(trainer.precision),
        rows=0,
        length=0,
        checkpointing=False,
        cuda=module.device.type == "cuda",
        **sharding(trainer),
    )
    engine = 0
    if isinstance(generator, VLLMGenerator):
        prompt = getattr(trainer.datamodule, "longest_prompt", 0)  # of data that say so; else a completion alone counts
        engine = engine_bytes(plan, generator, prompt, generator.tensor_parallel_size, available)
    return replace(plan, copy=whole(plan) if copies else 0, engine=engine)


def generation(trainer: Trainer, module: FunctionCallingModule, plan: Plan) -> dict[str, Any]:
    """What generating takes besides the policy, as settings of the `Plan`; nothing where no completion is asked for."""
    generator, data, samples = module.generator, trainer.datamodule, isinstance(module, GRPOModule)
    validates = trainer.limit_val_batches and len(data.val_indices)
    if not samples and not validates:
        return {}
    streams = isinstance(generator, HoldsWeights) and not isinstance(trainer.strategy, FSDP1)  # a shard after the other
    copy = (streamed(plan) if streams else whole(plan)) if plan.fsdp else 0
    if isinstance(generator, VLLMGenerator):
        available = device_memory(trainer, module.device)
        engine = engine_bytes(plan, generator, data.longest_prompt, generator.tensor_parallel_size, available)
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
        caches.append(cached_numbers(plan.config, rows, prompt + generator.max_new_tokens))
    return {"copy": copy + cast(plan), "cache": max(caches) * plan.c}


def _longest_row(data: XLAMDataModule) -> int:
    """Tokens of the longest row to train on: of a prompt alone where completions are sampled."""
    return int(data.lengths[data.train_indices].max())


def share_of(generator: VLLMGenerator, available: int) -> int:
    """Bytes of a GPU of so many that an engine has by `gpu_memory_utilization`."""
    return int(generator.options["gpu_memory_utilization"] * available)


def engine_bytes(plan: Plan, generator: VLLMGenerator, prompt: int, gpus: int, available: int) -> int:
    """Bytes that an engine takes of each of its GPUs: its share, or more where it needs more to start.

    vLLM loads the weights whatever its share is, and then wants room for keys and values of its longest row. A cache of
    a given size comes on top of the weights, and the share counts for nothing.

    Args:
        plan: What the run does.
        generator: The engine's settings.
        prompt: Tokens of the longest prompt.
        gpus: That one engine is spread over.
        available: Bytes of a GPU.
    """
    width = getattr(torch, generator.dtype).itemsize if generator.dtype else plan.c
    head = 2 * plan.table - plan.root  # of a tied one the engine has its own: `untied_config`
    weights = (plan.trained + plan.frozen + head) * width // gpus
    if (cache := generator.options["kv_cache_memory_bytes"]) is not None:
        return int(weights + cache)
    tokens = generator.longest_row(plan.config, prompt)
    return max(share_of(generator, available), weights + cached_numbers(plan.config, 1, tokens) * width // gpus)


def whole(plan: Plan) -> int:
    """Bytes of an unsharded copy of the weights, in the dtype of products."""
    return (plan.trained + plan.frozen) * plan.c


def streamed(plan: Plan) -> int:
    """Bytes of the largest part of the model that is unsharded at a time for an engine."""
    return max(plan.block, plan.table) * plan.c


def cast(plan: Plan) -> int:
    """Bytes of the copies of linear weights that transformers generates with: see `generators.casting`."""
    needed = not plan.cuda or (plan.w > plan.c and not plan.fsdp)  # a CPU packs them in any case
    embedding = plan.root - plan.table  # no linear layer, unless it is the head, too
    return (plan.trained + plan.frozen - embedding) * plan.c if needed else 0


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


def sharding(trainer: Trainer) -> dict[str, Any]:
    """How FSDP spreads the weights, as settings of the `Plan`; nothing without it."""
    strategy, ranks = trainer.strategy, trainer.world_size
    if isinstance(strategy, FSDP2):
        shards, offload = strategy.shard_size or ranks, strategy.cpu_offload
    elif isinstance(strategy, FSDP1):
        shards = strategy.num_processes if "HYBRID" in strategy.sharding_strategy.name else ranks
        offload = strategy.cpu_offload.offload_params
    else:
        return {}
    hybrid = isinstance(strategy, FSDP2) and shards < ranks
    unsharded = strategy.accumulate_unsharded
    return {"fsdp": True, "shards": shards, "hybrid": hybrid, "unsharded": unsharded, "offload": offload}


def device_memory(trainer: Trainer, device: torch.device) -> int:
    """Bytes of the GPU's memory, or of this process's share of the machine's."""
    return gpu_memory(device) or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // trainer.num_devices


def gpu_memory(device: torch.device) -> int | None:
    """Bytes of a GPU's memory; None of another device."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None

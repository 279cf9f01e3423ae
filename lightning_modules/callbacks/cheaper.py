"""What would need less memory: the plan of a run with settings changed, and the fewest changes that make it fit."""

from dataclasses import fields, replace
from itertools import combinations

from lightning.pytorch import Trainer

from lightning_modules.base import FunctionCallingModule
from lightning_modules.callbacks.memory import Plan, adapters, estimate, has_room
from lightning_modules.callbacks.plan import engine_bytes, generation, share_of, streamed, whole
from lightning_modules.generators import HFGenerator, VLLMGenerator
from lightning_modules.generators.vllm import UTILIZATION
from lightning_modules.grpo import GRPOModule
from lightning_modules.policy.lora import LoRA
from lightning_modules.strategies import FSDP1, FSDP2

MOST_RANKS = 1024  # that are thought of
NAMED = 3  # ways to fit, at most


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
    if plan.w > 2 and module.lora is not None and not isinstance(trainer.strategy, FSDP1):
        half = replace(plan, precision="bf16-true")
        found["trainer.precision bf16-true"] = replace(half, **generation(trainer, module, half))
    key = "model" if isinstance(module, GRPOModule) else "data"
    least = max(plan.length, 0 if key == "model" else trainer.datamodule.hparams.max_length)  # it takes no less
    if plan.rows > least // plan.length:
        found[f"{key}.micro_batch_tokens {least}"] = replace(plan, rows=least // plan.length)
    if module.lora is None:
        rank = LoRA().r
        found[f"model.lora.r {rank}"] = replace(
            plan, trained=adapters(plan.config, rank), frozen=plan.trained + plan.frozen, reference=False
        )
    if plan.cuda:
        found |= over_more_ranks(trainer, module, plan, available)
    return found


def over_more_ranks(
    trainer: Trainer, module: FunctionCallingModule, plan: Plan, available: int | None
) -> dict[str, Plan]:
    """The plan with the weights over more ranks, by the setting; over as many as it takes where that is known.

    Args:
        trainer: The run's.
        module: The run's.
        plan: What it does.
        available: Bytes of a device; None where nobody asks whether it fits.
    """
    ranks = 2 * plan.shards if plan.fsdp else max(8, trainer.world_size)
    most = trainer.world_size if plan.hybrid else MOST_RANKS
    spread = replace(plan, fsdp=True, shards=ranks, buckets=False)
    if not plan.fsdp:
        spread = replace(spread, **generation(trainer, module, spread))
    if available:
        learning = replace(spread, copy=0, cache=0)  # of a copy each rank has the whole
        ranks = enough(spread, available, most) or enough(learning, available, most) or ranks
        spread = replace(spread, shards=ranks)
    if plan.hybrid:
        spread = replace(spread, hybrid=ranks < trainer.world_size)
        return {f"trainer.strategy.init_args.shard_size {ranks}": spread}
    return {f"{'' if plan.fsdp else '--config configs/trainer/fsdp2.yaml on '}{ranks} devices": spread}


def enough(plan: Plan, available: int, most: int) -> int | None:
    """The fewest ranks, by doubling those that share the weights, with which a plan fits; None up to the most."""
    while not has_room(plan, available) and 2 * plan.shards <= most:
        plan = replace(plan, shards=2 * plan.shards)
    return plan.shards if has_room(plan, available) else None


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


def with_engine(plan: Plan, available: int) -> Plan:
    """The plan of a sharded run with an engine over several of its GPUs, which is given the weights layer by layer."""
    return replace(plan, copy=streamed(plan), cache=0, engine=int(UTILIZATION * available))


def over_more_gpus(trainer: Trainer, generator: VLLMGenerator, plan: Plan, available: int) -> dict[str, Plan]:
    """The plan with the engine over more GPUs of a node, as many as its share of them is enough on, by the setting."""
    prompt = trainer.datamodule.longest_prompt
    for gpus in (2, 4, 8):
        engine = engine_bytes(plan, generator, prompt, gpus, available)
        starts = engine <= share_of(generator, available) or generator.options["kv_cache_memory_bytes"] is not None
        if starts and engine < plan.engine and trainer.num_devices % gpus == 0:
            return {f"model.generator.tensor_parallel_size {gpus}": replace(plan, engine=engine)}
    return {}


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
        together = {
            names: replace(plan, **{key: value for name in names for key, value in differ[name].items()})
            for names in combinations(differ, count)
        }
        fitting = [names for names, other in together.items() if has_room(other, available)]
        if fitting:
            return [(names, estimate(together[names]).peak) for names in fitting[:NAMED]]
    return []

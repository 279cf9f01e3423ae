"""Whether a run fits into the memory of its GPUs, by the estimate; one that does not is refused."""

import math

from lightning.pytorch import Trainer

from lightning_modules.base import FunctionCallingModule
from lightning_modules.callbacks.cheaper import changes
from lightning_modules.callbacks.memory import Plan, estimate, has_room
from lightning_modules.callbacks.memory_text import refusal, shown, size_of
from lightning_modules.callbacks.plan import gpu_memory, plan_ahead, plan_of_evaluation, share_of
from lightning_modules.evaluation import EvaluationModule
from lightning_modules.generators import Generator, VLLMGenerator
from lightning_modules.generators.base import HoldsWeights
from lightning_modules.ranks import failing_together
from lightning_modules.strategies import FSDP1, FSDP2


def check_fits(trainer: Trainer, module: FunctionCallingModule) -> None:
    """Refuse a run that cannot fit into the memory of its GPUs; a collective. On CPUs nothing is refused.

    Args:
        trainer: The run's; its attribute `fit_anyway` lets everything pass.
        module: The run's, its weights loaded or not.

    Raises:
        ValueError: Naming what is needed, what there is, and settings with which it would fit; also if a rollout
            engine is to have less than it starts with.
    """
    available = gpu_memory(module.device)
    if available is None or getattr(trainer, "fit_anyway", False):
        return
    with failing_together():
        if plan := plan_ahead(trainer, module):
            if not has_room(plan, available):
                raise ValueError(refusal(plan, available, changes(trainer, module, plan, available)))
            check_share(plan, module.generator, available)


def check_share(plan: Plan, generator: Generator, available: int) -> None:
    """Refuse a share of the GPU that is too small for an engine, as vLLM would once it has loaded the weights.

    Args:
        plan: What the run does.
        generator: The run's.
        available: Bytes of a GPU.

    Raises:
        ValueError: Naming what is needed, and the settings.
    """
    if not isinstance(generator, VLLMGenerator) or generator.options["kv_cache_memory_bytes"] is not None:
        return
    utilization, share = generator.options["gpu_memory_utilization"], share_of(generator, available)
    if plan.engine > share:
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
            check_share(plan, generator, available)


def check_copy(plan: Plan, generator: Generator, available: int) -> None:
    """Refuse an evaluation for which each GPU would need a whole copy of a sharded model, and cannot hold it.

    Args:
        plan: What the run does.
        generator: The run's.
        available: Bytes of a GPU.

    Raises:
        ValueError: Naming what is needed, what there is, and what would need less.
    """
    if has_room(plan, available):
        return
    whose, advice = "", "Set model.generator to VLLMGenerator with a tensor_parallel_size under FSDP2"
    if isinstance(generator, HoldsWeights):
        whose = ", under FSDP1 for an engine"
        advice = "Take FSDP2 (--config configs/trainer/fsdp2.yaml), which gives it one weight after the other"
    raise ValueError(
        f"To generate with a sharded model each GPU makes a whole copy of it{whose}: that is estimated to need "
        f"{shown(estimate(plan).peak)} of each, and there are {size_of(plan, available)}. {advice}, or leave the "
        "sharding out (--config configs/trainer/ddp.yaml with --trainer.precision bf16-true: "
        f"{shown(2 * plan.frozen + plan.engine)}); --fit_anyway starts it all the same."
    )

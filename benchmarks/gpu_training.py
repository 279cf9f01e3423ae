"""The steps of `gpu_session` that train a 7B shape, whole or with few layers: tokens a second, memory, kernels."""

import gc
import time
from functools import partial
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_device import Measurements, device_of, machine
from benchmarks.gpu_models import LAYERS
from benchmarks.gpu_step import PEAK_FLOPS, RANK, model_folder
from benchmarks.our_side import RUN
from benchmarks.sharded_step import Case
from datamodules import XLAMSFTDataModule
from lightning_modules import SRMLModule, evaluation
from lightning_modules.callbacks.memory import adapters, estimate
from lightning_modules.callbacks.plan import plan_of
from lightning_modules.policy import attention as policy_attention
from lightning_modules.policy.gradient_checkpointing import GradientCheckpointing
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import ScoredCausalLM, build_policy

STEPS, WARM, ROWS = 6, 2, 24  # of training: steps, those that are not counted, rows of a step


def sft(small: bool) -> Measurements:
    """Training steps of a 7B shape with few layers: tokens a second, share of peak, memory, and where the time goes."""
    device = device_of(small)
    yield "machine", partial(machine, device)
    if not small:
        yield "adapters", partial(_train, device, LoRA(r=RANK), True, True)
    yield "all weights", partial(_train, device, None, True, True)
    if not small:
        yield "adapters, each document", partial(_train, device, LoRA(r=RANK), True, False)
        yield "adapters, nothing computed again", partial(_train, device, LoRA(r=RANK), False, True)
        yield "adapters, every second layer", partial(_train, device, LoRA(r=RANK), GradientCheckpointing(2), True)


def whole(small: bool) -> Measurements:
    """Training steps of all layers of a 7B shape, with adapters: their peak against the estimate."""
    device = device_of(small)
    yield "machine", partial(machine, device)
    yield "adapters, all layers", partial(_train, device, LoRA(r=RANK), True, True, layers=None)


def compiled(small: bool) -> Measurements:
    """The same steps with compiled layers (`model.torch_compile`); compiling is most of what it takes."""
    device = device_of(small)
    yield "machine", partial(machine, device)
    yield "all weights, compiled", partial(_train, device, None, True, True, torch_compile=True)
    if not small:
        yield "adapters, compiled", partial(_train, device, LoRA(r=RANK), True, True, torch_compile=True)


def _train(
    device: torch.device,
    lora: LoRA | None,
    checkpointing: bool | GradientCheckpointing,
    at_once: bool,
    torch_compile: bool = False,
    layers: int | None = LAYERS,
) -> dict[str, Any]:
    small = device.type == "cpu"
    case = Case("SRML", "small" if small else "7B", layers=2 if small and layers else layers)
    takes_all = policy_attention.takes_all if at_once else (lambda *_: False)
    if not small:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def on_device(*args: Any, **options: Any) -> ScoredCausalLM:
        with device:  # 3 billion random numbers
            return build_policy(*args, **options)

    with TemporaryDirectory() as folder, patch.object(evaluation, "build_policy", on_device):
        weights = model_folder(case, Path(folder) / "model")
        rows = 4 if small else ROWS
        data = XLAMSFTDataModule(
            tokenizer=f"{folder}/model",
            path=f"toolbox:train:{rows * STEPS}",
            val_fraction=0.0,
            batch_size=rows,
            max_length=1024 if small else 4096,
            micro_batch_tokens=1024 if small else 8192,
        )
        module = SRMLModule(
            init_from=f"{folder}/model", lora=lora, gradient_checkpointing=checkpointing, torch_compile=torch_compile
        )
        watch, options = Measured(), {**RUN, "accelerator": "cpu" if small else "gpu"}
        with patch.object(policy_attention, "takes_all", takes_all):
            trainer = Trainer(precision="bf16-mixed", max_steps=STEPS, callbacks=[watch], **options)
            trainer.fit(module, datamodule=data)
    module.policy = None
    # The last step is watched, which takes time.
    speed = sum(watch.tokens[WARM:-1]) / (watch.ends[-2] - watch.ends[WARM])
    flops = 6 * weights if lora is None else 4 * weights + 6 * adapters(case.config, RANK)
    of = {"layers": case.config.num_hidden_layers}
    return {"tokens/s": speed, "MFU of the layers": speed * flops / PEAK_FLOPS, **of, **watch.values}


class Measured(Callback):
    """Speeds of the steps after the first ones, the estimate, the peak, and a table of the last step's kernels."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self.values: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the estimate."""
        plan = plan_of(trainer, pl_module)
        self.values |= {"estimate, GiB": estimate(plan).peak / 2**30, "rows": plan.rows, "length": plan.length}
        self.values |= {"attention": pl_module.policy.causal_lm.config._attn_implementation}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count, and watch the last step."""
        self.tokens.append(sum(int((micro["doc_ids"] >= 0).sum()) for micro in batch))
        self.values["targets"] = sum(int((micro["targets"] >= 0).sum()) for micro in batch) / self.tokens[-1]
        self.values["documents"] = [int(micro["doc_ids"].max()) + 1 for micro in batch][:4]
        if batch_idx == STEPS - 1:
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if pl_module.device.type == "cuda" else [])]
            self.profiler = profile(activities=kinds)
            self.profiler.__enter__()
        self.ends = self.ends or [time.perf_counter()]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Note the end of a step; its metrics were read from the device."""
        gpu = pl_module.device.type == "cuda"
        if gpu:
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        if len(self.ends) == STEPS + 1:
            self.profiler.__exit__(None, None, None)
            spent = attrgetter("self_device_time_total" if gpu else "self_cpu_time_total")
            rows = sorted(self.profiler.key_averages(), key=spent, reverse=True)
            self.values["profile, ms"] = {row.key[:70]: [round(spent(row) / 1e3, 1), row.count] for row in rows[:14]}
            self.values["all kernels, ms"] = sum(map(spent, rows)) / 1e3
            if gpu:
                peak = torch.cuda.max_memory_allocated() / 2**30
                self.values |= {"peak, GiB": peak, "estimate / peak": self.values["estimate, GiB"] / peak}

"""A training step of the project under FSDP2 in one process: on real tensors, or on fake ones over any number of ranks.

Model, scored forward, losses, scoring passes and sharding are the project's own. Fake tensors have a size and no
memory, and the members of a fake process group do nothing, so that one CPU stands for one of hundreds of GPUs.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.tensor_memory import Selected, TensorMemory, allocator_peak
from datamodules.packing import IGNORED, PackedBatch
from lightning_modules.objectives import PolicyLoss, PolicyTotals, Totals, logprobs
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.reference import reference_policy
from lightning_modules.rollout.collect import score_tokens
from lightning_modules.rollout.update import micro_loss
from lightning_modules.srml import SRMLModule
from lightning_modules.strategies import FSDP2

SHAPES = {  # hidden size, intermediate size, layers, attention heads, key-value heads, vocabulary: of Qwen2.5-Coder
    "7B": (3584, 18944, 28, 28, 4, 152064),
    "32B": (5120, 27648, 64, 40, 8, 152064),
    "72B": (8192, 29568, 80, 64, 8, 152064),  # of Qwen2.5
    "small": (128, 512, 4, 4, 2, 4096),
}
MICRO_BATCHES = 2
TEMPERATURE = 0.7


@dataclass(frozen=True)
class Case:
    """A training step to simulate: `MICRO_BATCHES` micro-batches of `rows` x `length` tokens on each GPU."""

    objective: Literal["SRML", "EGPO", "EGPO, LoRA"]
    shape: str
    gpus: int = 1
    shards: int = 1
    rows: int = 2
    length: int = 4096
    layers: int | None = None  # all of them

    @property
    def config(self) -> Qwen2Config:
        """The architecture."""
        hidden, inner, layers, heads, kv_heads, vocabulary = SHAPES[self.shape]
        return Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=self.layers or layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            tie_word_embeddings=False,
            attn_implementation="sdpa",
        )


@dataclass
class StepCost:
    """Memory and traffic of a simulated step.

    Attributes:
        peaks: Most bytes at one time, by phase of the step.
        moved: Bytes received, by collective and size of the group.
        trained: Parameters that learn.
        frozen: Parameters that do not.
    """

    peaks: dict[str, float] = field(default_factory=dict)
    moved: dict[Any, float] = field(default_factory=dict)
    trained: float = 0
    frozen: float = 0

    @property
    def peak(self) -> float:
        """Most bytes at one time."""
        return max(self.peaks.values())


def build(case: Case, device: torch.device) -> ScoredCausalLM:
    """A policy with float32 weights and gradient checkpointing, as `policy.model.build_policy` makes them."""
    with device:
        model = Qwen2ForCausalLM(case.config)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if "LoRA" in case.objective:
        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    return ScoredCausalLM(model).train()


def micro_batch(case: Case, device: torch.device) -> PackedBatch:
    """Rows of two documents each; the second half of each document is scored."""
    position = torch.arange(case.length) % (case.length // 2)
    scored = (position >= case.length // 4).repeat(case.rows, 1)
    documents = torch.arange(2 * case.rows).repeat_interleave(case.length // 2).view(case.rows, -1)
    batch = {
        "input_ids": torch.ones_like(documents),
        "position_ids": position.repeat(case.rows, 1),
        "targets": torch.where(scored, 1, IGNORED),
        "segments": torch.where(scored, 1 + documents % 2, 0),
        "doc_ids": documents,
        "tokens": torch.where(scored, scored.flatten().cumsum(0).view_as(scored) - 1, -1),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def steps(case: Case, mesh: Any, device: torch.device, done: Callable[[str], None]) -> tuple[int, int]:
    """Take two steps, the second with optimizer states in memory, and call back at the end of each phase.

    Returns:
        Numbers of trained and of frozen parameters.
    """
    overlay = SimpleNamespace(mesh=mesh, wrap=None, cpu_offload=False, root_device=device)
    overlay.global_rank, overlay.world_size = 0, 1  # every rank builds its weights here, and none sends them
    overlay.precision_plugin = SimpleNamespace(precision="bf16-mixed")
    policy, reference = build(case, device), None
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in policy.parameters()]
    FSDP2.shard(overlay, policy)
    if case.objective == "EGPO":
        reference = FSDP2.shard(overlay, build(case, device).requires_grad_(False).eval())
    weights = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, fused=True)
    micros = [micro_batch(case, device) for _ in range(MICRO_BATCHES)]
    for _ in range(2):
        done("")
        with torch.autocast(device.type, torch.bfloat16):
            if case.objective == "SRML":
                srml = SimpleNamespace(policy=policy, alpha=lambda: 0.7, reduction="sample")
                loss = partial(SRMLModule.loss, srml, totals=Totals(8.0, 4096.0, 4096.0))
            else:
                loss = scored_loss(policy, reference, micros, device)
                done("scoring")
            for micro in micros:
                loss(micro)[0].backward()
            done("learning")
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done("update")
    learns = sum(size for size, trained in sizes if trained)
    return learns, sum(size for size, _ in sizes) - learns


def scored_loss(
    policy: ScoredCausalLM, reference: ScoredCausalLM | None, micros: list[PackedBatch], device: torch.device
) -> Callable[[PackedBatch], Any]:
    """EGPO's loss as a function of a micro-batch, once policy and reference have scored all of them."""
    old, _ = score_tokens(policy, micros, len(micros), device, TEMPERATURE, entropy=True)
    with reference_policy(policy, reference) as frozen:
        ref, _ = score_tokens(frozen, micros, len(micros), device, TEMPERATURE, entropy=False)
    buffer = SimpleNamespace(old_logprobs=old, ref_logprobs=ref, weights=None, advantages=torch.zeros_like(old))
    settings = {"totals": PolicyTotals(8.0, 8192.0), "temperature": TEMPERATURE, "max_length": 4096}
    return partial(micro_loss, policy, buffer=buffer, loss=PolicyLoss(dual_clip=3.0), **settings)


@contextmanager
def ranks(case: Case, backend: str, device: torch.device) -> Iterator[Any]:
    """A process group, be it a fake one, in this process, and its ranks laid out as the `fsdp2` overlay does."""
    with tempfile.TemporaryDirectory() as folder:
        store = FakeStore() if backend == "fake" else dist.FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group(backend, rank=0, world_size=case.gpus, store=store)
        try:
            sizes = (case.gpus // case.shards, case.shards)
            mesh = init_device_mesh(device.type, sizes, mesh_dim_names=("replicate", "shard"))
            yield mesh["shard"] if case.shards == case.gpus else mesh
        finally:
            dist.destroy_process_group()


def simulate(case: Case, as_on_gpu: bool = True) -> StepCost:
    """Run a case on fake tensors.

    Args:
        case: What to run.
        as_on_gpu: Whether the head's tiles are as large, and its factors as narrow, as on a GPU.
    """
    cost, cpu = StepCost(), torch.device("cpu")
    head = patch.object(logprobs, "_on_cpu", lambda _: False)
    still = patch.object(torch.nn.Module, "to", lambda module, *_, **__: module)  # peft moves what is in its place
    with (
        ranks(case, "fake", cpu) as mesh,
        head if as_on_gpu else nullcontext(),
        still,
        FakeTensorMode(allow_non_fake_inputs=True),
        TensorMemory() as memory,
        Selected(0.5),
    ):

        def done(phase: str) -> None:
            if not phase:
                cost.peaks.clear()
                memory.moved.clear()
            else:
                cost.peaks[phase] = memory.peak
            memory.peak = memory.bytes

        cost.trained, cost.frozen = steps(case, mesh, cpu, done)
    cost.moved = dict(memory.moved)
    return cost


def measure(case: Case, device: torch.device) -> float:
    """Run a case in one real process, and ask the allocator for the peak."""
    with ranks(case, "nccl" if device.type == "cuda" else "gloo", device) as mesh, allocator_peak(device) as found:
        steps(case, mesh, device, lambda phase: None)
    return found[0]

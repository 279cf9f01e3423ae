"""Steps of `gpu_session` that measure: attention, the head, training steps and decoding at the sizes of a 7B model."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Qwen2ForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks.gpu_step import PEAK_FLOPS, RANK, model_folder
from benchmarks.head import full_logits
from benchmarks.our_side import RUN
from benchmarks.sharded_step import Case
from datamodules import XLAMSFTDataModule
from lightning_modules import SRMLModule, evaluation
from lightning_modules.callbacks.memory import adapters, estimate
from lightning_modules.callbacks.plan import plan_of
from lightning_modules.generators import HFGenerator
from lightning_modules.objectives import linear_logprobs, logprobs
from lightning_modules.policy import attention as policy_attention
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import ScoredCausalLM, build_policy

Measurements = Iterator[tuple[str, Callable[[], Any]]]
LAYERS = 8  # of the 7B shape
MIXES = {  # tokens of the documents of a row, 4,096 in all
    "24 documents": [
        96,
        103,
        110,
        117,
        121,
        128,
        131,
        137,
        140,
        146,
        149,
        153,
        158,
        162,
        168,
        173,
        179,
        188,
        *(197, 214, 233, 262, 311, 320),
    ],
    "8 documents": [310, 356, 402, 447, 495, 561, 690, 835],
}
HEADS = (28, 4, 128)  # query heads, key heads, values of a head: of 7B
STEPS, WARM, ROWS = 6, 2, 24  # of training: steps, those that are not counted, rows of a step


def device_of(small: bool) -> torch.device:
    """The GPU, or a CPU to try things on."""
    return torch.device("cpu" if small else "cuda")


def machine(device: torch.device) -> dict[str, Any]:
    """Name of the device and version of torch; a step's first measurement, which also starts CUDA."""
    return {"device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU", "torch": torch.__version__}


def seconds(take: Callable[[], Any], device: torch.device, repeats: int = 5) -> float:
    """Median seconds of some repeats after one that is not counted."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    times = []
    for _ in range(repeats + 1):
        wait()
        begun = time.perf_counter()
        take()
        wait()
        times.append(time.perf_counter() - begun)
    return median(times[1:])


@contextmanager
def peak(device: torch.device) -> Iterator[dict[str, float]]:
    """Gives a dict that holds, afterwards, the GB that came on top of what was held before."""
    found: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    yield found
    if device.type == "cuda":
        found["peak, GB"] = (torch.cuda.max_memory_allocated() - before) / 1e9


def attention(small: bool) -> Measurements:
    """Forward and backward pass of attention over a packed row, by variants, against one causal flash of its length."""
    device = device_of(small)
    yield "machine", partial(machine, device)
    heads, shared, size = (4, 2, 16) if small else HEADS
    dtype = torch.float32 if small else torch.bfloat16
    variants = ["dense mask", "each document"]
    variants += (
        [] if small else ["one kernel", "one kernel, heads shared", "dense mask, cuDNN", "dense mask, efficient"]
    )
    for mix, lengths in MIXES.items():
        lengths = [n // 16 for n in lengths] if small else lengths
        positions = torch.cat([torch.arange(n) for n in lengths]).to(device)
        row = PackedRow(positions, policy_attention.documents_of(positions[None]))
        shapes = [(1, h, len(positions), size) for h in (heads, shared, shared)]
        inputs = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]
        for variant in (*variants, "flash, one document"):
            yield f"{mix}: {variant}", partial(_passes, partial(VARIANTS[variant], row), inputs, device)
        yield f"{mix}: documents", partial(_documents, row, device)
    if not small:  # it compiles
        yield f"{mix}: flex", partial(_passes, _flex(lengths, device), inputs, device)


def _passes(attend: Callable[..., Tensor], inputs: list[Tensor], device: torch.device) -> dict[str, float]:
    def both() -> None:
        output = attend(*inputs)
        torch.autograd.grad(output, inputs, torch.ones_like(output))

    with torch.no_grad():
        forward = seconds(lambda: attend(*inputs), device)
    with peak(device) as memory:
        whole = seconds(both, device)
    return {"forward, ms": 1e3 * forward, "both, ms": 1e3 * whole, **memory}


class PackedRow(NamedTuple):
    """Positions of a row, [T], and its documents, as a batch has them for all its layers."""

    positions: Tensor
    documents: policy_attention.Documents


def _documents(row: PackedRow, device: torch.device) -> dict[str, float]:
    return {"ms a batch": 1e3 * seconds(lambda: policy_attention.documents_of(row.positions[None]), device)}


def _dense(row: PackedRow, q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend | None = None) -> Tensor:
    documents = (row.positions == 0).cumsum(0)
    mask = (documents[:, None] == documents).tril()[None, None]
    module = SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1], is_causal=True)
    with sdpa_kernel(backend) if backend else nullcontext():
        return sdpa_attention_forward(module, q, k, v, mask)[0]


def _by_document(row: PackedRow, q: Tensor, k: Tensor, v: Tensor, at_once: bool = False) -> Tensor:
    with patch.object(policy_attention, "takes_all", lambda *_: at_once):
        return policy_attention.attention_by_document(None, q, k, v, None, documents=row.documents)[0]


def _heads_shared(row: PackedRow, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The kernel for all documents, given fewer key heads than query heads, where its signature has no word for it."""
    spans = row.documents.spans
    laid = (x[0].transpose(0, 1) for x in (q, k, v))
    options = {"window_size": (-1, 0), **({"enable_gqa": True} if policy_attention.SHARES_HEADS else {})}
    return varlen_attn(*laid, spans.queries, spans.keys, *spans.longest, **options)


def _one_causal(row: PackedRow, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


VARIANTS: dict[str, Callable[..., Tensor]] = {
    "dense mask": _dense,
    "dense mask, cuDNN": partial(_dense, backend=SDPBackend.CUDNN_ATTENTION),
    "dense mask, efficient": partial(_dense, backend=SDPBackend.EFFICIENT_ATTENTION),
    "each document": _by_document,
    "one kernel": partial(_by_document, at_once=True),
    "one kernel, heads shared": _heads_shared,
    "flash, one document": _one_causal,
}


def _flex(lengths: list[int], device: torch.device) -> Callable[..., Tensor]:
    documents = torch.arange(len(lengths), device=device).repeat_interleave(torch.tensor(lengths, device=device))
    kept: list[Any] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not kept:
            mask = create_block_mask(
                lambda b, h, i, j: (i >= j) & (documents[i] == documents[j]), 1, 1, *[len(documents)] * 2, device=device
            )
            kept.extend((torch.compile(flex_attention), mask))
        return kept[0](q, k, v, block_mask=kept[1], enable_gqa=True)

    return attend


def head(small: bool) -> Measurements:
    """The head at the sizes of 7B and of Gemma 3 270M by tiles, full logits and other packages' kernels."""
    device = device_of(small)
    yield "machine", partial(machine, device)
    shapes = [(64, 900)] if small else [(3584, 152_064), (640, 262_144)]
    for hidden, ids in shapes:
        for tokens in [60] if small else [1229, 4915]:  # 30 % of 4,096 and of 16,384
            name = f"{ids:,} x {hidden}, {tokens:,} targets"
            inputs = _head_inputs(hidden, ids, tokens, device)
            exact = _exact_gradients(inputs) if tokens < 2000 else None
            for block, chunk in [(256, 32)] if small else TILES:
                yield (
                    f"{name}: tiles of {chunk:,} x {block:,}",
                    partial(_head_passes, _tiled(block, chunk), inputs, exact),
                )
            yield f"{name}: full logits", partial(_head_passes, full_logits, inputs, exact)
    if small:
        return
    for loss in (_liger, _cut):  # they compile
        for hidden, ids in shapes:
            for tokens in (1229, 4915):
                inputs = _head_inputs(hidden, ids, tokens, device)
                exact = _exact_gradients(inputs) if tokens < 2000 else None
                yield (
                    f"{ids:,} x {hidden}, {tokens:,} targets: {loss.__name__[1:]}",
                    partial(_head_passes, loss, inputs, exact),
                )


TILES = [(16_384, 1024), (16_384, 2048), (16_384, 8192), (32_768, 1024), (32_768, 4096), (65_536, 2048), (8192, 8192)]


def _head_inputs(hidden: int, ids: int, tokens: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    states = torch.randn(tokens, hidden, device=device, requires_grad=True)
    weight = (torch.randn(ids, hidden, device=device) / hidden**0.5).requires_grad_()
    return states, weight, torch.randint(ids, (tokens,), device=device)


def _exact_gradients(inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    exact = [x.detach().double().requires_grad_() for x in inputs[:2]]
    logits = exact[0] @ exact[1].T
    return [g.float() for g in torch.autograd.grad(torch.nn.functional.cross_entropy(logits, inputs[2]), exact)]


def _tiled(block: int, chunk: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def take(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return linear_logprobs(hidden, weight, targets, chunk_tokens=chunk)[0]

    take.block = block  # type: ignore[attr-defined]
    return take


def _liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return -LigerFusedLinearCrossEntropyLoss()(weight.bfloat16(), hidden.bfloat16(), targets)


def _cut(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets)


def _head_passes(
    take: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: tuple[Tensor, Tensor, Tensor], exact: list[Tensor] | None
) -> dict[str, Any]:
    device = inputs[0].device

    def forward() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return take(*inputs).mean().neg()

    def both() -> list[Tensor]:
        return list(torch.autograd.grad(forward(), inputs[:2]))

    with patch.object(logprobs, "LARGE_BLOCK", getattr(take, "block", logprobs.LARGE_BLOCK)):
        with peak(device) as memory:
            gradients = both()
        values: dict[str, Any] = dict(memory)
        if exact is not None:
            values["errors of gradients"] = [
                float((g - e).norm() / e.norm()) for g, e in zip(gradients, exact, strict=True)
            ]
        del gradients
        values["both, ms"] = 1e3 * seconds(both, device, 3)
        if hasattr(take, "block"):
            inputs[1].requires_grad_(False)
            values["frozen head, ms"] = 1e3 * seconds(lambda: torch.autograd.grad(forward(), inputs[:1]), device, 3)
            inputs[1].requires_grad_(True)
    return values


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
            order = "self_cuda_time_total" if gpu else "self_cpu_time_total"
            rows = sorted(self.profiler.key_averages(), key=lambda row: -getattr(row, order.replace("cuda", "device")))
            total = sum(getattr(row, order.replace("cuda", "device")) for row in rows)
            self.values["profile, ms"] = {
                row.key[:70]: [round(getattr(row, order.replace("cuda", "device")) / 1e3, 1), row.count]
                for row in rows[:14]
            }
            self.values["all kernels, ms"] = total / 1e3
            if gpu:
                self.values["peak, GiB"] = torch.cuda.max_memory_allocated() / 2**30


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


def _train(device: torch.device, lora: LoRA | None, checkpointing: bool, at_once: bool) -> dict[str, Any]:
    small = device.type == "cpu"
    case = Case("SRML", "small" if small else "7B", layers=2 if small else LAYERS)
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
        module = SRMLModule(init_from=f"{folder}/model", lora=lora, gradient_checkpointing=checkpointing)
        watch, options = Measured(), {**RUN, "accelerator": "cpu" if small else "gpu"}
        with patch.object(policy_attention, "takes_all", takes_all):
            trainer = Trainer(precision="bf16-mixed", max_steps=STEPS, callbacks=[watch], **options)
            trainer.fit(module, datamodule=data)
    module.policy = None
    # The last step is watched, which takes time.
    speed = sum(watch.tokens[WARM:-1]) / (watch.ends[-2] - watch.ends[WARM])
    flops = 6 * weights if lora is None else 4 * weights + 6 * adapters(case.config, RANK)
    return {"tokens/s": speed, "MFU of the layers": speed * flops / PEAK_FLOPS, **watch.values}


def decode(small: bool) -> Measurements:
    """Milliseconds of a decode step by rows of a batch, prompts read before."""
    device = device_of(small)
    yield "machine", partial(machine, device)
    tokens = 4 if small else 64
    kept: list[ScoredCausalLM] = []

    def make(shape: str) -> dict[str, int]:
        kept.clear()
        torch.manual_seed(0)
        with device:
            kept.append(ScoredCausalLM(_qwen2(small) if shape == "7B" else _gemma3(small)).eval())
        return {"parameters": sum(p.numel() for p in kept[0].parameters())}

    for shape, batches in (("7B", (2,) if small else (1, 16, 64)), ("Gemma 3 270M", (2,) if small else (64,))):
        yield f"{shape}: weights", partial(make, shape)
        for rows in batches:
            yield f"{shape}: {rows} rows", lambda rows=rows: _decoded(kept[0], rows, tokens, device)


def _qwen2(small: bool) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(Case("SRML", "small" if small else "7B", layers=2 if small else LAYERS).config)


def _gemma3(small: bool) -> Gemma3ForCausalLM:
    layers = 6 if small else 18
    config = Gemma3TextConfig(
        vocab_size=2048 if small else 262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        sliding_window=512,
        layer_types=["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)],
    )
    return Gemma3ForCausalLM(config)


def _decoded(policy: ScoredCausalLM, rows: int, tokens: int, device: torch.device) -> dict[str, float]:
    draw = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(3, 2000, (16 if device.type == "cpu" else 256 - i % 32,), generator=draw).tolist()
        for i in range(rows)
    ]

    def take(new: int) -> float:
        generator = HFGenerator(max_new_tokens=new, seed=0)
        with torch.autocast(device.type, torch.bfloat16):
            return seconds(lambda: generator(policy, prompts, stop_ids=[]), device, 2)

    short, long = take(1), take(tokens)
    return {
        "prompts, ms": 1e3 * short,
        "a step, ms": 1e3 * (long - short) / (tokens - 1),
        "tokens/s": rows * tokens / long,
    }

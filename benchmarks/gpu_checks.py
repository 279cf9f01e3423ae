"""Steps of `gpu_session` that say whether things are right on a GPU: scores, gradients, generation, strategies."""

import copy
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from benchmarks.gpu_times import device_of, machine, seconds
from benchmarks.our_side import RUN
from datamodules import XLAMSFTDataModule
from datamodules.packing import CALL, PROMPT, Encoded, PackedBatch, collate_packed
from lightning_modules import SRMLModule
from lightning_modules.generators import HFGenerator
from lightning_modules.objectives import linear_logprobs
from lightning_modules.policy import attention
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.probe import probe
from lightning_modules.rollout.batching import pack_rollouts

Measurements = Iterator[tuple[str, Callable[[], Any]]]
BASE = Path("assets/tiny-base")
IDS = 1024
LENGTHS = (70, 300, 33, 5, 1, 128, 257, 64)  # tokens of documents
PACKAGES = ("torch", "transformers", "lightning", "peft", "datasets", "triton", "liger_kernel", "cut_cross_entropy")


def versions(small: bool) -> Measurements:
    """What is there, and the rates of a matrix product and of a copy."""
    device, size = device_of(small), 256 if small else 8192
    yield "machine", partial(machine, device)
    yield "packages", lambda: {name: _version(name) for name in PACKAGES}
    yield "libraries", lambda: _libraries(device)
    yield "varlen_attn", lambda: str(signature(varlen_attn))

    def product() -> dict[str, float]:
        a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
        return {"TFLOP/s": 2 * size**3 / seconds(lambda: a @ b, device, 10) / 1e12}

    def moved() -> dict[str, float]:
        a = torch.ones(2**20 if small else 2**30, device=device, dtype=torch.uint8)
        b = torch.empty_like(a)
        return {"GB/s read and written": 2 * a.numel() / seconds(lambda: b.copy_(a), device, 10) / 1e9}

    yield "bf16 product", product
    yield "copy", moved


def correct(small: bool) -> Measurements:
    """Scores and gradients by every path against float64; probe and generation; the head; the optimizer."""
    device = device_of(small)
    yield "machine", partial(machine, device)
    for name, make in {"qwen2": qwen2, "gemma3": gemma3}.items():
        policy = make(device)
        for dtype in ("float32", "bf16-mixed"):
            yield f"{name}, {dtype}: probe", partial(_probe, policy, dtype)
            yield f"{name}, {dtype}: packed rows", partial(_packed, policy, dtype, 8 if small else 1)
            yield f"{name}, {dtype}: shared prefixes", partial(_shared, policy, dtype, 8 if small else 1)
        yield f"{name}: generation", partial(_generation, policy, 4 if small else 24)
    for dtype in ("float32", "bf16-mixed"):
        yield f"head, {dtype}", partial(_head, device, dtype, 700 if small else 40_000)
    yield "AdamW", partial(_adamw, device)
    if not small:
        for size in (64, 128, 256):
            yield f"kernels of attention, heads of {size}", partial(_kernels, device, size)


def bf16_true(small: bool) -> Measurements:
    """What `trainer.precision` makes of positions: log-probabilities along 2,000 tokens, against float32."""
    device, tokens = device_of(small), 128 if small else 2048
    yield "machine", partial(machine, device)

    def compared() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            model = qwen2(device, ids=4096).model
            # Weights that attend to places: of the usual deviation they attend to everything alike.
            for weight in (w for name, w in model.named_parameters() if "q_proj" in name or "k_proj" in name):
                weight.data.mul_(2)
            save(model, Path(folder))
            found = {
                name: _scores_under(name, Path(folder), tokens, small)
                for name in ("32-true", "bf16-mixed", "bf16-true")
            }
        exact, rotations = found.pop("32-true")
        values: dict[str, Any] = {}
        for name, (scores, own) in found.items():
            off = (scores - exact).abs().chunk(4)  # by quarters of the row
            values[name] = {"inv_freq": str(own.dtype), "mean error by quarter": [float(x.mean()) for x in off]}
            values[name]["largest error of an angle"] = float((own.double() - rotations.double()).abs().max() * tokens)
        return values

    yield "precision", compared


def nccl(small: bool) -> Measurements:
    """A few steps of the tiny model through the command line under each strategy, all of them at once."""
    yield "machine", partial(machine, device_of(small))
    names = ["fsdp2"] if small else ["gpu", "ddp", "fsdp", "fsdp2"]
    with tempfile.TemporaryDirectory() as folder:
        running = {name: _fit(name, Path(folder) / name, small) for name in names}
        for name, process in running.items():
            yield name, partial(_ended, process, Path(folder) / name)


def tests(small: bool) -> Measurements:
    """The tests that need a GPU; without one they are skipped."""
    yield "machine", partial(machine, device_of(small))
    options = ["-q", "-x", "-p", "no:cacheprovider", "tests/lightning_modules/test_fsdp1.py"]

    def run() -> dict[str, Any]:
        done = subprocess.run([sys.executable, "-m", "pytest", *options], capture_output=True, text=True)
        return {"exit code": done.returncode, "end": done.stdout[-1500:]}

    yield "test_fsdp1.py", run


def qwen2(device: torch.device, ids: int = IDS) -> ScoredCausalLM:
    """A small random model of that kind."""
    config = Qwen2Config(
        vocab_size=ids,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        initializer_range=0.08,
        tie_word_embeddings=False,
        eos_token_id=2,
    )
    return _policy(Qwen2ForCausalLM, config, device)


def gemma3(device: torch.device) -> ScoredCausalLM:
    """A small random model of that kind: heads of 256, windows of 48 tokens in all layers but one."""
    config = Gemma3TextConfig(
        vocab_size=IDS,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=48,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        initializer_range=0.08,
        eos_token_id=2,
    )
    return _policy(Gemma3ForCausalLM, config, device)


def _policy(kind: type[PreTrainedModel], config: Any, device: torch.device) -> ScoredCausalLM:
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    with device:
        return ScoredCausalLM(kind(config)).train()


def save(model: nn.Module, folder: Path) -> None:
    """A model's folder, with the tokenizer of the tiny base model."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (BASE / name).exists():
            (folder / name).write_bytes((BASE / name).read_bytes())
    model.save_pretrained(folder)


@contextmanager
def attending(policy: ScoredCausalLM, path: str) -> Iterator[None]:
    """Attention of packed rows by one of its paths: "mask", "each document" or "one kernel"."""
    policy.by_document = path != "mask"
    takes_all = (lambda *_: False) if path == "each document" else attention.takes_all
    with patch.object(attention, "takes_all", takes_all):
        yield
    policy.by_document = False


def paths(policy: ScoredCausalLM, dtype: str) -> list[str]:
    """The paths of attention that differ from each other on this device."""
    one = ["one kernel"] if policy.causal_lm.device.type == "cuda" and dtype != "float32" else []
    return ["mask", "each document", *one]


def _autocast(policy: ScoredCausalLM, dtype: str) -> torch.autocast:
    return torch.autocast(policy.causal_lm.device.type, torch.bfloat16, enabled=dtype != "float32")


def _exact(policy: ScoredCausalLM) -> ScoredCausalLM:
    return copy.deepcopy(policy).double()


def _learned(policy: ScoredCausalLM, batches: Sequence[PackedBatch], dtype: str) -> tuple[Tensor, Tensor]:
    """Log-probabilities in the order of `tokens`, and all gradients of their sum under weights, both float64."""
    policy.zero_grad()
    count = 1 + max(int(batch["tokens"].max()) for batch in batches)
    found = torch.zeros(count, dtype=torch.float64, device=policy.causal_lm.device)
    for batch in batches:
        batch = {name: tensor.to(found.device) for name, tensor in batch.items()}
        with _autocast(policy, dtype):
            scores = policy(batch["input_ids"], batch["position_ids"], batch["targets"]).logprobs
        places = batch["tokens"][batch["tokens"] >= 0]
        found[places] = scores.detach().double()
        (scores * (places % 3 - 1.2)).sum().div(count).backward()
    gradients = [p.grad.double().flatten() for p in policy.parameters() if p.grad is not None]
    return found, torch.cat(gradients)


def _errors(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> dict[str, float]:
    scores, gradient = got[0] - want[0], got[1] - want[1]
    return {
        "largest error, nats": float(scores.abs().max()),
        "mean error, nats": float(scores.abs().mean()),
        "gradient, relative": float(gradient.norm() / want[1].norm()),
    }


def _pack(prompts: list[list[int]], completions: list[list[int]], row: int, **how: bool) -> list[PackedBatch]:
    cot = [[False] * len(completion) for completion in completions]
    return pack_rollouts(prompts, completions, cot, row, 2 * row, **how)


def _compared(
    policy: ScoredCausalLM, dtype: str, alone: list[PackedBatch], packed: list[PackedBatch], among: Sequence[str]
) -> dict[str, Any]:
    """Documents in rows by paths of attention, and each alone, against each alone in float64."""
    want = _learned(_exact(policy), alone, "float32")
    values: dict[str, Any] = {"alone": _errors(_learned(policy, alone, dtype), want)}
    for path in among:
        with attending(policy, path):
            values[path] = _errors(_learned(policy, packed, dtype), want)
    return values


def _packed(policy: ScoredCausalLM, dtype: str, shrink: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, IDS, (max(2, n // shrink),), generator=draw).tolist() for n in LENGTHS]
    documents = [row[:1] for row in ids], [row[1:] for row in ids]
    alone, packed = (_pack(*documents, 512 // shrink, packed=together) for together in (False, True))
    return _compared(policy, dtype, alone, packed, paths(policy, dtype))


def _shared(policy: ScoredCausalLM, dtype: str, shrink: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, IDS, (n // shrink,), generator=draw).tolist() for n in (120, 90) for _ in range(4)]
    prompts = [prompts[i // 4 * 4] for i in range(8)]
    sizes = (90, 17, 40, 8, 64, 33, 8, 25)
    completions = [torch.randint(3, IDS, (max(1, n // shrink),), generator=draw).tolist() for n in sizes]
    alone = _pack(prompts, completions, 512 // shrink, packed=False)
    shared = _pack(prompts, completions, 512 // shrink, shared=True)
    return _compared(policy, dtype, alone, shared, paths(policy, dtype)[1:])


def _probe(policy: ScoredCausalLM, dtype: str) -> dict[str, Any]:
    with _autocast(policy, dtype):
        leak = probe(policy)
    found = {"leak": leak, "by document": policy.by_document, "shares prefixes": policy.shares_prefixes}
    policy.by_document = False
    return found


def _generation(policy: ScoredCausalLM, tokens: int) -> dict[str, Any]:
    """Greedy tokens beside those of `generate`, in float32, and whether samples depend on their batch."""
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, IDS, (n,), generator=draw).tolist() for n in (60, 17, 33, 5, 60, 80)]
    make = partial(HFGenerator, max_new_tokens=tokens, seed=0)
    policy.eval()
    with torch.no_grad():
        greedy = [rows[0].token_ids for rows in make()(policy, prompts, stop_ids=[])]
        model, same = policy.causal_lm, []
        for prompt, ids in zip(prompts, greedy, strict=True):
            given = torch.tensor([prompt], device=model.device)
            options = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            own = model.generate(given, attention_mask=torch.ones_like(given), **options)[0, len(prompt) :].tolist()
            same.append(own == ids)
        drawn = [make(temperature=1.0)(policy, prompts, n=3, stop_ids=[]) for _ in range(2)]
        few = make(temperature=1.0, token_budget=200)(policy, prompts, n=3, stop_ids=[])
    policy.train()
    return {"greedy as generate": sum(same), "of": len(same), "again": drawn[0] == drawn[1], "few": drawn[0] == few}


def _head(device: torch.device, dtype: str, ids: int) -> dict[str, float]:
    """`linear_logprobs` with bias, scale, cap, temperature and entropy, and its gradients, against float64."""
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(300, 256), torch.randn(ids, 256) / 16, torch.randn(ids) / 4
    targets = torch.randint(ids, (300,), device=device)
    inputs = [x.to(device).requires_grad_() for x in (hidden, weight, bias)]
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype != "float32"):
        options = {"temperature": 0.7, "scale": 1.3, "softcap": 9.0, "entropy": True}
        got = linear_logprobs(*inputs[:2], targets, bias=inputs[2], **options)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    logits = 9 * (1.3 * (exact[0] @ exact[1].T + exact[2]) / 9).tanh() / 0.7
    log_p = logits.log_softmax(-1)
    want = log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)
    up = torch.randn(300, device=device) / 300
    gradients = torch.autograd.grad((got[0] * up).sum() + (got[1] * up).sum(), inputs)
    wanted = torch.autograd.grad((want[0] * up).sum() + (want[1] * up).sum(), exact)
    values = {
        name: float((g - w).detach().abs().max())
        for name, g, w in zip(("log-probability", "entropy"), got, want, strict=True)
    }
    for name, g, w in zip(("hidden", "weight", "bias"), gradients, wanted, strict=True):
        values[f"gradient of {name}, relative"] = float((g - w).norm() / w.norm())
    return values


def _kernels(device: torch.device, size: int) -> dict[str, Any]:
    """Gradients of queries, keys and values by each of torch's kernels in bfloat16, relative to float64, by shape."""
    shapes = {"7 tokens": (7, 7), "100 tokens": (100, 100), "17 of 57, mask": (17, 57)}
    kernels = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)
    values: dict[str, Any] = {}
    for shape, (n, m) in shapes.items():
        torch.manual_seed(5)
        draws = [torch.randn(1, 4, tokens, size, device=device) for tokens in (n, m, m, n)]
        mask = torch.ones(n, m, dtype=torch.bool, device=device).tril_(m - n) if n < m else None
        want = _attention_gradients(draws, mask, torch.float64, SDPBackend.MATH)
        for kernel in kernels:
            try:
                got = _attention_gradients(draws, mask, torch.bfloat16, kernel)
            except RuntimeError as error:  # a kernel that does not take the shape
                values[f"{shape}, {kernel.name}"] = str(error).splitlines()[0][:80]
                continue
            values[f"{shape}, {kernel.name}"] = [
                float((g - w).norm() / w.norm()) for g, w in zip(got, want, strict=True)
            ]
    return values


def _attention_gradients(
    draws: Sequence[Tensor], mask: Tensor | None, dtype: torch.dtype, kernel: SDPBackend
) -> list[Tensor]:
    q, k, v, up = (x.to(torch.bfloat16).to(dtype) for x in draws)
    given = [x.requires_grad_() for x in (q, k, v)]
    with sdpa_kernel(kernel):
        out = scaled_dot_product_attention(*given, mask, is_causal=mask is None)
    return [x.double() for x in torch.autograd.grad(out, given, up)]


def _adamw(device: torch.device) -> dict[str, float]:
    """The fused AdamW beside a plain one in float64."""
    torch.manual_seed(0)
    start, moved = torch.randn(1000, device=device), []
    for fused, dtype in ((True, torch.float32), (False, torch.float64)):
        weight = nn.Parameter(start.to(dtype, copy=True))
        optimizer = torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.1, fused=fused)
        for step in range(10):
            weight.grad = torch.sin(weight.detach() * (step + 1))
            optimizer.step()
        moved.append(weight.detach().double() - start)
    return {"relative": float((moved[0] - moved[1]).norm() / moved[1].norm())}


class Scores(Callback):
    """What a run's model gives the tokens of one row, and its rotations, when training is about to begin."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score them, under the run's precision."""
        ids = torch.randint(3, IDS, (self.tokens,), generator=torch.Generator().manual_seed(4)).tolist()
        batch = collate_packed([Encoded(ids, [PROMPT] + [CALL] * (self.tokens - 1))], [[0]])
        given = (batch[name].to(pl_module.device) for name in ("input_ids", "position_ids", "targets"))
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            self.scores = pl_module.policy(*given).logprobs.double()
        self.rotations = next(x for name, x in pl_module.policy.named_buffers() if name.endswith("inv_freq")).clone()


def _scores_under(precision: str, folder: Path, tokens: int, small: bool) -> tuple[Tensor, Tensor]:
    data = XLAMSFTDataModule(
        tokenizer=str(folder), path="toolbox:train:8", val_fraction=0.0, max_length=1024, batch_size=8
    )
    module, scores = SRMLModule(init_from=str(folder), lora=LoRA(r=2)), Scores(tokens)
    options = {**RUN, "accelerator": "cpu" if small else "gpu"}
    Trainer(precision=precision, max_steps=1, callbacks=[scores], **options).fit(module, datamodule=data)
    return scores.scores, scores.rotations


def _fit(overlay: str, root: Path, small: bool) -> subprocess.Popen[str]:
    cpu = ["--trainer.accelerator=cpu", "--trainer.strategy.process_group_backend=gloo"] if small else []
    options = [
        "--trainer.max_steps=4",
        "--trainer.max_epochs=-1",
        "--trainer.devices=1",
        "--data.path=toolbox:train:64",
    ]
    options += ["--data.val_fraction=0", f"--model.init_from={BASE}", f"--trainer.default_root_dir={root}", *cpu]
    configs = ["--config=configs/srml.yaml", f"--config=configs/trainer/{overlay}.yaml"]
    command = [sys.executable, "-m", "lightning_modules", "fit", *configs, *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def _ended(process: subprocess.Popen[str], root: Path) -> dict[str, Any]:
    """The metrics of a run's steps."""
    said, wrong = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{said[-700:]}\n{wrong[-1200:]}")
    lines = next(root.glob("*/metrics.csv")).read_text(encoding="utf-8").splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    return {name: [float(r["value"]) for r in rows if r["name"] == name] for name in ("train/loss", "train/grad_norm")}


def _version(name: str) -> str | None:
    found = importlib.util.find_spec(name)
    return importlib.metadata.version(name.replace("_", "-")) if found else None


def _libraries(device: torch.device) -> dict[str, Any]:
    values: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count()}
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
        values |= {"driver": subprocess.run(query, capture_output=True, text=True).stdout.strip()}
        values |= {
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
            "NCCL": torch.cuda.nccl.version(),
        }
    return values

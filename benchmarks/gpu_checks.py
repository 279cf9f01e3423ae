"""Steps of `gpu_session` that try things: versions, bf16-true along a row, strategies, the tests that need a GPU."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from benchmarks.gpu_device import Measurements, device_of, machine, seconds
from benchmarks.gpu_models import BASE, IDS, config_of, policy_of, save
from benchmarks.gpu_outcomes import ENDED
from benchmarks.gpu_session import end
from benchmarks.our_side import RUN
from datamodules import XLAMSFTDataModule
from datamodules.packing import CALL, PROMPT, Encoded, collate_packed
from lightning_modules import SRMLModule
from lightning_modules.policy.lora import LoRA

GPU_TESTS = ["tests/lightning_modules/test_fsdp1.py::test_steps_clipping_checkpoints_and_export"]
TOGETHER = 60  # seconds that the runs of `nccl` have
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


def bf16_true(small: bool) -> Measurements:
    """What `trainer.precision` makes of positions: log-probabilities along 2,000 tokens, against float32."""
    device, tokens = device_of(small), 128 if small else 2048
    yield "machine", partial(machine, device)

    def compared() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            model = policy_of(config_of("qwen2", vocab_size=4096), device).model
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


def nccl(small: bool) -> Measurements:
    """A few steps of the tiny model under each strategy, all at once; on two cards, where there are, but for `gpu`."""
    yield "machine", partial(machine, device_of(small))
    names = ["fsdp2"] if small else ["gpu", "ddp", "fsdp", "fsdp2"]
    cards = {name: 1 if name == "gpu" else min(2, max(1, torch.cuda.device_count())) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        running = {name: _fit(name, cards[name], Path(folder) / name, small) for name in names}
        late = time.monotonic() + TOGETHER * (4 if small else 1)
        for name, process in running.items():
            yield name, partial(_ended, process, Path(folder) / name, cards[name], late)


def _fit(overlay: str, devices: int, root: Path, small: bool) -> subprocess.Popen[str]:
    cpu = ["--trainer.accelerator=cpu", "--trainer.strategy.process_group_backend=gloo"] if small else []
    options = [
        "--trainer.max_steps=4",
        "--trainer.max_epochs=-1",
        f"--trainer.devices={devices}",
        "--data.path=toolbox:train:64",
    ]
    options += ["--data.val_fraction=0", f"--model.init_from={BASE}", f"--trainer.default_root_dir={root}", *cpu]
    configs = ["--config=configs/srml.yaml", f"--config=configs/trainer/{overlay}.yaml"]
    command = [sys.executable, "-m", "lightning_modules", "fit", *configs, *options]
    pipe = subprocess.PIPE
    own = {name: value for name, value in os.environ.items() if name != "MASTER_PORT"}  # each finds a free one
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=own)


def _ended(process: subprocess.Popen[str], root: Path, devices: int, late: float) -> dict[str, Any]:
    """How many cards a run had, and the metrics of its steps; one that hangs is ended for those behind it."""
    try:
        said, wrong = process.communicate(timeout=max(0.1, late - time.monotonic()))
    except subprocess.TimeoutExpired:
        end(process)
        said, wrong = process.communicate()
        raise TimeoutError(f"on {devices} devices, ended late: {said[-700:]}\n{wrong[-1200:]}") from None
    if process.returncode:
        raise RuntimeError(f"on {devices} devices: {said[-700:]}\n{wrong[-1200:]}")
    lines = next(root.glob("*/metrics.csv")).read_text(encoding="utf-8").splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    found = {name: [float(r["value"]) for r in rows if r["name"] == name] for name in ("train/loss", "train/grad_norm")}
    return {"devices": devices, **found}


def tests(small: bool) -> Measurements:
    """The tests that need a GPU, each as soon as it has ended; without one they are skipped."""
    yield "machine", partial(machine, device_of(small))
    options = ["-q", "-p", "no:cacheprovider", "-p", "benchmarks.gpu_outcomes", *GPU_TESTS]
    shown, pipe = os.environ | {"FUNREASON_GPU_TESTS": "1"}, subprocess.PIPE
    command = [sys.executable, "-m", "pytest", *options]
    process = subprocess.Popen(command, env=shown, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    said: list[str] = []
    try:
        for line in process.stdout or ():
            if line.startswith(ENDED):
                name, value = json.loads(line.removeprefix(ENDED))
                yield name, lambda value=value: value
            else:
                said.append(line)
        yield "pytest", lambda: _pytest_end(process.wait(), "".join(said))
    finally:
        process.kill()


def _pytest_end(code: int, said: str) -> dict[str, Any]:
    """What pytest said at its end, which is an error where it is not about tests that failed."""
    if code not in (0, 1):  # 1: some of them have failed
        raise RuntimeError(f"pytest ended with exit code {code}: {said[-1500:]}")
    return {"exit code": code, "end": said[-1500:]}

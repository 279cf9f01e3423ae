"""Training steps of a 7B shape on one GPU: peak memory against the estimate, tokens per second, share of peak FLOPs.

Command: python -m benchmarks.gpu_step; `--small` tries the whole path with a tiny shape on the CPU and records nothing.
A row is recorded as soon as it is measured, and one that fails says so in its place.
"""

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from benchmarks.record import record
from benchmarks.sharded_step import Case
from lightning_modules.callbacks.files import ExportHF
from lightning_modules.callbacks.memory import adapters
from lightning_modules.policy.precision import LEAST_RATE

STEPS, WARM = 25, 5  # the rates are those of the last 20
PEAK_FLOPS = 989e12  # of an H100 or H200, dense, bfloat16
RANK = 16
KINDS = {  # options of the command line, by what is trained
    f"adapters of rank {RANK}, bf16-mixed": [f"--model.lora.r={RANK}", "--trainer.precision=bf16-mixed"],
    "all weights, bf16-true": ["--trainer.precision=bf16-true", f"--model.learning_rate={LEAST_RATE}"],  # as it must be
}
DATA = ["--data.path=toolbox:train:1600", "--data.batch_size=64", "--data.max_length=4096", "--data.val_fraction=0"]
BRIEF = [f"--trainer.max_steps={STEPS}", "--trainer.max_epochs=-1"]
BRIEF += ["--trainer.callbacks+=benchmarks.gpu_step.NothingKept"]
BASE = Path("assets/tiny-base")
COLUMNS = ("trained", "overlay", "peak, GiB", "estimate, GiB", "ratio", "tokens per second", "MFU")
FAILED = "failed: "
REASON = 200  # characters of it in a row


class NothingKept(Callback):
    """Takes checkpoints and export out of a run: they are not measured, and of a 7B model some 60 GB."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave them out from here on, also where the run fails."""
        trainer.callbacks = [each for each in trainer.callbacks if not isinstance(each, ModelCheckpoint | ExportHF)]


def model_folder(case: Case, folder: Path) -> int:
    """A config.json, which stands for random weights, and the tokenizer of the tiny base model.

    Returns:
        The number of weights in its decoder layers, without norms and biases.
    """
    shutil.copytree(BASE, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.py", "*.md", "config.json"))
    config = case.config
    eos = json.loads((BASE / "config.json").read_text(encoding="utf-8"))["eos_token_id"]
    config.update({"architectures": ["Qwen2ForCausalLM"], "eos_token_id": eos, "pad_token_id": None})
    config.save_pretrained(folder)
    hidden, key = config.hidden_size, config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    return config.num_hidden_layers * (2 * hidden * (hidden + key) + 3 * hidden * config.intermediate_size)


def run(model: Path, overlay: str, options: list[str], root: Path) -> tuple[dict[str, float], float]:
    """Train through the command line; the last metrics of each name, and the estimate in GiB.

    Raises:
        RuntimeError: The run failed, or said nothing of memory or metrics; all that it printed.
    """
    configs = ["--config=configs/srml.yaml", f"--config=configs/trainer/{overlay}.yaml"]
    options = [*options, f"--model.init_from={model}", "--trainer.devices=1", f"--trainer.default_root_dir={root}"]
    command = [sys.executable, "-m", "lightning_modules", "fit", *configs, *DATA, *BRIEF, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    guess = re.search(r"memory +about ([\d.,]+) (GiB|MiB)", done.stdout)
    logged = next(root.glob("*/metrics.csv"), None)
    if done.returncode or not guess or not logged:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    with logged.open(encoding="utf-8") as file:
        metrics = {row["name"]: float(row["value"]) for row in csv.DictReader(file)}
    return metrics, float(guess[1].replace(",", "")) / (1 if guess[2] == "GiB" else 1024)


def measured(kind: str, overlay: str, case: Case, options: list[str]) -> list[str]:
    """A row of the table, with the last line of what a run said where it failed."""
    with tempfile.TemporaryDirectory() as scratch:
        weights = model_folder(case, Path(scratch) / "model")
        try:
            metrics, guess = run(Path(scratch) / "model", overlay, [*KINDS[kind], *options], Path(scratch) / "runs")
        except RuntimeError as error:
            print(error, file=sys.stderr, flush=True)
            reason = str(error).strip().splitlines()[-1][:REASON].replace("|", "/")
            return [kind, overlay, f"{FAILED}{reason}", *[""] * (len(COLUMNS) - 3)]
    # A product costs 2 FLOPs a weight in the forward pass, 2 for the gradient of its input and 2 for that of the weight
    # if it learns. What is computed again does not count, nor do attention and the head.
    flops = 4 * weights + 6 * adapters(case.config, RANK) if "adapters" in kind else 6 * weights
    peak = metrics.get("perf/peak_mem_gb", 0) * 1e9 / 2**30
    speed = metrics["perf/tokens_per_s"]
    row = [f"{peak:.1f}", f"{guess:.1f}", f"{guess / peak:.2f}" if peak else "-", f"{speed:,.0f}"]
    return [kind, overlay, *row, f"{speed * flops / PEAK_FLOPS:.1%}" if peak else "-"]


def record_each(names: Iterable[tuple[str, str]], case: Case, device: str) -> int:
    """Measure rows, and record the table again with each.

    Returns:
        1 if one of them failed.
    """
    rows: list[list[str]] = []
    for kind, overlay in names:
        rows.append(measured(kind, overlay, case, []))
        record(
            "Steps of a 7B shape on one GPU",
            COLUMNS,
            rows,
            f"{device}. SRML on random weights of the shape of Qwen2.5-Coder-7B through `funreason fit`, one device, "
            "gradient checkpointing, 64 rows of the shipped corpus a step in rows of 4,096 tokens, two at a time; "
            f"rates are those of {STEPS - WARM} steps after {WARM}. The peak is `torch.cuda.max_memory_allocated`, the "
            f"estimate what the run prints at its start. MFU is of {PEAK_FLOPS / 1e12:.0f} TFLOPs (H100 and H200) and "
            "counts the products of the decoder layers: neither attention nor the head nor what is computed again.",
        )
    return int(any(row[2].startswith(FAILED) for row in rows))


def main() -> int:
    """Measure every row and record it; 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_step", description=__doc__)
    parser.add_argument("--small", action="store_true", help="try the path with a tiny shape on the CPU")
    if parser.parse_args().small:
        cpu = ["--trainer.accelerator=cpu", "--trainer.strategy.process_group_backend=gloo", "--data.max_length=1024"]
        rows = [measured(kind, "fsdp2", Case("SRML", "small"), cpu) for kind in KINDS]
        print("\n".join(" | ".join(row) for row in rows))
        return int(any(row[2].startswith(FAILED) for row in rows))
    if not torch.cuda.is_available():
        parser.error("there is no GPU here to measure; --small tries the path on the CPU")
    names = [(kind, overlay) for kind in KINDS for overlay in ("fsdp", "fsdp2")]
    return record_each(names, Case("SRML", "7B"), torch.cuda.get_device_name())


if __name__ == "__main__":
    sys.exit(main())

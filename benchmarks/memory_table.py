"""Memory of a GPU by model, method and number of GPUs, as a run estimates it: the table in docs/multi_node.md.

Command: python -m benchmarks.memory_table writes it there, and what the papers' recipes say of their hardware.
"""

import re
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedConfig, Qwen3Config

from benchmarks.sharded_step import Case
from lightning_modules.callbacks import plan as planning
from lightning_modules.callbacks.cheaper import with_engine
from lightning_modules.callbacks.memory import Plan, estimate, has_room
from lightning_modules.cli import FunReasonCLI
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import ScoredCausalLM, build_policy

GIB = 2**30
CONFIGS = Path(__file__).parents[1] / "configs"
USABLE = {80: 79 * GIB, 141: 139 * GIB}
"""Bytes that torch finds on a GPU of so many GB: H100 and H200."""
QWEN3 = partial(Qwen3Config, vocab_size=151936, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True)
QWEN3_06B = QWEN3(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16)
QWEN3_4B = QWEN3(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32)
MODELS: dict[str, PreTrainedConfig] = {"Qwen3-0.6B": QWEN3_06B, "Qwen3-4B": QWEN3_4B}
MODELS |= {f"Qwen2.5-{size}": Case("SRML", size).config for size in ("7B", "32B", "72B")}
METHODS = {
    "SRML, LoRA": ("finetune.yaml",),
    "SRML, all weights": ("finetune.yaml", "paper/funreason.yaml"),
    "EGPO, LoRA": ("rl.yaml",),
    "EGPO, all weights": ("rl.yaml", "paper/egpo.yaml"),
}
HARDWARE = re.compile(
    r"^# Hardware: (\d+) GPUs of (\d+) GB with configs/(\S+) after this file, about (\d+) GiB of each by the estimate",
    re.M,
)
TRAINED = {"Qwen/Qwen2.5-Coder-7B-Instruct": "Qwen2.5-7B", "Qwen/Qwen3-4B-Instruct-2507": "Qwen3-4B"}
DOCS = CONFIGS.parent / "docs/multi_node.md"
TABLE = re.compile(r"^\| model \| method .*\n(?:\|.*\|\n)*\|.*\|$", re.M)
GPUS = {1: "trainer/gpu.yaml", 8: "trainer/fsdp2.yaml", 32: "trainer/fsdp2.yaml"}


EMPTY: dict[tuple[str, LoRA | None], ScoredCausalLM] = {}
"""Models without weights that were built, by config and adapters: the large ones take seconds."""


def built(config: PreTrainedConfig, init_from: str, lora: LoRA | None = None, **options: Any) -> ScoredCausalLM:
    """`build_policy`, once for each model and kind of adapters."""
    key = (str(config), lora)
    if key not in EMPTY:
        EMPTY[key] = build_policy(init_from, lora=lora, **options)
    EMPTY[key].by_document = False
    return EMPTY[key]


@cache
def built_run(*files: str) -> FunReasonCLI:
    """Module, data and trainer of a run of these files on rows that are not there."""
    given = ("model.init_from=MODEL", "data.path=ROWS", "trainer.accelerator=cpu", "trainer.devices=1")
    return FunReasonCLI([*(f"--config={CONFIGS / file}" for file in files), *(f"--{one}" for one in given)], run=False)


def plan(files: Sequence[str], config: PreTrainedConfig, gpus: int, memory: int) -> Plan:
    """What a run of these files plans on so many GPUs, with rows as long as it takes.

    Args:
        files: Below `configs/`.
        config: Of the model.
        gpus: In nodes of 8.
        memory: Bytes of one.
    """
    with TemporaryDirectory() as folder:
        config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
        config.save_pretrained(folder)
        cli = built_run(*files)
        module, data = cli.model, cli.datamodule
        module.init_from = folder
        data.lengths, data.train_indices = np.array([data.hparams[data.LIMIT]]), np.arange(1)
        data.val_rows = SimpleNamespace(table=Dataset.from_dict({"prompt_tokens": data.lengths}))
        data.val_indices = np.zeros(data.hparams.eval_batch_size, dtype=int)
        module._device = torch.device("cuda", 0)  # one that nobody asks for
        settings = {"datamodule": data, "strategy": cli.trainer.strategy, "precision": cli.trainer.precision}
        trainer = SimpleNamespace(world_size=gpus, num_devices=min(gpus, 8), limit_val_batches=1.0, **settings)
        with (
            patch.object(planning, "device_memory", lambda *_: memory),
            patch.object(planning, "build_policy", partial(built, config)),
        ):
            return planning.plan_ahead(trainer, module)


def cell(plan: Plan, memory: int) -> str:
    """GiB of a GPU, with vLLM where a whole copy of the weights does not fit; in brackets where nothing does."""
    engine, shared = "", with_engine(plan, memory)
    if plan.fsdp and not has_room(plan, memory) and estimate(shared).peak < estimate(plan).peak:
        plan, engine = shared, ", vLLM"
    text = f"{estimate(plan).peak / GIB:.0f}{engine}"
    return text if has_room(plan, memory) else f"({text})"


def table() -> str:
    """The table in Markdown."""
    memory = USABLE[80]
    heads = ["model", "method", *(f"{n} GPU{'s' * (n > 1)}" for n in GPUS), "tokens a step"]
    lines = [heads, ["---"] * len(heads)]
    for model, config in MODELS.items():
        for method, files in METHODS.items():
            plans = [plan([*files, overlay], config, n, memory) for n, overlay in GPUS.items()]
            tokens = f"{plans[0].tokens:,} a GPU"
            lines.append([model, method, *(cell(one, memory) for one in plans), tokens])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def papers() -> dict[str, str]:
    """The recipes' texts by file below `configs/`, with the estimate on the hardware that each names."""
    found = {}
    for path in sorted((CONFIGS / "paper").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if named := HARDWARE.search(text):
            gpus, size, overlay, said = named.groups()
            (before,) = re.findall(r"--config configs/(\S+) --config", text)[:1]
            model = MODELS[TRAINED[re.search(r"^    init_from: (\S+)", text, re.M)[1]]]
            memory = USABLE[int(size)]
            planned = plan([before, f"paper/{path.name}", overlay], model, int(gpus), memory)
            peak = estimate(planned).peak
            if not has_room(planned, memory):
                raise ValueError(f"{path} does not fit on the hardware that it names: {peak / GIB:.1f} GiB")
            text = text.replace(named[0], named[0].replace(f"about {said} GiB", f"about {peak / GIB:.0f} GiB"))
            found[f"paper/{path.name}"] = text
    return found


def main() -> None:
    """Write the table and the recipes' lines."""
    for name, text in papers().items():
        (CONFIGS / name).write_text(text, encoding="utf-8")
    text = DOCS.read_text(encoding="utf-8")
    DOCS.write_text(TABLE.sub(lambda _: table(), text), encoding="utf-8")


if __name__ == "__main__":
    main()

"""TRL's side of the benchmarks, run in an environment of its own: `python -P benchmarks/trl_side.py JOB RESULT`.

It imports nothing of this project. Rows come as token ids, packed.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

IGNORED = -100


class Clock(TrainerCallback):
    """Times at which optimizer steps ended, and what they logged."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.logged: list[dict[str, float]] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Note the end of a step."""
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Keep what is logged of a step."""
        self.logged.append(logs)


def packed_rows(rows: list[list[tuple[list[int], int]]]) -> list[dict[str, list[int]]]:
    """Rows of documents, each its ids and the length of its prompt, as TRL's packing leaves them."""
    return [
        {
            "input_ids": [i for ids, _ in row for i in ids],
            "labels": [i for ids, prompt in row for i in [IGNORED] * prompt + ids[prompt:]],
            "seq_lengths": [len(ids) for ids, _ in row],
        }
        for row in rows
    ]


def settings(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """What both trainers are told: AdamW at a constant rate on the CPU, and nothing beside the steps."""
    return {
        "output_dir": folder,
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": job["bf16"],
        "gradient_checkpointing": False,
        "model_init_kwargs": {"dtype": "float32"},
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def lora(job: dict[str, Any]) -> LoraConfig | None:
    """Adapters as ours have them."""
    rank = job["lora"]
    options = {"lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return LoraConfig(r=rank, **options) if rank else None


def sft(job: dict[str, Any]) -> dict[str, Any]:
    """Take a step on each of `job["packed"]`; the seconds of each but the first, and the first loss.

    Packed as `bfd` does, without padding: transformers' mask keeps the documents apart by their positions, for which
    no flash attention is needed. Rows of one forward pass are laid end to end.
    """
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            max_steps=len(job["packed"]),
            per_device_train_batch_size=job["rows_together"],
            gradient_accumulation_steps=len(job["packed"][0]) // job["rows_together"],
            max_length=job["max_length"],
            packing=True,
            packing_strategy="bfd",
            train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
            **settings(job, folder),
        )
        rows = Dataset.from_list(packed_rows([row for step in job["packed"] for row in step]))
        SFTTrainer(job["model"], config, train_dataset=rows, peft_config=lora(job), callbacks=[clock]).train()
    seconds = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    return {"seconds": seconds, "loss": clock.logged[0]["loss"]}


def main() -> None:
    """Do the job of a file, and write the result to another."""
    given, made = map(Path, sys.argv[1:])
    job = json.loads(given.read_text(encoding="utf-8"))
    torch.manual_seed(0)
    result = {"sft": sft}[job["kind"]](job)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    made.write_text(json.dumps(result | {"versions": versions}), encoding="utf-8")


if __name__ == "__main__":
    main()

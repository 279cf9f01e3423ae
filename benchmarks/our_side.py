"""Our side of the benchmarks against TRL, with Lightning's Trainer: `python -m benchmarks.our_side JOB RESULT`."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from datamodules import XLAMPromptDataModule, XLAMSFTDataModule
from datamodules.encoding import encoded_prompts
from datamodules.loading import PromptBatch, epoch_order
from lightning_modules import GRPOModule, SRMLModule
from lightning_modules.commands.quiet import be_quiet
from lightning_modules.generators import HFGenerator
from lightning_modules.objectives import EntropyBonus, PolicyLoss
from lightning_modules.policy.lora import LoRA
from lightning_modules.rollout.sampling import Sampling

RUN = {  # of a trainer: nothing beside the steps
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "limit_val_batches": 0,
}
LEARNING = {"schedule": "constant", "warmup_ratio": 0.0}


class Clock(Callback):
    """Times at which optimizer steps ended, and what they logged."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Note the end of a step."""
        self.ends.append(time.perf_counter())
        self.logged.append(pl_module.logged)


class StepsOfRows(XLAMSFTDataModule):
    """Trains on the rows of each of `steps` in turn, whatever the order of an epoch is."""

    steps: list[list[int]]

    def setup(self, stage: str) -> None:
        """See `XLAMDataModule.setup`."""
        super().setup(stage)
        rows = [row for step in self.steps for row in step]
        self.train_indices = np.zeros(len(rows), dtype=int)
        self.train_indices[epoch_order(len(rows), self.hparams.seed, 0)] = rows


def data_options(job: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the data module that reads a job's rows, all of them to train on."""
    return {
        "tokenizer": job["model"],
        "path": job["rows"],
        "val_fraction": 0.0,
        "on_bad_row": "skip",
        "seed": 0,
        "max_length": job["max_length"],
        "micro_batch_tokens": job["max_length"] * job["rows_together"],
    }


def sft(job: dict[str, Any]) -> dict[str, Any]:
    """Take a step on the rows of each of `job["steps"]`; the seconds of each but the first, losses, trained weights."""
    data, clock = StepsOfRows(**data_options(job), batch_size=len(job["steps"][0])), Clock()
    data.steps = job["steps"]
    lora = LoRA(r=job["lora"]) if job["lora"] else None
    rate = job["learning_rate"]
    module = SRMLModule(init_from=job["model"], balance=job["balance"], lora=lora, learning_rate=rate, **LEARNING)
    precision = "bf16-mixed" if job["bf16"] else "32-true"
    Trainer(precision=precision, max_steps=len(job["steps"]), callbacks=[clock], **RUN).fit(module, datamodule=data)
    losses = [metrics["train/loss"] for metrics in clock.logged]
    trained = sum(p.numel() for p in module.policy.parameters() if p.requires_grad)
    return {"seconds": np.diff(clock.ends).tolist(), "losses": losses, "trained": trained}


class WarmUpAndStep(XLAMPromptDataModule):
    """Hands out some of the rows twice: first with their prompts cut short."""

    chosen: list[int]
    warm_prompt: int

    def train_dataloader(self) -> DataLoader:
        """See `XLAMPromptDataModule.train_dataloader`."""
        examples, prompts = self.rows.examples(self.chosen), encoded_prompts(self.rows, self.chosen)
        cut = [ids[: self.warm_prompt] for ids in prompts]
        return DataLoader([PromptBatch(examples, cut), PromptBatch(examples, prompts)], batch_size=None)


class FixedLength(Clock):
    """Lets every completion have the same number of tokens: `warm_tokens` in the first step and then `tokens`."""

    def __init__(self, warm_tokens: int, tokens: int) -> None:
        super().__init__()
        self.lengths = [warm_tokens, tokens]

    def on_train_batch_start(self, trainer: Trainer, pl_module: GRPOModule, batch: Any, batch_idx: int) -> None:
        """Set the number of tokens."""
        pl_module.stop_ids = []
        pl_module.generator.max_new_tokens = self.lengths[batch_idx]


def parity(completion: str, tools: str, answers: str) -> float:
    """A reward that differs inside groups, whatever the model says."""
    return float(len(completion) % 2)


def prompt_options(job: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the data module that reads a job's prompts."""
    return {"tokenizer": job["model"], "path": job["rows"], "val_fraction": 0.0, "on_bad_row": "skip", "seed": 0}


def grpo(job: dict[str, Any]) -> dict[str, Any]:
    """Take a short step and one on all of `job["chosen"]`; seconds of the latter by phase."""
    data = WarmUpAndStep(**prompt_options(job), prompts_per_step=len(job["chosen"]))
    data.chosen, data.warm_prompt = job["chosen"], job["warm_prompt"]
    clock = FixedLength(job["warm_tokens"], job["tokens"])
    module = GRPOModule(
        init_from=job["model"],
        sampling=Sampling(group_size=job["group_size"], temperature=1.0),
        generator=HFGenerator(max_new_tokens=job["tokens"]),
        rewards={"parity": parity},
        reward_timeout=None,
        entropy_bonus=EntropyBonus() if job["egpo"] else EntropyBonus(scale=0.0),
        loss=PolicyLoss(kl_coef=job["kl_coef"]),
        learning_rate=job["learning_rate"],
        **LEARNING,
    )
    trainer = Trainer(precision="bf16-mixed" if job["bf16"] else "32-true", max_steps=2, callbacks=[clock], **RUN)
    trainer.fit(module, datamodule=data)
    logged, rollouts = clock.logged[1], module.rollouts
    names = {"generate": "time/generate", "old": "time/old_logprob", "reference": "time/ref_logprob"}
    names |= {"update": "time/update", "entropy": "policy/entropy", "kl": "policy/kl"}
    tokens = {"prompt": job["group_size"] * sum(map(len, job["prompts"]))}
    tokens["completion"] = sum(len(rollout.token_ids) for rollout in rollouts)
    found = {name: logged.get(metric, 0.0) for name, metric in names.items()}
    return {"step": clock.ends[1] - clock.ends[0], **found, "tokens": tokens}


def main() -> None:
    """Do the job of a file, and write the result to another."""
    given, made = map(Path, sys.argv[1:])
    job = json.loads(given.read_text(encoding="utf-8"))
    be_quiet()
    torch.manual_seed(0)
    result = {"sft": sft, "grpo": grpo}[job["kind"]](job)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    made.write_text(json.dumps(result | {"versions": versions}), encoding="utf-8")


if __name__ == "__main__":
    main()

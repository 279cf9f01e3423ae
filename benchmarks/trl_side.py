"""TRL's side of the benchmarks, run in an environment of its own: `python -P benchmarks/trl_side.py JOB RESULT`.

It imports nothing of this project. Rows come as token ids, packed as TRL's own packing leaves them.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer


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
    """Take a step on each of `job["packed"]`; the seconds of each but the first, losses, trained weights.

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
        rows = Dataset.from_list([row for step in job["packed"] for row in step])
        trainer = SFTTrainer(job["model"], config, train_dataset=rows, peft_config=lora(job), callbacks=[clock])
        trainer.train()
    seconds = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    losses = [logs["loss"] for logs in clock.logged if "loss" in logs]
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return {"seconds": seconds, "losses": losses, "trained": trained}


class TimedGRPOTrainer(GRPOTrainer):
    """GRPO on prompts that are token ids already, with the seconds of each phase; the first step has few tokens."""

    ids: list[list[int]]
    warm_prompt: int
    warm_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seconds: dict[str, float] = {}
        super().__init__(*args, **kwargs)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        cut = None if self.state.global_step else self.warm_prompt
        return [self.ids[int(prompt)][:cut] for prompt in prompts], None, {}

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        tokens = self.max_completion_length if self.state.global_step else self.warm_tokens
        self.generation_config.min_new_tokens = self.generation_config.max_new_tokens = tokens  # nothing ends early
        with self._timed("generate"):
            return super()._generate_single_turn(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        with self._timed("reference" if model is self.ref_model else "old"):
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.seconds.clear()  # of the step before
        with self._timed("rollout"):
            made = super()._generate_and_score_completions(inputs)
        self.tokens = {name: int(made[f"{name}_mask"].sum()) for name in ("prompt", "completion")}
        return made

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def parity(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """A reward that differs inside groups, whatever the model says."""
    return [float(sum(ids) % 2) for ids in completion_ids]


def grpo(job: dict[str, Any]) -> dict[str, Any]:
    """Take a short step and one on all of `job["prompts"]`; seconds of the latter by phase.

    One optimizer step per batch of rollouts, so that TRL takes the policy's own log-probabilities as the old ones.
    """
    prompts, group, clock = job["prompts"], job["group_size"], Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            max_steps=2,
            per_device_train_batch_size=group,
            gradient_accumulation_steps=len(prompts),
            num_generations=group,
            max_completion_length=job["tokens"],
            temperature=1.0,
            beta=job["kl_coef"],
            num_iterations=1,
            shuffle_dataset=False,
            **settings(job, folder),
        )
        rows = Dataset.from_dict({"prompt": [str(i) for i in range(len(prompts))]})
        trainer = TimedGRPOTrainer(job["model"], parity, config, train_dataset=rows, callbacks=[clock])
        trainer.ids, trainer.warm_prompt, trainer.warm_tokens = prompts, job["warm_prompt"], job["warm_tokens"]
        trainer.train()
    seconds, step = trainer.seconds, clock.ends[1] - clock.ends[0]
    phases = {phase: seconds.get(phase, 0.0) for phase in ("generate", "old", "reference")}
    logged = {"entropy": clock.logged[1]["entropy"], "kl": clock.logged[1]["kl"]}
    return {"step": step, "update": step - seconds["rollout"], **phases, **logged, "tokens": trainer.tokens}


def main() -> None:
    """Do the job of a file, and write the result to another."""
    given, made = map(Path, sys.argv[1:])
    job = json.loads(given.read_text(encoding="utf-8"))
    torch.manual_seed(0)
    result = {"sft": sft, "grpo": grpo}[job["kind"]](job)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    made.write_text(json.dumps(result | {"versions": versions}), encoding="utf-8")


if __name__ == "__main__":
    main()

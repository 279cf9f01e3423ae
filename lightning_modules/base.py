"""What modules that train a function-calling model share: weights, optimizer, clipping, evaluation by generation."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Self

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerFast

from datamodules.chat.form import ChatForm
from datamodules.chat.segments import load_tokenizer
from datamodules.packing import IGNORED, Encoded, PackedBatch, collate_packed, idle_batch, micro_batches
from datamodules.prompts import PromptBatch
from datamodules.xlam import Example
from lightning_modules.checkpointing.formats import (
    check_same_model,
    fingerprint,
    fingerprint_of,
    group_names,
    optimizer_state_to_names,
    optimizer_state_to_places,
)
from lightning_modules.generators import Completion, Generator, HFGenerator
from lightning_modules.metrics import CallAccuracy, Rollout, TargetLoss, Throughput
from lightning_modules.policy.generation_config import stop_ids
from lightning_modules.policy.model import LoRA, ScoredCausalLM, build_policy
from lightning_modules.policy.precision import check_precision
from lightning_modules.policy.probe import failing_together, probe_everywhere
from lightning_modules.policy.unshard import FSDP1_PREFIX, is_sharded, unshard, unsharded_copy
from lightning_modules.strategies import FSDP1, FSDP2
from rewards import FunctionCallReward

SANITY_ROWS = 2  # validated on, over all ranks, before the first step
SCORED_TOKENS = 8192  # of a forward pass that scores references, padding included


def check_numbers(**settings: tuple[Any, bool, str]) -> None:
    """Refuse settings of a module that are out of their range.

    Args:
        settings: By name the value, whether it can be used (NaN never can), and what is wanted.

    Raises:
        ValueError: Naming the first that cannot.
    """
    for name, (value, usable, wanted) in settings.items():
        if not usable:
            raise ValueError(f"model.{name} is {value}; give {wanted}.")


class FunctionCallingModule(LightningModule):
    """A causal language model, its optimizer, and validation, test and prediction by generation.

    Optimisation is manual: one `training_step` is one optimizer step. Subclasses give `training_step`.

    Args:
        init_from: Where the weights come from: a run folder (its `hf/`), a Hugging Face folder or a hub id.
        lora: Train low-rank adapters of these settings instead of all weights.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        attn_implementation: Attention kernel, by its name in transformers: "sdpa", "eager", "flash_attention_2".
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Decay of matrices; norms, biases and other vectors never decay.
        betas: AdamW's averaging coefficients.
        epsilon: Added to AdamW's root of squared gradients. Above the gradients of tokens that no row holds, it keeps
            their embeddings where they are; AdamW would move them as fast as all others.
        warmup_ratio: Share of the optimizer steps over which the rate climbs linearly.
        schedule: What the rate does then: "cosine" lets it fall to 0 at the last step, "constant" keeps it.
        max_grad_norm: Gradients are scaled down to at most this norm.
        generator: Samples completions in validation, test and predict; greedy, 256 tokens at most, when None.
        reward: Judges completions; the strict reward when None.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        init_from: str,
        lora: LoRA | None = None,
        gradient_checkpointing: bool = False,
        attn_implementation: str = "sdpa",
        learning_rate: float = 4e-5,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        warmup_ratio: float = 0.05,
        schedule: Literal["cosine", "constant"] = "cosine",
        max_grad_norm: float = 1.0,
        generator: Generator | None = None,
        reward: FunctionCallReward | None = None,
    ) -> None:
        super().__init__()
        check_numbers(
            learning_rate=(learning_rate, 0 <= learning_rate < math.inf, "a number from 0 up"),
            weight_decay=(weight_decay, 0 <= weight_decay < math.inf, "a number from 0 up"),
            betas=(betas, all(0 <= beta < 1 for beta in betas), "two numbers from 0 to below 1"),
            epsilon=(epsilon, 0 <= epsilon < math.inf, "a number from 0 up"),
            warmup_ratio=(warmup_ratio, 0 <= warmup_ratio <= 1, "a number from 0 to 1"),
            max_grad_norm=(max_grad_norm, max_grad_norm > 0, "a number greater than 0"),
        )
        self.automatic_optimization = False
        self.init_from = init_from
        self.lora = lora
        self.gradient_checkpointing = gradient_checkpointing
        self.attn_implementation = attn_implementation
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = betas
        self.epsilon = epsilon
        self.warmup_ratio = warmup_ratio
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.generator = generator or HFGenerator(max_new_tokens=256)
        self.reward = reward or FunctionCallReward()
        self.paying: list[Callable[..., Any]] = [self.reward]  # all that completions earn rewards from
        self.accuracy = CallAccuracy()
        self.target_loss = TargetLoss()
        self.policy: ScoredCausalLM | None = None
        self.packed, self.why_not_packed = True, ""  # whether documents share a row; set when the model is loaded
        self.sizes_of_weights: dict[str, torch.Size] = {}  # of the policy, before any strategy cuts it into shards
        self.generating: tuple[ScoredCausalLM, ...] = ()  # what evaluations generate with, hidden from torch
        self.derived_hash = ""  # see `derived_fingerprint`
        self.logged: dict[str, float] = {}  # what was logged last, for callbacks
        self.throughput = Throughput()

    @property
    def method(self) -> str:
        """What the module does, as its runs' folders and TensorBoard name it."""
        return type(self).__name__.removesuffix("Module").lower()

    def setup(self, stage: str) -> None:
        """Validate the settings before any weight is loaded.

        Raises:
            ValueError: See `check_precision`.
        """
        rate = self.learning_rate if stage == "fit" else None
        check_precision(str(self.trainer.precision), self.lora is not None, rate, isinstance(self.strategy, FSDP1))

    def configure_model(self) -> None:
        """Load tokenizer and weights, once; Lightning calls this when strategy, device and precision are known."""
        if self.policy is not None:
            return
        with failing_together():
            self.tokenizer = self.load_tokenizer()
            policy = build_policy(
                self.init_from,
                lora=self.lora,
                gradient_checkpointing=self.gradient_checkpointing,
                attn_implementation=self.attn_implementation,
                dtype=torch.get_default_dtype(),  # float32, or what `trainer.precision` *-true has set
                empty=isinstance(self.strategy, FSDP2) and self.strategy.global_rank > 0,  # it sends them the weights
            )
        self.stop_ids = stop_ids(self.tokenizer, policy.causal_lm.generation_config)
        self.sizes_of_weights = {name: weight.shape for name, weight in policy.state_dict().items()}
        self.choose_packing(policy)
        self.place(policy)

    def load_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the model, with the chat template of the run's data."""
        data = getattr(self._trainer, "datamodule", None)
        own = getattr(data, "chat_template", None)  # of data that save no hyperparameters
        return load_tokenizer(self.init_from, getattr(data, "hparams", {}).get("chat_template", own))

    @property
    def fitting(self) -> bool:
        """Whether a trainer is training it."""
        return self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING

    @property
    def form(self) -> ChatForm | None:
        """How the run's data put requests and want them answered; None for data that have no such form."""
        return getattr(getattr(self._trainer, "datamodule", None), "form", None)

    def choose_packing(self, policy: ScoredCausalLM) -> None:
        """Let documents share rows, as `data.packing` says and the loaded model allows.

        Raises:
            ValueError: If `data.packing` is on and the model does not keep documents apart, or its scores are not its
                own.
        """
        trainer = self._trainer
        wanted = getattr(getattr(trainer, "datamodule", None), "hparams", {}).get("packing", "auto")
        mixed = trainer is not None and trainer.precision == "bf16-mixed"
        leak = probe_everywhere(policy, self.strategy, mixed)
        if leak and wanted == "on":
            raise ValueError(
                f"data.packing is on, but {self.init_from} (model_type {policy.causal_lm.config.model_type}) does not "
                f"keep documents apart: {leak}. Set data.packing to auto."
            )
        self.packed = policy.packed = wanted != "off" and not leak
        self.why_not_packed = leak if wanted == "auto" else "data.packing is off"

    def rows_of_documents(self) -> str:
        """How documents lie in rows, and why, for the table at the start of a run."""
        return "packed" if self.packed else f"one document per row, because {self.why_not_packed}"

    def place(self, policy: ScoredCausalLM) -> None:
        """Take up the model that was loaded, in shards if the strategy says so."""
        self.policy = self.shard(policy)

    def shard(self, policy: ScoredCausalLM) -> ScoredCausalLM:
        """The model as the strategy keeps it; a root of its own shards, where there are any."""
        return self.strategy.shard(policy) if isinstance(self.strategy, FSDP1 | FSDP2) else policy

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the module to a device; dtypes stay what `configure_model` has given each tensor.

        Under `trainer.precision` *-true Lightning asks for a dtype of everything, which would round what loading has
        kept in float32: rotary frequencies and other buffers, adapters, a learnable alpha.
        """
        kwargs.pop("dtype", None)
        places = [arg for arg in args if not isinstance(arg, torch.dtype)]
        return super().to(*places, **kwargs) if places or kwargs else self

    @property
    def strategy(self) -> Strategy | None:
        """The trainer's; None in a notebook without a trainer."""
        return self._trainer.strategy if self._trainer else None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups in the order of `named_parameters`: matrices, which decay, and vectors, which do not."""
        trained = [(name.replace(FSDP1_PREFIX, ""), p) for name, p in self.policy.named_parameters() if p.requires_grad]
        matrices = {name for name, size in self.sizes_of_weights.items() if len(size) > 1}  # a shard may be flat
        groups = [
            {"params": [p for name, p in trained if name in matrices], "weight_decay": self.weight_decay},
            {"params": [p for name, p in trained if name not in matrices], "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with linear warm-up and then what `schedule` says, over the whole run.

        Raises:
            ValueError: If the run has no optimizer step, or no end.
        """
        steps = self.trainer.estimated_stepping_batches if self.trainer.max_epochs else 0
        if not 1 <= steps < math.inf:
            raise ValueError(f"trainer.max_epochs and max_steps give {steps} optimizer steps; a run needs some.")
        groups = self.parameter_groups()
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, eps=self.epsilon)
        warmup, factor = self.warmup_steps(steps), warmup_cosine if self.schedule == "cosine" else warmup_constant
        scheduler = LambdaLR(optimizer, lambda step: factor(step, warmup, int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def warmup_steps(self, steps: float) -> int:
        """Of so many optimizer steps, those of the warm-up."""
        return math.ceil(self.warmup_ratio * steps)

    def clip_gradients(self) -> float:
        """Scale the policy's gradients down to `max_grad_norm` and return their norm before that.

        Raises:
            RuntimeError: If the norm is not finite; no step has been taken with these gradients.
        """
        if isinstance(self.policy, FullyShardedDataParallel):
            norm = float(self.policy.clip_grad_norm_(self.max_grad_norm))
        else:
            gradients = [p for p in self.policy.parameters() if p.grad is not None]
            norm = float(unshard(torch.nn.utils.clip_grad_norm_(gradients, self.max_grad_norm)))
        if not math.isfinite(norm):
            raise RuntimeError(
                f"The gradient norm is {norm} at step {self.global_step}: a weight of model.init_from {self.init_from} "
                "may not be finite, a row of this step may be odd, or, after the first step, model.learning_rate (now "
                f"{self.learning_rate}) too high."
            )
        return norm

    def accumulate(
        self,
        batch: Sequence[PackedBatch],
        rounds: int,
        loss: Callable[[PackedBatch], tuple[Tensor, dict[str, Tensor]]],
    ) -> list[dict[str, Tensor]]:
        """Add up the gradients of this rank's micro-batches over all ranks, for the sum of their losses.

        Args:
            batch: The micro-batches.
            rounds: How many micro-batches the rank with most of them has; at least 1.
            loss: Gives the loss of a micro-batch against the denominators of the whole step, and its parts.

        Returns:
            The parts of each round.
        """
        every = []
        for i in range(rounds):
            # Collectives must match over ranks: one with fewer micro-batches runs a token of weight 0 instead.
            value, parts = loss(batch[i] if i < len(batch) else idle_batch(self.device))
            with self.without_sync() if i < rounds - 1 else nullcontext():
                # DDP and FSDP average gradients over ranks; the denominators are global already, so we want the sum.
                self.manual_backward(value * self.trainer.world_size)
            every.append(parts)
        return every

    def without_sync(self) -> AbstractContextManager[None]:
        """Keep gradients on this rank: only the last micro-batch of a step reduces them."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def speed(self, start: float, tokens: float, samples: float) -> dict[str, float]:
        """Seconds since a step's start, what all ranks learn from per second, and GPU memory."""
        metrics = self.throughput.update(start, tokens, samples)
        if self.device.type == "cuda":
            metrics["perf/peak_mem_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        return metrics

    def generating_policy(self) -> ScoredCausalLM:
        """What to generate with: the policy or, where each rank holds a shard of it, a whole copy; a collective then.

        The copy has the dtype that the policy computes in, adapters of its own as the policy has them, and is where the
        policy computes, be its shards offloaded.
        """
        if not is_sharded(self.policy):
            return self.policy
        half = str(self.trainer.precision).startswith("bf16")
        return unsharded_copy(self.policy, torch.bfloat16 if half else None, self.device)

    def on_validation_start(self) -> None:
        """Gather weights that are sharded, once for all batches."""
        self.generating = (self.generating_policy(),)
        self.generating[0].packed = self.packed

    on_test_start = on_validation_start
    on_predict_start = on_validation_start

    def on_validation_end(self) -> None:
        """Let go of gathered weights. The time of a validation is not training time: start a new window."""
        self.generating = ()
        self.throughput.clear()

    on_test_end = on_validation_end
    on_predict_end = on_validation_end

    def evaluate_prompts(self, batch: PromptBatch) -> list[Rollout]:
        """Generate one completion per prompt; score it and count it in the metrics where the right answer is known."""
        rollouts = []
        ids = [example.id for example in batch.examples]
        completions = self.generator(self.generating[0], batch.prompt_ids, ids, stop_ids=self.stop_ids)
        for example, prompt, (completion, *_) in zip(batch.examples, batch.prompt_ids, completions, strict=True):
            rollout = self.score(example, prompt, completion)
            if rollout.result is not None:
                self.accuracy.update(rollout)
            rollouts.append(rollout)
        return rollouts

    def score(self, example: Example, prompt: Sequence[int], completion: Completion) -> Rollout:
        """A completion as text, taken apart and, where the right answer is known, scored with `reward`."""
        text = self.decode(completion)
        result = self.reward(text, example.tools, example.answers) if example.answers else None
        return Rollout(
            example=example,
            text=text,
            parsed=(result and result.parsed) or self.reward.parse(text),
            result=result,
            prompt_tokens=len(prompt),
            completion_tokens=len(completion.token_ids),
            finish_reason=completion.finish_reason,
        )

    def decode(self, completion: Completion) -> str:
        """The completion as text; only the token that ended it is left out, so that stray special tokens are seen."""
        ids = completion.token_ids
        return self.tokenizer.decode(ids[:-1] if completion.finish_reason == "stop" else ids)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> list[Rollout]:
        """Generate for and score one batch of prompts, and score its references; callbacks receive the rollouts."""
        if self.trainer.sanity_checking:
            batch = batch.first(len(range(self.global_rank, SANITY_ROWS, self.trainer.world_size)))
        if batch.documents is not None:
            self.score_references(batch.documents)
        return self.evaluate_prompts(batch)

    def test_step(self, batch: PromptBatch, batch_idx: int) -> list[Rollout]:
        """Generate for and score one batch of prompts; callbacks receive the rollouts."""
        return self.evaluate_prompts(batch)

    predict_step = test_step

    def score_references(self, documents: Sequence[Encoded]) -> None:
        """Count how likely the references are, each token given all before it; draws no random number."""
        lengths = [len(document.input_ids) for document in documents]
        longest = max(lengths, default=0)
        for rows in micro_batches(lengths, longest, max(SCORED_TOKENS, longest), self.packed):
            micro = {name: tensor.to(self.device) for name, tensor in collate_packed(documents, rows).items()}
            scored = self.generating[0](micro["input_ids"], micro["position_ids"], micro["targets"])
            supervised = micro["targets"] != IGNORED
            self.target_loss.update(-scored.logprobs, micro["segments"][supervised], micro["doc_ids"][supervised])
        if not documents:  # on every rank, so that all reduce
            self.target_loss.update(*torch.zeros(3, 0, dtype=torch.long, device=self.device))

    def evaluated(self) -> dict[str, float]:
        """What an evaluation has found, over all ranks; the next one begins anew."""
        metrics = self.accuracy.compute()
        self.accuracy.reset()
        if self.target_loss.update_called:
            metrics |= self.target_loss.compute()
            self.target_loss.reset()
        return metrics

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of `CallAccuracy` and `TargetLoss` over all ranks."""
        self.log_metrics(self.evaluated())

    on_test_epoch_end = on_validation_epoch_end

    def log_metrics(self, metrics: dict[str, float], shown: str | None = None) -> None:
        """Log metrics that are already reduced over ranks, against the number of optimizer steps taken.

        Args:
            metrics: Values by name; they stay in `logged` until the next ones are logged.
            shown: The one that the progress bar shows.
        """
        self.logged = dict(metrics)
        if shown in metrics:
            self.log(shown, metrics[shown], prog_bar=True, batch_size=1)
        others = {name: value for name, value in metrics.items() if name != shown}
        self.log_dict(others | {"step": float(self.global_step)}, batch_size=1)

    def settings_table(self) -> dict[str, str]:
        """What a run is told to do beyond what every run is, for the table at its start."""
        return {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the optimizer's states by parameter, and leave out weights that never change.

        Hashes of those, and of the tokenizer, take their place.
        """
        checkpoint["tokenizer"] = fingerprint_of(self.tokenizer)
        checkpoint["form"] = self.form.recorded() if self.form else None
        checkpoint["derived"] = {"init_from": self.init_from, "fingerprint": self.derived_fingerprint()}
        weights = checkpoint["state_dict"].items()
        checkpoint["state_dict"] = {name: weight for name, weight in weights if not self.is_derived(name)}
        states = checkpoint.get("optimizer_states")
        if states and not isinstance(self.strategy, FSDP1 | FSDP2):  # whose states have names already
            checkpoint["optimizer_states"] = [
                optimizer_state_to_names(states[0], group_names(self, self.parameter_groups()))
            ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another model, and give the optimizer its states by place.

        Raises:
            ValueError: If a weight is missing, unknown or of another shape, the tokenizer is another, or a run is to go
                on from weights alone.
        """
        if isinstance(self.strategy, FSDP1 | FSDP2):
            return  # it has checked and loaded them
        self.check_checkpoint(checkpoint, {name: tuple(w.shape) for name, w in checkpoint["state_dict"].items()})
        if self.fitting and not {"optimizer_states", "callbacks"} <= checkpoint.keys():
            raise ValueError(
                "The checkpoint holds weights alone, from which no run can go on (save_weights_only): export it, and "
                "give the folder to model.init_from."
            )
        checkpoint["state_dict"] |= self.derived_weights()
        states = checkpoint.get("optimizer_states")
        if states and self.fitting:
            checkpoint["optimizer_states"] = [
                optimizer_state_to_places(states[0], group_names(self, self.parameter_groups()))
            ]

    def check_checkpoint(self, checkpoint: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
        """Refuse the checkpoint of another model or tokenizer before any weight is changed.

        Args:
            checkpoint: What it holds beside weights and optimizer states.
            shapes: Names and shapes of its weights.

        Raises:
            ValueError: Saying what differs.
        """
        own = {name: p for name, p in self.named_parameters() if not name.startswith("policy.")}
        ours = {name: tuple(p.shape) for name, p in own.items() if not self.is_derived(name)}
        policy = {f"policy.{name}": tuple(size) for name, size in self.sizes_of_weights.items()}
        ours |= {name: size for name, size in policy.items() if not self.is_derived(name)}
        check_same_model(shapes, ours, self.init_from)
        if "derived" not in checkpoint:
            raise ValueError(
                "The checkpoint does not say which weights its run started from: an earlier version has written it, "
                "from which this one cannot go on; give the hf/ folder of its run to model.init_from."
            )
        needs = any(self.is_derived(name) for name, _ in self.named_parameters())  # a validation, no frozen reference
        if needs and checkpoint["derived"]["fingerprint"] != self.derived_fingerprint():
            raise ValueError(
                f"model.init_from {self.init_from} does not hold the weights that the checkpoint's run started from "
                f"({checkpoint['derived']['init_from']}), which it needs beside those that it learnt: give those."
            )
        if checkpoint["tokenizer"] != fingerprint_of(self.tokenizer):
            raise ValueError(
                f"The tokenizer of model.init_from {self.init_from} is not the one that the checkpoint's run had "
                "(other vocabulary or chat template): resume with that one."
            )
        if self.form and (kept := checkpoint.get("form")):
            for name, value in self.form.recorded().items():
                if kept[name] != value:
                    raise ValueError(
                        f"data.{name} is {value!r} in this run and was {kept[name]!r} in the one that wrote the "
                        "checkpoint: set it to that (true is require, false none)."
                    )

    def is_derived(self, name: str) -> bool:
        """Whether a weight is left out of checkpoints, because it is as `init_from` has it: all that LoRA freezes."""
        return self.lora is not None and name.startswith("policy.") and ".lora_" not in name

    def derived_weights(self) -> dict[str, Tensor]:
        """The weights that checkpoints leave out."""
        return {name: weight for name, weight in self.state_dict().items() if self.is_derived(name)}

    def derived_fingerprint(self) -> str:
        """A hash of them, computed once, for they never change; a collective where they are sharded."""
        if not self.derived_hash:
            self.derived_hash = fingerprint(self.derived_weights())
        return self.derived_hash


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Factor of the peak rate at a step counted from 0: (step + 1) / warmup, then a cosine to 0 at `total`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def warmup_constant(step: int, warmup: int, total: int) -> float:
    """Factor of the peak rate at a step counted from 0: (step + 1) / warmup, then 1."""
    return min(1.0, (step + 1) / max(1, warmup))

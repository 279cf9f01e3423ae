"""The base of modules that train: their settings, AdamW, gradients over micro-batches, checkpoints."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.base import XLAMDataModule
from datamodules.chat.form import recorded_form
from datamodules.loading import ResumableLoader
from datamodules.packing import PackedBatch, idle_batch
from datamodules.system.arguments import declared
from lightning_modules.checkpointing.formats import group_names, optimizer_state_to_names, optimizer_state_to_places
from lightning_modules.checkpointing.identity import check_settings
from lightning_modules.checkpointing.resume import unbroken
from lightning_modules.evaluation import EvaluationModule
from lightning_modules.generators import Generator
from lightning_modules.metrics import Throughput
from lightning_modules.optimization import clip_to_norm, decay_groups, warmed_up
from lightning_modules.policy.end_token import unlearnt_end
from lightning_modules.policy.freed_memory import is_large, return_freed
from lightning_modules.policy.gradient_checkpointing import GradientCheckpointing, resolve_gradient_checkpointing
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.precision import check_precision
from lightning_modules.policy.torch_compile import check_compiles, compile_layers
from lightning_modules.strategies import FSDP1, FSDP2
from rewards import FunctionCallReward


def check_numbers(**settings: tuple[Any, bool, str]) -> None:
    """Raise if a numeric setting of a module is out of its range.

    Args:
        settings: By name the value, whether it can be used (NaN never can), and what is wanted.

    Raises:
        ValueError: Naming the first that cannot.
    """
    for name, (value, usable, wanted) in settings.items():
        if not usable:
            raise ValueError(f"model.{name} is {value}; give {wanted}.")


@declared
class FunctionCallingModule(EvaluationModule):
    """Trains a causal language model: an `EvaluationModule` with AdamW, its schedule, and checkpoints to resume from.

    Optimisation is manual: one `training_step` is one optimizer step. Subclasses give `training_step`.

    Args:
        init_from: Where the weights come from: a run folder (its `hf/`), a Hugging Face folder or a hub id.
        lora: Train low-rank adapters of these settings instead of all weights.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time; or
            settings, such as that only some layers do.
        attn_implementation: Attention kernel, by its name in transformers: "sdpa", "eager", "flash_attention_2".
        torch_compile: Compile each decoder layer (`torch.compile`), in the first steps.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Decay of matrices; norms, biases and other vectors never decay.
        betas: AdamW's averaging coefficients.
        epsilon: Added to AdamW's root of squared gradients. If it is greater than the gradients of tokens that no row
            holds, their embeddings stay where they are; else AdamW moves them as fast as all others.
        warmup_ratio: Share of the optimizer steps over which the rate climbs linearly.
        schedule: What the rate does then: "cosine" lets it fall to 0 at the last step, "constant" keeps it.
        max_grad_norm: Gradients are scaled down to at most this norm.
        generator: Samples completions in validation, test and predict; greedy, 256 tokens at most, when None.
        reward: Scores completions; the strict reward when None.

    Raises:
        ValueError: A number is out of its range.
    """

    LEARNS_FROM: type[XLAMDataModule] = XLAMDataModule  # checked for this project's data modules alone

    def __init__(
        self,
        init_from: str,
        lora: LoRA | None = None,
        gradient_checkpointing: bool | GradientCheckpointing = False,
        attn_implementation: str = "sdpa",
        torch_compile: bool = False,
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
        super().__init__(init_from, attn_implementation, generator, reward)
        check_numbers(
            learning_rate=(learning_rate, 0 <= learning_rate < math.inf, "a number from 0 up"),
            weight_decay=(weight_decay, 0 <= weight_decay < math.inf, "a number from 0 up"),
            betas=(betas, all(0 <= beta < 1 for beta in betas), "two numbers from 0 to below 1"),
            epsilon=(epsilon, 0 <= epsilon < math.inf, "a number from 0 up"),
            warmup_ratio=(warmup_ratio, 0 <= warmup_ratio <= 1, "a number from 0 to 1"),
            max_grad_norm=(max_grad_norm, max_grad_norm > 0, "a number greater than 0"),
        )
        self.automatic_optimization = False
        self.lora = lora
        self.gradient_checkpointing = gradient_checkpointing
        self.torch_compile = torch_compile
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = betas
        self.epsilon = epsilon
        self.warmup_ratio = warmup_ratio
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.throughput = Throughput()

    def setup(self, stage: str) -> None:
        """Validate the settings before any weight is loaded.

        Raises:
            ValueError: See `check_precision`, `check_generator` and `check_compiles`; or the data are for a module of
                another kind or to be loaded anew in each epoch, activations are to be offloaded from the CPU, or layers
                compiled under FSDP1.
        """
        if stage == "fit" and isinstance(self.data, XLAMDataModule) and not isinstance(self.data, self.LEARNS_FROM):
            raise ValueError(
                f"{type(self).__name__} learns from the rows of {self.LEARNS_FROM.__name__}, and data is "
                f"{type(self.data).__name__}: set data.class_path to {self.LEARNS_FROM.__name__}."
            )
        if isinstance(self.data, XLAMDataModule) and self.trainer.reload_dataloaders_every_n_epochs:
            raise ValueError(
                "trainer.reload_dataloaders_every_n_epochs: the loader of the rows goes on from epoch to epoch, and a "
                "new one would begin again with the order of the first: leave it out."
            )
        recomputed = resolve_gradient_checkpointing(self.gradient_checkpointing)
        if recomputed and recomputed.offload and self.strategy.root_device.type == "cpu":
            raise ValueError(
                "model.gradient_checkpointing: offload keeps activations in the memory of the host, and a run on the "
                "CPU has no other: leave it out."
            )
        if self.torch_compile:
            check_compiles(self.attn_implementation)
            if isinstance(self.strategy, FSDP1):
                raise ValueError(
                    "model.torch_compile goes with FSDP2, and trainer.strategy is FSDP1: add --config "
                    "configs/trainer/fsdp2.yaml, or leave model.torch_compile out."
                )
        rate = self.learning_rate if stage == "fit" else None
        check_precision(str(self.trainer.precision), self.lora is not None, rate, isinstance(self.strategy, FSDP1))
        self.check_generator(self.lora)

    def load_policy(self, **options: Any) -> ScoredCausalLM:
        """The model of `init_from`, with adapters if `lora` is set, not yet in shards.

        Warns where adapters cannot teach it the token that ends an answer (`unlearnt_end`).
        """
        policy = super().load_policy(lora=self.lora, gradient_checkpointing=self.gradient_checkpointing, **options)
        loaded = self.strategy is None or self.strategy.is_global_zero  # other ranks may hold no weights
        taught = recorded_form(self.tokenizer) is not None  # by this project, which taught it to end answers so
        if self.lora and loaded and not taught and (warning := unlearnt_end(self.tokenizer, policy.causal_lm)):
            rank_zero_warn(warning)
        return policy

    def shard(self, policy: ScoredCausalLM) -> ScoredCausalLM:
        """The model, its layers compiled if `torch_compile` is set, and sharded if the strategy shards."""
        if self.torch_compile:
            compile_layers(policy)
        return super().shard(policy)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, by which checkpoints name its states; see `decay_groups`."""
        return decay_groups(self.policy, self.sizes_of_weights, self.weight_decay)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with linear warm-up and then the rate that `schedule` names, over the whole run.

        Raises:
            ValueError: See `total_steps`.
        """
        steps = self.total_steps()
        groups = self.parameter_groups()
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, eps=self.epsilon, fused=True)
        scheduler = warmed_up(optimizer, self.schedule, self.warmup_steps(steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def total_steps(self) -> int:
        """Optimizer steps of the whole run.

        Raises:
            ValueError: If there is none, or no end of them.
        """
        steps = self.trainer.estimated_stepping_batches if self.trainer.max_epochs else 0
        if not 1 <= steps < math.inf:
            raise ValueError(
                f"trainer.max_epochs and max_steps give {steps} optimizer steps; a run needs some, and an end."
            )
        return int(steps)

    def optimizer_settings(self) -> dict[str, Any]:
        """Settings that a checkpoint restores together with the optimizer, by name in `model`."""
        names = "learning_rate", "weight_decay", "betas", "epsilon"
        return {name: getattr(self, name) for name in names} | {"betas": tuple(self.betas)}

    def adapter_settings(self) -> dict[str, Any]:
        """Settings that adapters of a checkpoint depend on and the shapes of its weights do not show, by name."""
        return {"lora.alpha": self.lora.alpha} if self.lora else {}

    def warmup_steps(self, steps: float) -> int:
        """Number of warm-up steps of a run of so many optimizer steps."""
        return math.ceil(self.warmup_ratio * steps)

    def step_optimizer(self) -> None:
        """Take a step of the optimizer and of the learning rate; Ctrl-C waits until both are done."""
        optimizer = self.optimizers()
        with unbroken():
            optimizer.step()
            optimizer.zero_grad()
            if schedule := self.lr_schedulers():  # an optimizer of one's own may do without
                schedule.step()

    def clip_gradients(self) -> float:
        """Clip the policy's gradients to norm `max_grad_norm`, and return their norm before that.

        Raises:
            RuntimeError: If the norm is not finite; no step has been taken with these gradients.
        """
        norm = clip_to_norm(self.policy, self.max_grad_norm)
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
        """Run backward over this rank's micro-batches; gradients become those of the loss summed over all ranks.

        Args:
            batch: The micro-batches.
            rounds: How many micro-batches the rank with most of them has; at least 1.
            loss: Gives the loss of a micro-batch against the denominators of the whole step, and its parts.

        Returns:
            The parts of each round.
        """
        every = []
        for i, micro in enumerate(self.padded(batch, rounds)):
            value, parts = loss(micro)
            with self.without_sync() if i < rounds - 1 else nullcontext():
                # DDP and FSDP average gradients over ranks; the denominators are global already, so we want the sum.
                self.manual_backward(value * self.trainer.world_size)
            every.append(parts)
        return every

    def padded(self, batch: Sequence[PackedBatch], rounds: int) -> list[PackedBatch]:
        """This rank's micro-batches and then idle ones, a token of weight 0: collectives must match over ranks."""
        return [*batch, *(idle_batch(self.device) for _ in range(rounds - len(batch)))]

    def on_fit_start(self) -> None:
        """Refuse an optimizer of one's own whose states a checkpoint could not name.

        Raises:
            ValueError: Its groups are others than those of `parameter_groups`.
        """
        given = [group["params"] for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        ours = [group["params"] for group in self.parameter_groups()]
        if [list(map(id, group)) for group in given] != [list(map(id, group)) for group in ours]:
            raise ValueError(
                f"{type(self).__name__}.configure_optimizers has other groups than parameter_groups(), by which "
                "checkpoints name what an optimizer holds: give it self.parameter_groups(), and change them there."
            )

    def on_train_epoch_start(self) -> None:
        """Begin with the same rows each epoch under `trainer.overfit_batches`; our loaders go on to others else."""
        loader = self.trainer.train_dataloader
        if self.trainer.overfit_batches and isinstance(loader, ResumableLoader):
            loader.epoch = loader.batch = 0

    def on_train_batch_end(self, *args: Any) -> None:
        """Return memory that a step on the CPU has freed to the system: in pieces the next step could not use it."""
        if self.device.type == "cpu" and is_large(self.policy.causal_lm.get_input_embeddings()):
            return_freed()

    def without_sync(self) -> AbstractContextManager[None]:
        """Context that reduces no gradients over ranks: only the last micro-batch of a step does."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def speed(self, start: float, tokens: float, samples: float) -> dict[str, float]:
        """Metrics of a step: its seconds, tokens and samples per second of all ranks, peak GPU memory."""
        metrics = self.throughput.update(start, tokens, samples)
        if self.device.type == "cuda":
            metrics["perf/peak_mem_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        return metrics

    def on_validation_end(self) -> None:
        """Free the unsharded copy, and start a new window of throughput: validating is not training time."""
        super().on_validation_end()
        self.throughput.clear()

    on_test_end = on_validation_end
    on_predict_end = on_validation_end

    def settings_table(self) -> dict[str, str]:
        """Rows that the module adds to the table at the start of a run, by name."""
        return {}

    def rows_of_documents(self) -> str:
        """Whether documents are packed, and if not why, for the table at the start of a run."""
        return "packed" if self.packed else f"one document per row, because {self.why_not_packed}"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the run's identity, name optimizer states by parameter, and leave out weights that never change.

        Hashes of those, and of the tokenizer, take their place.
        """
        settings = self.optimizer_settings() | self.adapter_settings()
        checkpoint |= self.identity() | {"optimizer_settings": settings}
        weights = checkpoint["state_dict"].items()
        checkpoint["state_dict"] = {name: weight for name, weight in weights if not self.is_derived(name)}
        states = checkpoint.get("optimizer_states")
        if states and not isinstance(self.strategy, FSDP1 | FSDP2):  # whose states have names already
            checkpoint["optimizer_states"] = [
                optimizer_state_to_names(states[0], group_names(self, self.parameter_groups()))
            ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise if the checkpoint is of another model, and turn names of optimizer states back into places.

        Raises:
            ValueError: If a weight is missing, unknown or of another shape, the tokenizer is another, or a run is to go
                on from weights alone.
        """
        super().on_load_checkpoint(checkpoint)
        if isinstance(self.strategy, FSDP1 | FSDP2):
            return  # it has loaded them
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
        """Raise if a checkpoint is of another model or tokenizer, or brings other settings of the optimizer with it.

        Raises:
            ValueError: See `EvaluationModule.check_checkpoint` and `check_settings`.
        """
        super().check_checkpoint(checkpoint, shapes)
        settings = self.adapter_settings() | (self.optimizer_settings() if self.fitting else {})
        check_settings(checkpoint.get("optimizer_settings", {}), settings)

    def check_kind(self, ours: bool) -> None:
        """Refuse the checkpoint of a run of another kind where one goes on from it; its weights alone may be evaluated.

        Args:
            ours: Whether the checkpoint is one of this kind.

        Raises:
            ValueError: It is not, and the trainer is in `fit`, or there is none yet (`load_from_checkpoint`).
        """
        if not ours and (self.fitting or self._trainer is None):
            raise ValueError(
                f"The checkpoint is not one of {type(self).__name__}: to start from its run, give it to "
                "model.init_from."
            )

    def is_derived(self, name: str) -> bool:
        """Whether a weight is left out of checkpoints, because it is as `init_from` has it: all that LoRA freezes."""
        return self.lora is not None and name.startswith("policy.") and ".lora_" not in name

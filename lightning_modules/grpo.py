"""Reinforcement learning from groups of rollouts: GRPO (arXiv 2402.03300) and EGPO (arXiv 2508.05118).

The papers leave open, and this module decides:

* The chain-of-thought entropy E is that of the policy before it learns from a batch (the one that sampled it, unless
  `sampling.ahead` is on), at the sampling temperature, over the tokens strictly between the think tags. No gradient
  flows through it.
* The sampling temperature also divides the logits of the ratio and of the KL.
* Mini-batches are the same in every pass over a batch.
* Where the generator reports probabilities (vLLM), tokens are weighted by the ratio of the policy's to those, at most 2
  unless told otherwise (`importance_sampling`).
* There is no dropout, neither of adapters nor of the model, so that the ratio of a policy to itself is 1.
"""

import time
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.loading import PromptBatch
from datamodules.packing import PackedBatch
from datamodules.prompts import XLAMPromptDataModule
from datamodules.system.arguments import declared
from lightning_modules.base import FunctionCallingModule, check_numbers
from lightning_modules.checkpointing.resume import unbroken
from lightning_modules.generators import Completion
from lightning_modules.metrics import CallAccuracy
from lightning_modules.objectives import EntropyBonus, ImportanceSampling, PolicyLoss, PolicyTotals
from lightning_modules.policy.dropout import disable_dropout
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.reference import PREFIX, frozen_copy, reference_policy
from lightning_modules.ranks import of_every_rank, over_ranks
from lightning_modules.rollout.ahead import Ahead
from lightning_modules.rollout.buffer import RolloutBuffer, buffer_of_rank
from lightning_modules.rollout.collect import fill_logprobs, make_buffer, set_advantages, set_weights
from lightning_modules.rollout.dynamic import Drawn, DynamicSampling, draw_groups
from lightning_modules.rollout.groups import Overlong, reward_matrix, score_groups
from lightning_modules.rollout.metrics import call_metrics, merged, rollout_metrics, rollout_sums, timed, update_metrics
from lightning_modules.rollout.rollout import Rollout
from lightning_modules.rollout.sampling import Sampling, sample_groups
from lightning_modules.rollout.scoring import RewardFunction, Rewards, RewardTerm
from lightning_modules.rollout.settings import (
    check_ahead,
    check_full_distribution,
    check_sizes,
    extra_rows,
    objective_row,
    size_rows,
)
from lightning_modules.rollout.update import micro_batches_of, micro_loss, step_sizes, summed
from lightning_modules.strategies import FSDP2

ALL_ALIKE = (
    "In every group of a batch all rewards were equal, so that no completion is better than another and at most the KL "
    "moves the policy: look at model.rewards and train_samples.jsonl, or give easier or harder prompts."
)
ALL_CUT = (
    "Every completion of a batch was cut at model.generator.max_new_tokens, before its answer ended: raise it, or "
    "train the model to end its answers first (configs/finetune.yaml)."
)
SHARED = "; completions of a prompt share it, as many as a micro-batch holds"


@declared
class GRPOModule(FunctionCallingModule):
    """Learns from groups of its own completions; one `training_step` is one optimizer step.

    The data module hands out a batch of prompts `inner_epochs * mini_batches` times: the first time it is sampled from,
    and all those optimizer steps learn from what came out.

    Args:
        sampling: How completions are sampled from the prompts.
        mini_batches: Optimizer steps per pass over a batch of rollouts.
        inner_epochs: Passes over a batch of rollouts.
        micro_batch_tokens: Tokens, padding included, of one forward pass on one rank.
        rewards: Reward functions by name, each a function or a `RewardTerm` of a function and its weight (1 for a bare
            function); `reward` alone when None. `reward` scores the validation and the `rollout/...` metrics in any
            case.
        reward_timeout: Seconds that a function of the user's may take over a completion; None is no limit, and the
            functions then run in this process, one completion after the other.
        reward_workers: Processes of each function of the user's on each rank, as many completions as it scores at a
            time; 1 for a function that must be called in order or keeps a state.
        max_reward_errors: Share of the completions of a batch, over all ranks, above which the failures of a function
            stop the run. Below it, a completion on which a function with a weight fails is left out of its group's
            comparison and of the loss.
        advantage_scale: "std" divides by the deviation of the group; "none" does not (arXiv 2503.20783).
        entropy_bonus: What EGPO adds to advantages; with its scale at 0 this is plain GRPO.
        loss: What the policy learns from, with the KL; a `class_path` names a subclass of `PolicyLoss` of one's own.
        dynamic_sampling: What takes the place of groups whose rewards are all equal.
        overlong: What becomes of completions that are cut at the limit.
        importance_sampling: Correction for a generator that reports log-probabilities of its own.
        learning_rate: Peak learning rate of AdamW.
        **kwargs: See `FunctionCallingModule`.
    """

    LEARNS_FROM = XLAMPromptDataModule

    def __init__(
        self,
        *,
        sampling: Sampling = Sampling(),
        mini_batches: int = 1,
        inner_epochs: int = 1,
        micro_batch_tokens: int = 8192,
        rewards: dict[str, RewardTerm | RewardFunction] | None = None,
        reward_timeout: float | None = 10.0,
        reward_workers: int = 8,
        max_reward_errors: float = 0.25,
        advantage_scale: Literal["std", "none"] = "std",
        entropy_bonus: EntropyBonus = EntropyBonus(),
        loss: PolicyLoss = PolicyLoss(),
        dynamic_sampling: DynamicSampling = DynamicSampling(),
        overlong: Overlong = Overlong(),
        importance_sampling: ImportanceSampling = ImportanceSampling(),
        learning_rate: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        check_numbers(
            mini_batches=(mini_batches, mini_batches >= 1, "at least 1"),
            inner_epochs=(inner_epochs, inner_epochs >= 1, "at least 1"),
            micro_batch_tokens=(micro_batch_tokens, micro_batch_tokens >= 1, "at least 1"),
        )
        check_full_distribution(sampling, importance_sampling)
        check_ahead(sampling, self.generator, importance_sampling, dynamic_sampling)
        self.sampling, self.dynamic_sampling, self.overlong = sampling, dynamic_sampling, overlong
        self.entropy_bonus, self.loss, self.importance_sampling = entropy_bonus, loss, importance_sampling
        self.mini_batches, self.inner_epochs = mini_batches, inner_epochs
        self.repeats = mini_batches * inner_epochs  # optimizer steps per batch of rollouts
        self.micro_batch_tokens, self.advantage_scale = micro_batch_tokens, advantage_scale
        self.rewards = Rewards(rewards or None, reward_timeout, max_reward_errors, reward_workers, self.reward)
        self.reward_functions = list(self.rewards.functions.values())
        self.sampled = CallAccuracy()
        self.frozen = False  # whether this run needs a frozen copy as its reference
        self.reference: ScoredCausalLM | None = None
        self.buffer: RolloutBuffer | None = None
        self.ahead = Ahead()
        self.rollouts: list[Rollout] = []  # of this step, if it sampled any, for callbacks; so are the next
        self.rollout_advantages = torch.zeros(0, dtype=torch.float32)

    @property
    def method(self) -> str:
        """See `FunctionCallingModule.method`."""
        return "egpo" if self.entropy_bonus.scale else "grpo"

    def setup(self, stage: str) -> None:
        """Validate the settings before any weight is loaded.

        Raises:
            ValueError: If the sizes of the data and of the step do not go together, or a batch cannot be sampled ahead.
        """
        super().setup(stage)
        self.frozen = stage == "fit" and self.loss.kl_coef > 0 and self.lora is None
        data, limit = self.data, self.generator.max_new_tokens
        if stage == "fit" and isinstance(data, XLAMPromptDataModule):
            check_sizes(data, self.mini_batches, self.inner_epochs, self.micro_batch_tokens, limit, self.entropy_bonus)
        elif stage == "fit" and self.sampling.ahead:
            raise ValueError(
                "model.sampling.ahead asks the loader which batch comes next, as that of XLAMPromptDataModule says: "
                "set it to false with other data."
            )

    def configure_model(self) -> None:
        """Load tokenizer and weights once; if they were loaded for validation alone, a fit then adds the reference."""
        loaded = self.policy
        if self.frozen and self.reference is None:
            self.policy, self.derived_hash = None, ""
        super().configure_model()
        self.policy = loaded or self.policy

    def place(self, policy: ScoredCausalLM) -> None:
        """Keep the loaded model as `policy` and, where the KL needs one, a frozen copy of it as reference."""
        if self.frozen:
            self.reference = self.shard(frozen_copy(policy, shared=isinstance(self.strategy, FSDP2)))
        super().place(policy)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Sample from a batch of prompts, if it is new, and take one optimizer step on its rollouts.

        Raises:
            ValueError: If another batch comes before all updates on the rollouts of the last one are done.
        """
        start = time.perf_counter()
        self.rollouts, metrics = [], {}
        if self.buffer is None:
            self.buffer, self.rollouts, metrics = self.roll_out(batch)
            self.rollout_advantages = self.buffer.rollout_advantages()
        elif self.buffer.rows != [example.id for example in batch.examples]:
            raise ValueError(
                f"Rollouts serve {self.repeats} optimizer steps (model.inner_epochs x model.mini_batches), and after "
                f"{self.buffer.updates_done} of them other prompts came: the loader must give each batch so many times."
            )
        metrics |= self.update(self.buffer)
        speed = self.speed(start, metrics.pop("tokens"), metrics.pop("rollouts"))
        if self.buffer.updates_done == self.repeats:
            self.buffer = None
        self.log_metrics(metrics | speed, shown="reward/mean")

    def roll_out(self, batch: PromptBatch) -> tuple[RolloutBuffer, list[Rollout], dict[str, float]]:
        """Sample a group for each of this rank's prompts, and prepare what the updates learn from.

        Returns:
            The buffer, the rollouts in its order, and the metrics of all ranks.
        """
        clock: dict[str, float] = {}
        drawn, sampling = self.sample(batch, clock), self.sampling
        with timed(clock, "time/reward"):
            buffer = make_buffer(batch, drawn, self.tokenizer, self.overlong)
        micros = buffer.pack(self.micro_batch_tokens, packed=self.packed, shared=self.shares_prefixes)
        corrects = self.generator.reports_logprobs and self.importance_sampling.cap is not None
        scored = self.policy if self.entropy_bonus.scale > 0 or self.repeats > 1 or corrects else None
        reference = reference_policy(self.policy, self.reference) if self.loss.kl_coef > 0 else None
        entropy = fill_logprobs(buffer, micros, scored, reference, self.device, sampling.temperature, clock)
        rewards, valid = reward_matrix(drawn.groups, sampling.group_size)
        penalized = self.overlong.treatment == "penalty"
        counted = [
            rollout_sums(drawn.rollouts, rewards, valid, self.rewards.weights, self.stop_ids, penalized),
            (drawn.sums, {"draws": drawn.further} if self.dynamic_sampling.max_draws else {}),
        ]
        counted.append(set_advantages(buffer, rewards, valid, entropy, self.advantage_scale, self.entropy_bonus))
        if corrects:
            counted.append(set_weights(buffer, drawn.rollouts, self.importance_sampling))
        sums, peaks = over_ranks(*merged(*counted), self.device)
        buffer.batch_prompts = int(sums["groups"])
        if sums["truncated"] == sums["rollouts"]:
            rank_zero_warn(ALL_CUT)
        elif sums["zero_std"] == sums["groups"]:
            rank_zero_warn(ALL_ALIKE)  # shown once; the share is logged of every batch
        metrics = rollout_metrics(sums, peaks) | call_metrics(self.sampled, drawn.rollouts)
        return buffer, drawn.rollouts, metrics | clock

    def sample(self, batch: PromptBatch, clock: dict[str, float]) -> Drawn:
        """This rank's groups of rollouts with their rewards, from its prompts or others in their place."""
        with timed(clock, "time/generate"):
            self.ahead.wait()
        with timed(clock, "time/weight_sync"):
            policy = self.generating_policy()
            self.generator.sync(policy)
        ranks = self.trainer.world_size
        generate = partial(self.generator, policy, stop_ids=self.stop_ids, **self.sampling.options())
        penalty = partial(self.overlong, max_length=self.generator.max_new_tokens)
        sample = partial(
            sample_groups,
            generate=self.generate_ahead if self.sampling.ahead else generate,
            score=partial(score_groups, score=self.score, rewards=self.rewards, penalty=penalty),
            group_size=self.sampling.group_size,
            max_resample=self.dynamic_sampling.max_resample,
            max_error_share=self.rewards.max_error_share,
            step=self.global_step,
            ranks=ranks,
            clock=clock,
        )
        drawn = draw_groups(batch, self.dynamic_sampling.max_draws, sample, self.global_rank, ranks)
        self.rest_generator(stale=True)
        return drawn

    def generate_ahead(self, prompts: list[list[int]], names: list[str]) -> list[list[Completion]]:
        """The completions of this batch, sampled ahead unless it is the first; starts to sample those of the next."""
        step = self.global_step + self.repeats
        # From the weights of the sync just made, without a collective: other ranks may have all of theirs.
        sample = partial(self.generator.sample, stop_ids=self.stop_ids, **self.sampling.options())
        completions = self.ahead.take(names, self.sampling.group_size) or sample(prompts, names)
        if step < self.trainer.estimated_stepping_batches:
            batch = self.trainer.train_dataloader.following()
            names = [f"{step}/{example.id}" for example in batch.examples]
            self.ahead.start(names, partial(sample, batch.prompt_ids, names))
        return completions

    def on_validation_start(self) -> None:
        """Wait for what is being sampled ahead, before the generator gets other weights."""
        self.ahead.wait()
        super().on_validation_start()

    def update(self, buffer: RolloutBuffer) -> dict[str, float]:
        """Take one optimizer step on the next mini-batch of rollouts."""
        start, optimizer = time.perf_counter(), self.optimizers()
        disable_dropout(self.policy)  # as when the old log-probabilities were computed
        chosen = buffer.chosen(self.mini_batches)
        micros, still = micro_batches_of(
            buffer, chosen, self.loss, self.device, self.micro_batch_tokens, self.packed, self.shares_prefixes
        )
        most = {"micros": max(1, len(micros)), "still": len(still)}
        counts, most = over_ranks(step_sizes(buffer, chosen), most, self.device)
        totals = PolicyTotals(counts["rollouts"], counts["tokens"])
        temperature, limit = self.sampling.temperature, self.generator.max_new_tokens

        def loss(micro: PackedBatch) -> tuple[Tensor, dict[str, Tensor]]:
            return micro_loss(self.policy, micro, buffer, self.loss, totals, temperature, limit)

        with torch.no_grad():  # for the metrics alone
            parts = [loss(micro)[1] for micro in self.padded(still, int(most["still"]))]
        parts += self.accumulate(micros, int(most["micros"]), loss)
        sums, peaks = over_ranks(*summed(parts), self.device)
        metrics = update_metrics(sums, peaks, buffer.ref_logprobs is not None)
        metrics |= {"train/lr": optimizer.param_groups[0]["lr"], "tokens": counts["read"], "rollouts": totals.rollouts}
        if totals.tokens:
            metrics["train/grad_norm"] = self.clip_gradients()
        else:
            optimizer.zero_grad()  # nothing to learn from: parameters without a gradient stay as they are
        with unbroken():
            self.step_optimizer()
            buffer.updates_done += 1
        return metrics | {"time/update": time.perf_counter() - start}

    def on_validation_epoch_end(self) -> None:
        """Log the metrics; in training those that rollouts log as well get the prefix `val/`."""
        prefix = "val/" if self.fitting else ""
        metrics = self.evaluated().items()
        self.log_metrics({n if n.startswith(("tool/", "val/")) else prefix + n: v for n, v in metrics})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add every rank's rollouts with updates to come (those of an interrupted step are sampled again)."""
        super().on_save_checkpoint(checkpoint)
        used = self.buffer is not None and 0 < self.buffer.updates_done < self.repeats
        checkpoint["rollouts"] = of_every_rank(self.buffer.state_dict() if used else None)
        if self.sampling.ahead:
            checkpoint["ahead"] = of_every_rank(self.ahead.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore this rank's rollouts whose updates are not all done.

        Raises:
            ValueError: See `check_checkpoint` and `buffer_of_rank`.
        """
        super().on_load_checkpoint(checkpoint)
        if self.fitting:
            ranks = self.trainer.world_size
            self.buffer = buffer_of_rank(checkpoint["rollouts"], self.global_rank, ranks, self.repeats)
            self.ahead.load_state_dicts(checkpoint.get("ahead", []))

    def check_checkpoint(self, checkpoint: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
        """Refuse the checkpoint of another model or module.

        Raises:
            ValueError: Saying what differs.
        """
        self.check_kind("rollouts" in checkpoint)
        super().check_checkpoint(checkpoint, shapes)

    def is_derived(self, name: str) -> bool:
        """Whether checkpoints leave a weight out: what LoRA freezes, and the frozen copy."""
        return super().is_derived(name) or name.startswith(PREFIX)

    def settings_table(self) -> dict[str, str]:
        """Every size of a step, and what follows from it, for the table at the start of a run."""
        data = self.data
        if not isinstance(data, XLAMPromptDataModule):
            return {}
        sizes = size_rows(
            data,
            self.generator,
            self.sampling,
            self.mini_batches,
            self.inner_epochs,
            self.micro_batch_tokens,
            steps=int(self.trainer.estimated_stepping_batches),
            ranks=self.trainer.world_size,
        )
        return sizes | {
            "rows": self.rows_of_documents() + (SHARED if self.shares_prefixes else ""),
            "validation": f"{len(data.val_indices):,} prompts, {data.hparams.eval_batch_size:,} at a time over all "
            "ranks",
            "objective": objective_row(self.entropy_bonus, self.loss, self.lora),
            "rewards": self.rewards.described(),
            **extra_rows(data, self.dynamic_sampling.max_draws, self.lora),
        }

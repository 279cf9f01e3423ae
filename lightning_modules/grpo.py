"""Reinforcement learning on groups of rollouts: GRPO (arXiv 2402.03300) and EGPO (arXiv 2508.05118).

What the papers leave open and is decided here: the chain-of-thought entropy E is that of the policy that sampled, at
the sampling temperature, over the tokens strictly between the think tags, and no gradient flows through it; the same
temperature divides the logits of the ratio and of the KL; mini-batches are the same in every pass over a batch; and
nothing is ever dropped out, by adapters or by the model itself, so that the ratio of a policy to itself is 1.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.packing import IGNORED, PackedBatch
from datamodules.prompts import PromptBatch
from lightning_modules.base import FunctionCallingModule, check_numbers
from lightning_modules.checkpointing.resume import of_every_rank
from lightning_modules.metrics import CallAccuracy
from lightning_modules.objectives import PolicyTotals, overlong_penalty, policy_loss
from lightning_modules.objectives.advantages import EntropyLevel
from lightning_modules.objectives.policy import Aggregation, RatioLevel, settled
from lightning_modules.policy.dropout import drop_nothing
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.reference import PREFIX, frozen_copy
from lightning_modules.rollout.buffer import RolloutBuffer, at, buffer_of_rank
from lightning_modules.rollout.collect import roll_out
from lightning_modules.rollout.groups import Sample
from lightning_modules.rollout.metrics import update_metrics
from lightning_modules.rollout.scoring import Rewards, RewardTerm
from lightning_modules.rollout.settings import check_reward, check_settings, check_sizes, described

ALL_ALIKE = (
    "In every group of a batch all rewards were equal, so that no completion is better than another and at most the KL "
    "moves the policy: look at model.rewards and train_samples.jsonl, or give easier or harder prompts."
)


class GRPOModule(FunctionCallingModule):
    """Learns from groups of its own completions; one `training_step` is one optimizer step.

    The data module hands out a batch of prompts `inner_epochs * mini_batches` times: the first time it is sampled from,
    and all those optimizer steps learn from what came out.

    Args:
        group_size: Completions per prompt, G; at least 2.
        temperature: Divides the logits, of the sampler and of everything that is learnt from its samples; EGPO's 0.7.
        top_p: Probability of the set of tokens sampled from; 1 is all of them. Less is refused unless `importance_cap`
            is None, because the policy is scored, and corrected, under the whole distribution.
        mini_batches: Optimizer steps per pass over a batch of rollouts.
        inner_epochs: Passes over a batch of rollouts.
        micro_batch_tokens: Tokens, padding included, of one forward pass on one rank.
        rewards: Reward functions by name, each a function or a `RewardTerm` of a function and its weight (1 for a bare
            function); `reward` alone when None. `reward` judges the validation and the `rollout/...` metrics in any
            case.
        reward_timeout: Seconds that a function of the user's may take over a completion; None is no limit, and the
            functions then run in this process, one completion after the other.
        reward_workers: Processes of each function of the user's on each rank, as many completions as it judges at a
            time; 1 for a function that must be called in order or keeps a state.
        max_reward_errors: Share of the completions of a batch, over all ranks, above which the failures of a function
            stop the run. Below it, a completion on which a function with a weight fails is left out of its group's
            comparison and of the loss.
        advantage_scale: "std" divides by the deviation of the group; "none" does not (arXiv 2503.20783).
        entropy_scale: lambda of EGPO's bonus; 0 is plain GRPO.
        clip_divisor: alpha of EGPO's bonus, which is at most |A| / alpha.
        entropy_level: Whose entropy: the rollout's mean over its chain of thought (EGPO), or the token's own.
        clip_low: See `policy_loss`; 0.2, or 3e-4 where `ratio_level` is "sequence", when None.
        clip_high: See `policy_loss`; 0.2, or 4e-4 where `ratio_level` is "sequence", when None.
        dual_clip: See `policy_loss`.
        aggregation: See `policy_loss`; "token_mean", or "seq_mean" where `ratio_level` is "sequence", when None.
        ratio_level: See `policy_loss`; "sequence" is GSPO (arXiv 2507.18071).
        kl_coef: Weight of the KL with the reference: the model without its adapters where LoRA is used, else a frozen
            copy of the initial weights; with 0 there is no reference.
        max_resample: How often a group whose rewards are all equal is sampled anew, from the same prompt: prompts that
            are nearly always or never answered right gain weight, and `reward/mean`, of the last attempt, is no longer
            the policy's, which `reward/mean_first` is.
        dynamic_sampling: How often further prompts, as many as the batch has, are drawn and sampled from to take the
            place of groups whose rewards are all equal (DAPO, arXiv 2503.14476, 3.2); 10 is verl's bound. Groups that
            are too many are thrown away; if they are too few at last, the batch's own fill it up. `reward/...` and
            `rollout/...` are those of the groups that are kept, and so no longer the policy's.
        overlong: What becomes of completions that are cut at the limit: "none" treats them as others, "mask" leaves
            them out of the loss, "penalty" takes up to 1 off the reward of those that come near the limit.
        overlong_buffer: Tokens before the limit over which the penalty grows.
        importance_cap: Greatest weight of truncated importance sampling, which corrects for a generator that reports
            log-probabilities of its own; None corrects nothing.
        importance_above: What tokens above the cap weigh: the cap ("truncate") or nothing ("mask").
        learning_rate: Peak learning rate of AdamW.
        **kwargs: See `FunctionCallingModule`.
    """

    def __init__(
        self,
        *,
        group_size: int = 8,
        temperature: float = 0.7,
        top_p: float = 1.0,
        mini_batches: int = 1,
        inner_epochs: int = 1,
        micro_batch_tokens: int = 8192,
        rewards: dict[str, RewardTerm | Callable[[str, str, str], Any]] | None = None,
        reward_timeout: float | None = 10.0,
        reward_workers: int = 8,
        max_reward_errors: float = 0.25,
        advantage_scale: Literal["std", "none"] = "std",
        entropy_scale: float = 0.4,
        clip_divisor: float = 2.0,
        entropy_level: EntropyLevel = "rollout_cot",
        clip_low: float | None = None,
        clip_high: float | None = None,
        dual_clip: float | None = None,
        aggregation: Aggregation | None = None,
        ratio_level: RatioLevel = "token",
        kl_coef: float = 0.001,
        max_resample: int = 0,
        dynamic_sampling: int = 0,
        overlong: Literal["none", "mask", "penalty"] = "none",
        overlong_buffer: int = 64,
        importance_cap: float | None = 2.0,
        importance_above: Literal["truncate", "mask"] = "truncate",
        learning_rate: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        cap = math.inf if importance_cap is None else importance_cap
        check_numbers(
            overlong_buffer=(overlong_buffer, overlong_buffer >= 1, "at least 1"),
            importance_cap=(importance_cap, cap > 0, "a number greater than 0, or null"),
        )
        limit = self.generator.max_new_tokens
        self.group_size, self.temperature, self.top_p = group_size, temperature, top_p
        self.mini_batches, self.inner_epochs = mini_batches, inner_epochs
        self.repeats = mini_batches * inner_epochs  # optimizer steps that a batch of rollouts serves
        self.micro_batch_tokens = micro_batch_tokens
        self.advantage_scale = advantage_scale
        self.entropy_scale, self.clip_divisor, self.entropy_level = entropy_scale, clip_divisor, entropy_level
        self.kl_coef, self.max_resample, self.overlong = kl_coef, max_resample, overlong
        self.dynamic_sampling = dynamic_sampling
        self.importance_cap, self.importance_above = importance_cap, importance_above
        self.penalty = partial(overlong_penalty, max_length=limit, buffer=min(overlong_buffer, limit))
        clip_low, clip_high, aggregation = settled(clip_low, clip_high, aggregation, ratio_level)
        self.objective = partial(
            policy_loss,
            clip_low=clip_low,
            clip_high=clip_high,
            dual_clip=dual_clip,
            aggregation=aggregation,
            ratio_level=ratio_level,
            max_length=limit,
            kl_coef=kl_coef,
        )
        check_settings(self)
        given = rewards or {"function_call": self.reward}
        terms = {name: term if isinstance(term, RewardTerm) else RewardTerm(term) for name, term in given.items()}
        for name, term in terms.items():
            check_reward(name, term.function)
        self.paying = [term.function for term in terms.values()]
        self.rewards = Rewards(terms, reward_timeout, max_reward_errors, reward_workers, self.reward)
        self.sampled = CallAccuracy()
        self.frozen = False  # whether this run needs a frozen copy as its reference
        self.reference: ScoredCausalLM | None = None
        self.buffer: RolloutBuffer | None = None
        self.samples: list[Sample] = []  # of this step, if it sampled any, for callbacks; so are the next
        self.sample_advantages = torch.zeros(0, dtype=torch.float32)

    @property
    def method(self) -> str:
        """See `FunctionCallingModule.method`."""
        return "egpo" if self.entropy_scale else "grpo"

    def setup(self, stage: str) -> None:
        """Validate the settings before any weight is loaded.

        Raises:
            ValueError: If the sizes of the data and of the step do not go together.
        """
        super().setup(stage)
        self.frozen = stage == "fit" and self.kl_coef > 0 and self.lora is None
        if stage == "fit":
            check_sizes(self)

    def configure_model(self) -> None:
        """Load tokenizer and weights, once; again, for the copy alone, if they were loaded for a mere validation."""
        loaded = self.policy
        if self.frozen and self.reference is None:
            self.policy, self.derived_hash = None, ""
        super().configure_model()
        self.policy = loaded or self.policy

    def place(self, policy: ScoredCausalLM) -> None:
        """Take up the policy and, where the KL needs one, a frozen copy of it."""
        if self.frozen:
            self.reference = self.shard(frozen_copy(policy))
        super().place(policy)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Sample from a batch of prompts, if it is new, and take one optimizer step on its rollouts.

        Raises:
            ValueError: If another batch comes before the rollouts of the last one have served.
        """
        start = time.perf_counter()
        self.samples, metrics = [], {}
        if self.buffer is None:
            self.buffer, self.samples, metrics = roll_out(self, batch)
            self.sample_advantages = self.buffer.rollout_advantages()
            if metrics["reward/frac_zero_std"] == 1:
                rank_zero_warn(ALL_ALIKE)  # shown once; the share is logged of every batch
        elif self.buffer.rows != [example.id for example in batch.examples]:
            raise ValueError(
                f"Rollouts serve {self.repeats} optimizer steps (model.inner_epochs x model.mini_batches), and after "
                f"{self.buffer.served} of them other prompts came: the loader must give each batch so many times."
            )
        metrics |= self.update(self.buffer)
        speed = self.speed(start, metrics.pop("tokens"), metrics.pop("rollouts"))
        if self.buffer.served == self.repeats:
            self.buffer = None
        self.log_metrics(metrics | speed, shown="reward/mean")

    def update(self, buffer: RolloutBuffer) -> dict[str, float]:
        """Take one optimizer step on the rollouts whose turn it is."""
        start = time.perf_counter()
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        drop_nothing(self.policy)  # as when the old log-probabilities were computed
        chosen = buffer.chosen(self.mini_batches)
        micros = buffer.pack(self.micro_batch_tokens, chosen, self.packed)
        tokens = sum(len(buffer.completions[i]) for i in chosen)
        counts, most = self.over_ranks({"rollouts": len(chosen), "tokens": tokens}, {"micros": max(1, len(micros))})
        totals, rounds = PolicyTotals(counts["rollouts"], counts["tokens"]), int(most["micros"])
        parts = self.accumulate(
            [self.on_device(micro) for micro in micros], rounds, lambda micro: self.loss(micro, buffer, totals)
        )
        peaks = {"ratio_max": max(float(part.pop("ratio_max")) for part in parts)}
        sums, peaks = self.over_ranks({name: float(sum(part[name] for part in parts)) for name in parts[0]}, peaks)
        metrics = update_metrics(sums, peaks, buffer.ref_logprobs is not None)
        metrics |= {"train/lr": optimizer.param_groups[0]["lr"], "tokens": sums["used"], "rollouts": totals.rollouts}
        if totals.tokens:
            metrics["train/grad_norm"] = self.clip_gradients()
        else:
            optimizer.zero_grad()  # nothing to learn from: parameters without a gradient stay as they are
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        buffer.served += 1
        return metrics | {"time/update": time.perf_counter() - start}

    def loss(self, micro: PackedBatch, buffer: RolloutBuffer, totals: PolicyTotals) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch against the denominators of the whole step, and the sums that are logged."""
        targets = micro["targets"] != IGNORED
        samples, tokens = micro["doc_ids"][targets], micro["tokens"][targets]  # [N]
        scored = self.policy(
            micro["input_ids"], micro["position_ids"], micro["targets"], self.temperature, entropy=True
        )
        old, weights, reference = (
            None if values is None else at(values, tokens)
            for values in (buffer.old_logprobs, buffer.weights, buffer.ref_logprobs)
        )
        loss, parts = self.objective(
            scored.logprobs,
            scored.logprobs.detach() if old is None else old,
            at(buffer.advantages, tokens),
            samples,
            weights=weights,
            ref_logprobs=reference,
            totals=totals,
        )
        return loss, parts | {
            "entropy": torch.where(samples >= 0, scored.entropy.detach(), 0).sum(),
            "used": (micro["doc_ids"] >= 0).sum(),
            "padding": (micro["doc_ids"] < 0).sum(),
        }

    def on_device(self, micro: PackedBatch) -> PackedBatch:
        """A micro-batch where the policy is."""
        return {name: tensor.to(self.device) for name, tensor in micro.items()}

    def over_ranks(self, sums: dict[str, float], peaks: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
        """Sums and greatest values over all ranks, in one collective; every rank must give the same names."""
        mine = torch.tensor([*sums.values(), *peaks.values()], dtype=torch.float64, device=self.device)
        every_rank = self.all_gather(mine).view(-1, len(mine))
        total, greatest = every_rank.sum(0).tolist(), every_rank.max(0).values.tolist()
        return dict(zip(sums, total, strict=False)), dict(zip(peaks, greatest[len(sums) :], strict=True))

    def on_validation_epoch_end(self) -> None:
        """Log what was found; in training what the rollouts log, too, has `val/` before its name."""
        prefix = "val/" if self.trainer.state.fn == TrainerFn.FITTING else ""
        metrics = self.evaluated().items()
        self.log_metrics({n if n.startswith(("tool/", "val/")) else prefix + n: v for n, v in metrics})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add every rank's half-used rollouts (those of a step that was broken off are sampled again)."""
        super().on_save_checkpoint(checkpoint)
        used = self.buffer is not None and self.buffer.served
        checkpoint["rollouts"] = of_every_rank(self.buffer.state_dict() if used else None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up this rank's half-used rollouts.

        Raises:
            ValueError: See `check_checkpoint` and `buffer_of_rank`.
        """
        super().on_load_checkpoint(checkpoint)
        if self.fitting:
            ranks = self.trainer.world_size
            self.buffer = buffer_of_rank(checkpoint["rollouts"], self.global_rank, ranks, self.repeats)

    def check_checkpoint(self, checkpoint: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
        """Refuse the checkpoint of another model or module.

        Raises:
            ValueError: Saying what differs.
        """
        if self.fitting and "rollouts" not in checkpoint:
            raise ValueError(
                "The checkpoint is not one of GRPOModule: to start from its run, give it to model.init_from."
            )
        super().check_checkpoint(checkpoint, shapes)

    def is_derived(self, name: str) -> bool:
        """Whether checkpoints leave a weight out: what LoRA freezes, and the frozen copy."""
        return super().is_derived(name) or name.startswith(PREFIX)

    def settings_table(self) -> dict[str, str]:
        """Every size of a step, and what follows from it, for the table at the start of a run."""
        return described(self)

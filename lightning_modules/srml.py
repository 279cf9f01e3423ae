"""Supervised fine-tuning on reasoning and calls with separately weighted losses (FunReason, arXiv 2505.20192).

What the papers leave open and is decided here: alpha is a sigmoid, so that it stays inside (0, 1), and is kept within
`alpha_bounds`, because the loss alone would drive it to a corner (dL/dalpha = L_cot - L_call has no zero of its own);
the mean over a batch is a mean over documents (`reduction: sample`), counted over the whole optimizer step.
"""

import math
import time
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules.packing import CALL, COT, IGNORED, PackedBatch
from datamodules.sft import XLAMSFTDataModule
from datamodules.system.arguments import declared
from lightning_modules.base import FunctionCallingModule, check_numbers
from lightning_modules.checkpointing.resume import unbroken
from lightning_modules.metrics import SEGMENT_SUMS, TargetLoss, segment_metrics
from lightning_modules.objectives import Totals, multiscale_loss
from lightning_modules.ranks import over_ranks


@declared
class SRMLModule(FunctionCallingModule):
    """Fine-tunes on packed documents with the multiscale loss; one `training_step` is one optimizer step.

    Args:
        balance: "fixed" keeps `cot_weight` (v1); "learnable" trains it (Self-adjusted Signal Balancing, v3, eq. 3);
            "sft" weighs every token of the step alike, which is plain supervised fine-tuning.
        cot_weight: alpha, the weight of the chain of thought; the call has 1 - alpha. The initial value if learnable.
        reduction: "sample" averages per document, then over documents; "token" pools the tokens of the step. "token"
            for "sft", which is nothing else, and "sample" for the others when None.
        alpha_lr_mult: Learning rate of alpha, as a multiple of `learning_rate`.
        alpha_bounds: Least and greatest value of a learnable alpha.
        **kwargs: See `FunctionCallingModule`.
    """

    LEARNS_FROM = XLAMSFTDataModule

    def __init__(
        self,
        *,
        balance: Literal["fixed", "learnable", "sft"] = "fixed",
        cot_weight: float = 0.7,
        reduction: Literal["sample", "token"] | None = None,
        alpha_lr_mult: float = 1.0,
        alpha_bounds: tuple[float, float] = (0.05, 0.95),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        least, greatest = alpha_bounds
        check_numbers(
            cot_weight=(cot_weight, 0 <= cot_weight <= 1, "a number from 0 to 1"),
            alpha_lr_mult=(alpha_lr_mult, 0 <= alpha_lr_mult < math.inf, "a number from 0 up"),
        )
        if balance == "learnable" and not 0 < least <= cot_weight <= greatest < 1:
            raise ValueError(f"model.alpha_bounds {alpha_bounds} must lie in (0, 1) and hold cot_weight {cot_weight}.")
        if balance == "sft" and reduction == "sample":
            raise ValueError(
                "model.balance sft weighs every token alike, and model.reduction sample every document: leave "
                "model.reduction out."
            )
        self.balance = balance
        self.cot_weight = cot_weight
        self.reduction = reduction or ("token" if balance == "sft" else "sample")
        self.target_loss = TargetLoss(by_token=self.reduction == "token")
        self.alpha_lr_mult = alpha_lr_mult
        self.alpha_bounds = alpha_bounds
        if balance == "learnable":
            # Outside the policy: no shard, bucket or clipped norm holds it, and `training_step` reduces its gradient.
            self.alpha_logit = torch.nn.Parameter(torch.tensor([_logit(cot_weight)], dtype=torch.float32))
            self._ddp_params_and_buffers_to_ignore = ["alpha_logit"]

    @property
    def method(self) -> str:
        """See `FunctionCallingModule.method`."""
        return "sft" if self.balance == "sft" else "srml"

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The policy's groups and, if alpha is learnable, its own: without decay, which would pull it towards 0.5."""
        groups = super().parameter_groups()
        if self.balance == "learnable":
            rate = self.learning_rate * self.alpha_lr_mult
            groups.append({"params": [self.alpha_logit], "weight_decay": 0.0, "lr": rate})
        return groups

    def optimizer_settings(self) -> dict[str, Any]:
        """See `FunctionCallingModule.optimizer_settings`."""
        mine = {"alpha_lr_mult": self.alpha_lr_mult} if self.balance == "learnable" else {}
        return super().optimizer_settings() | mine

    def alpha(self) -> Tensor | float | None:
        """Weight of the chain of thought, as the loss takes it; None is its share of the tokens."""
        if self.balance == "sft":
            return None
        return torch.sigmoid(self.alpha_logit) if self.balance == "learnable" else self.cot_weight

    def training_step(self, batch: list[PackedBatch], batch_idx: int) -> None:
        """Take one optimizer step over this rank's micro-batches of a global batch, and log its metrics."""
        start = time.perf_counter()
        alpha = self.alpha()
        weight = alpha.item() if isinstance(alpha, Tensor) else alpha  # before the step changes it
        totals, rounds = self.count(batch)
        parts = self.accumulate(batch, rounds, lambda micro: self.loss(micro, totals))
        if self.balance == "learnable":
            gradient = self.trainer.strategy.reduce(self.alpha_logit.grad, reduce_op="sum")
            self.alpha_logit.grad = gradient / self.trainer.world_size
        norm = self.clip_gradients()
        metrics = {"train/grad_norm": norm, "train/lr": self.optimizers().param_groups[0]["lr"]}
        mine = {name: sum(float(part[name]) for part in parts) for name in SEGMENT_SUMS}
        sums, _ = over_ranks(mine, {}, self.device)
        metrics |= segment_metrics(sums, weight)
        with unbroken():
            self.step_optimizer()
            if self.balance == "learnable":
                with torch.no_grad():
                    self.alpha_logit.clamp_(*map(_logit, self.alpha_bounds))
        metrics |= self.speed(start, sums["tokens"], totals.samples)
        self.log_metrics(metrics, shown="train/loss")

    def loss(self, micro: PackedBatch, totals: Totals) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch, divided by the counts of the whole step, and sums for the metrics."""
        supervised = micro["targets"] != IGNORED
        segments, samples = micro["segments"][supervised], micro["doc_ids"][supervised]  # [N]
        scored = self.policy(micro["input_ids"], micro["position_ids"], micro["targets"], entropy=True)
        loss, parts = multiscale_loss(-scored.logprobs, segments, samples, self.alpha(), self.reduction, totals)
        with torch.no_grad():
            cot, call = segments == COT, segments == CALL
            parts |= {
                "loss": loss.detach(),
                "entropy_cot": scored.entropy[cot].sum(),
                "entropy_call": scored.entropy[call].sum(),
                "hits_cot": scored.hits[cot].sum(),
                "hits_call": scored.hits[call].sum(),
                "tokens": (micro["doc_ids"] >= 0).sum(),
                "padding": (micro["doc_ids"] < 0).sum(),
            }
        return loss, parts

    def count(self, batch: list[PackedBatch]) -> tuple[Totals, int]:
        """Count the denominators of the loss over all ranks, and the most micro-batches that a rank has.

        Raises:
            ValueError: If no rank has a supervised token in this step.
        """
        mine = dict.fromkeys(Totals._fields, 0.0)
        for micro in batch:
            segments, samples = micro["segments"], micro["doc_ids"]
            cot, call = segments == COT, segments == CALL
            mine["samples"] += samples[cot | call].unique().numel()
            mine["samples_cot"] += samples[cot].unique().numel()
            mine["samples_call"] += samples[call].unique().numel()
            mine["cot"] += float(cot.sum())
            mine["call"] += float(call.sum())
        sums, most = over_ranks(mine, {"micros": len(batch)}, self.device)
        totals = Totals(**sums)
        if totals.samples == 0:
            raise ValueError(f"No token of step {self.global_step} is supervised: look at the rows of data.path.")
        return totals, int(most["micros"])

    def check_checkpoint(self, checkpoint: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
        """Refuse the checkpoint of another model or module; that of `GRPOModule` holds its rollouts.

        Raises:
            ValueError: Saying what differs.
        """
        self.check_kind("rollouts" not in checkpoint)
        super().check_checkpoint(checkpoint, shapes)

    def settings_table(self) -> dict[str, str]:
        """Rows of the batch, its packing and its loss, for the table at the start of a run."""
        weights = {
            "fixed": f"{self.cot_weight:g} of the chain of thought's mean and {1 - self.cot_weight:g} of the call's",
            "learnable": f"both segments' means, the chain of thought's with a weight that is learnt from "
            f"{self.cot_weight:g}",
            "sft": "plain SFT, every token alike",
        }
        per = {"sample": "of each row, then the mean over rows", "token": "over all tokens of the step"}
        data = self.data
        fill = f"; {data.fill():.0%} of a micro-batch is no padding" if isinstance(data, XLAMSFTDataModule) else ""
        size = data.hparams.get("batch_size")  # of data that say so
        batch = {} if size is None else {"batch": f"{size:,} rows over all ranks"}
        return batch | {
            "rows": self.rows_of_documents() + fill,
            "loss": f"{weights[self.balance]}, {per[self.reduction]}",
        }


def _logit(share: float) -> float:
    return math.log(share / (1 - share))

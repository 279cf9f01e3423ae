"""Metrics from sums and counts that are reduced over ranks: losses of tokens, accuracy of calls, throughput."""

import time
from collections import deque

import torch
from torch import Tensor
from torchmetrics import Metric

from datamodules.packing import CALL, COT
from lightning_modules.rollout.rollout import CATEGORIES, Rollout

RATES = {
    "format": "format_rate",
    "parse": "parse_rate",
    "name": "name_acc",
    "arg_names": "arg_name_acc",
    "arg_values": "arg_value_acc",
    "exact_match": "exact_match",
}
"""Name of a part of the reward -> name of its mean in the logs."""
SEGMENT_SUMS = (
    *("loss", "loss_cot", "loss_call", "tokens_cot", "tokens_call"),
    *("hits_cot", "hits_call", "entropy_cot", "entropy_call", "tokens", "padding"),
)
"""What a training step sums over micro-batches and ranks before it is logged."""


class CallAccuracy(Metric):
    """Mean of every part of the reward, over all completions and by category.

    The state is two tables of sums, so that the metrics do not depend on how completions fall on batches and ranks.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        shape = (len(CATEGORIES), len(RATES))
        self.add_state("sums", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(CATEGORIES), dtype=torch.long), dist_reduce_fx="sum")
        # errors of the reward itself, calls written, completions cut at the length limit, tokens of completions
        self.add_state("others", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, rollout: Rollout) -> None:
        """Add one completion."""
        row, parts = CATEGORIES.index(rollout.category), rollout.result.parts
        self.sums[row] += self.sums.new_tensor([parts[part] for part in RATES])
        self.counts[row] += 1
        n_calls, cut = len(rollout.parsed.calls or []), rollout.finish_reason == "length"
        self.others += self.others.new_tensor([parts["error"], n_calls, cut, rollout.completion_tokens])

    @torch.inference_mode(False)
    def reset(self) -> None:
        """Reset the counts, with tensors that training may change after a validation of its own."""
        super().reset()

    def compute(self) -> dict[str, float]:
        """All metrics under their TensorBoard names; what has no completion is left out, so nothing is ever NaN."""
        counts = self.counts.tolist()
        total = sum(counts)
        if total == 0:
            return {}
        metrics = {f"tool/{rate}": s / total for rate, s in zip(RATES.values(), self.sums.sum(0).tolist(), strict=True)}
        for category, count, sums in zip(CATEGORIES, counts, self.sums.tolist(), strict=True):
            if count:
                metrics |= {f"tool/{category}/{rate}": s / count for rate, s in zip(RATES.values(), sums, strict=True)}
        if "tool/irrelevance/exact_match" in metrics:
            metrics["tool/irrelevance_acc"] = metrics["tool/irrelevance/exact_match"]
        errors, calls, truncated, tokens = self.others.tolist()
        return metrics | {
            "tool/n_calls": calls / total,
            "reward/errors": errors,
            "completion/truncated_frac": truncated / total,
            "completion/mean_length": tokens / total,
        }


class TargetLoss(Metric):
    """Mean negative log-likelihood of reference chains of thought and calls, given prompt and all before (no sampling).

    The state is sums and counts, so that the metrics do not depend on how documents fall on batches and ranks.

    Args:
        by_token: Pool the tokens of all documents; else take the mean of each document's mean, as `reduction: sample`.
    """

    full_state_update = False

    def __init__(self, by_token: bool = False) -> None:
        super().__init__()
        self.by_token = by_token
        for name in ("sums", "counts"):  # of the chain of thought and of the call
            self.add_state(name, torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, segments: Tensor, samples: Tensor) -> None:
        """Add the supervised tokens of complete documents.

        Args:
            nll: Negative log-likelihoods, [N], floating.
            segments: 1 chain of thought, 2 call, [N], long.
            samples: Which document each token is of, from 0 up, [N], long.
        """
        documents = int(samples.max()) + 1 if len(samples) else 0
        for place, segment in enumerate((COT, CALL)):
            mask = segments == segment
            sums, counts = torch.zeros(2, documents, dtype=torch.float64, device=nll.device)
            sums = sums.index_add(0, samples[mask], nll[mask].double())
            counts = counts.index_add(0, samples[mask], torch.ones_like(nll[mask], dtype=torch.float64))
            if not self.by_token:
                sums, counts = sums / counts.clamp(min=1), (counts > 0).double()
            self.sums[place] += sums.sum()
            self.counts[place] += counts.sum()

    @torch.inference_mode(False)
    def reset(self) -> None:
        """Reset the sums; see `CallAccuracy.reset`."""
        super().reset()

    def compute(self) -> dict[str, float]:
        """Both means; that of a segment that no document has is left out."""
        means = zip(("val/loss_cot", "val/loss_call"), self.sums.tolist(), self.counts.tolist(), strict=True)
        return {name: total / count for name, total, count in means if count}


def segment_metrics(sums: dict[str, float], cot_weight: float | None) -> dict[str, float]:
    """TensorBoard metrics of one optimizer step; a segment without tokens has none.

    Args:
        sums: `SEGMENT_SUMS` over the whole step.
        cot_weight: alpha; None is the share of CoT tokens.
    """
    supervised = sums["tokens_cot"] + sums["tokens_call"]
    weight = sums["tokens_cot"] / supervised if cot_weight is None else cot_weight
    metrics = {
        "train/loss": sums["loss"],
        "train/weight_cot": weight,
        "train/weight_call": 1 - weight,
        "perf/pad_frac": sums["padding"] / (sums["padding"] + sums["tokens"]),
    }
    for segment in ("cot", "call"):
        tokens = sums[f"tokens_{segment}"]
        metrics[f"train/tokens_{segment}"] = tokens
        if tokens:
            metrics[f"train/loss_{segment}"] = sums[f"loss_{segment}"]
            metrics[f"train/token_acc_{segment}"] = sums[f"hits_{segment}"] / tokens
            metrics[f"train/entropy_{segment}"] = sums[f"entropy_{segment}"] / tokens
    return metrics


class Throughput:
    """Tokens and samples per second over the last `WINDOW` optimizer steps."""

    WINDOW = 20

    def __init__(self) -> None:
        # (time, tokens, samples) at the end of a step, and before them the start of the first
        self.steps: deque[tuple[float, float, float]] = deque(maxlen=self.WINDOW + 1)

    def clear(self) -> None:
        """Forget all steps; the window starts with the next one."""
        self.steps.clear()

    def update(self, start: float, tokens: float, samples: float) -> dict[str, float]:
        """Add a step that ends now, and return its seconds and the rates.

        Args:
            start: When the step began, by `time.perf_counter`.
            tokens: What it learnt from, over all ranks.
            samples: Likewise.
        """
        now = time.perf_counter()
        if not self.steps:
            self.steps.append((start, 0.0, 0.0))
        self.steps.append((now, tokens, samples))
        (first, *_), *steps = self.steps
        _, all_tokens, all_samples = map(sum, zip(*steps, strict=True))
        seconds = now - first
        return {
            "time/step": now - start,
            "perf/tokens_per_s": all_tokens / seconds,
            "perf/samples_per_s": all_samples / seconds,
        }

"""Rows for reinforcement learning: prompts to sample completions of and to score against the rows' answers."""

import random
from functools import partial
from typing import Any

import numpy as np

from datamodules.base import XLAMDataModule
from datamodules.encoding import EncodedRows, encoded_prompts
from datamodules.loading import PromptBatch, RepeatingLoader


class XLAMPromptDataModule(XLAMDataModule):
    """Prompts of rows of xLAM's schema, to sample from and to score against their answers.

    Every loader yields `PromptBatch`es; prompt j of rank r is prompt r + j * ranks of the global batch. Rows need no
    chain of thought; one to train on whose gold answer earns no reward is bad. Batch sizes are global: the number of
    ranks changes no optimizer step.

    Args:
        prompts_per_step: Prompts sampled from together, over all ranks.
        repeats: Optimizer steps for which a batch of prompts serves: inner epochs times mini-batches.
        max_prompt_length: Tokens; longer prompts are not trained on, and counted.
        *args: Those of `XLAMDataModule`.
        **kwargs: Those of `XLAMDataModule`.

    Raises:
        ValueError: A size, fraction or choice is impossible.
    """

    BATCH = "prompts_per_step"
    LIMIT = "max_prompt_length"
    SIZES = ("prompts_per_step", "repeats", "max_prompt_length")
    REWARDED = True

    def __init__(
        self, *args: Any, prompts_per_step: int = 16, repeats: int = 1, max_prompt_length: int = 4096, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)

    def measure(self, rows: EncodedRows) -> np.ndarray:
        """Tokens of each prompt, [rows]."""
        return np.array(rows.table["prompt_tokens"])

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that completions are sampled for."""
        return max(super().longest_prompt, int(self.lengths[self.train_indices].max(initial=0)))

    def train_dataloader(self) -> RepeatingLoader:
        """Loader of this rank's share of each global batch of prompts, each `repeats` times."""
        h = self.hparams
        rows = len(self.train_indices)
        return RepeatingLoader(rows, h.prompts_per_step, self._batch, h.seed, h.repeats, self.train_digest)

    def training_summary(self) -> str:
        """Number of prompts, and steps of an epoch, in words."""
        h, steps = self.hparams, len(self.train_dataloader())
        served = f"{h.repeats} optimizer steps" if h.repeats > 1 else "one optimizer step"
        return (
            f"{self.too_long:,} prompts are longer than max_prompt_length {h.max_prompt_length} and not trained on. "
            f"Sampling from {len(self.train_indices):,} prompts, {h.prompts_per_step} at a time for {served}, "
            f"{steps:,} steps an epoch; validating on {len(self.val_indices):,}. Their order is that of seed {h.seed}."
        )

    def _batch(self, chosen: list[int]) -> PromptBatch:
        """This rank's share of a global batch of row numbers, and how to draw further prompts beside it."""
        batch = self._share(chosen)
        batch.further = partial(self._further, chosen)
        return batch

    def _further(self, chosen: list[int], draw: int) -> PromptBatch | None:
        """This rank's share of a draw of as many prompts again: of none twice, and of none of the batch itself.

        Which ones depends on the rows of the batch alone, and so on seed, epoch and place of it: the order of the
        batches is what it would be without, and a run that goes on needs nothing more than its place in that.
        """
        others = sorted(set(range(len(self.train_indices))) - set(chosen))
        random.Random(f"{chosen}").shuffle(others)
        drawn = others[(draw - 1) * len(chosen) : draw * len(chosen)]
        return self._share(drawn) if drawn else None

    def _share(self, chosen: list[int]) -> PromptBatch:
        """This rank's share of a global batch, as even as can be; empty where there are more ranks than prompts."""
        rank, ranks = self.ranks()
        mine = self.train_indices[chosen[rank::ranks]]
        return PromptBatch(self.rows.examples(mine), encoded_prompts(self.rows, mine))

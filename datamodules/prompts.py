"""Prompts to sample completions of, in global batches that are dealt to the ranks and handed out several times."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from datamodules.base import PromptBatch, PromptLoader, XLAMDataModule, encoded_prompts
from datamodules.encoding import EncodedRows
from datamodules.loading import ResumableLoader, epoch_order

__all__ = ["PromptBatch", "PromptLoader", "RepeatingLoader", "XLAMPromptDataModule"]


class RepeatingLoader(ResumableLoader):
    """A resumable loader that hands out each batch several times in a row.

    One batch of rollouts serves several optimizer steps, and the trainer takes one batch per step: the first time a
    batch comes it is sampled from, the other times the buffered rollouts are used. The position counts what was handed
    out, so that a run also resumes between two repeats.

    Args:
        rows: Number of rows.
        batch_size: Rows per global batch; the last one of an epoch may be smaller.
        make_batch: Makes this rank's batch from the rows of the global batch.
        seed: Seed of the order.
        repeats: How often each batch is handed out.
    """

    def __init__(
        self, rows: int, batch_size: int, make_batch: Callable[[list[int]], Any], seed: int = 0, repeats: int = 1
    ) -> None:
        super().__init__(rows, batch_size, make_batch, seed)
        self.repeats = repeats

    def __len__(self) -> int:
        """Batches of an epoch, repeats included."""
        return super().__len__() * self.repeats

    def __iter__(self) -> Iterator[Any]:
        """As many batches as an epoch has, from the present position on."""
        made, present = None, None
        for _ in range(len(self)):
            if self.batch == len(self):
                self.epoch, self.batch = self.epoch + 1, 0
            wanted = (self.epoch, self.batch // self.repeats)
            if wanted != present:
                start = wanted[1] * self.batch_size
                order = epoch_order(self.rows, self.seed, self.epoch)
                made, present = self.make_batch(order[start : start + self.batch_size]), wanted
            self.batch += 1  # before the yield: a checkpoint written in this step counts its batch as done
            yield made

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in."""
        return super().state_dict() | {"repeats": self.repeats}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position, in the order of the saved seed.

        Raises:
            ValueError: The position is one in other batches than this loader's.
        """
        for name, key in (("batch_size", "data.prompts_per_step"), ("repeats", "data.repeats")):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the checkpoint was written with {key} {state[name]} and this run has {getattr(self, name)}: "
                    f"resume with the same {key}"
                )
        super().load_state_dict(state)


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

    def train_dataloader(self) -> RepeatingLoader:
        """Loader of this rank's share of each global batch of prompts, each `repeats` times."""
        h = self.hparams
        return RepeatingLoader(len(self.train_indices), h.prompts_per_step, self._batch, h.seed, h.repeats)

    def training_summary(self) -> str:
        """How many prompts there are, and what an epoch of them is."""
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

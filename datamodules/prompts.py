"""Prompts to sample completions of, in global batches that are dealt to the ranks and handed out several times."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from datamodules.base import PromptBatch, PromptLoader, XLAMDataModule, encoded_prompts
from datamodules.chat.form import AnswerForm, Prompt, Think
from datamodules.encoding import EncodedRows
from datamodules.loading import ResumableLoader, epoch_order, settled_seed
from datamodules.packing import Packing
from datamodules.sources.targets import Turns
from datamodules.xlam import OnBadRow

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
        tokenizer: The model whose tokenizer and chat template to use (`model.init_args.init_from`).
        path: The rows of the command: those to train on in `fit`, those to evaluate in `validate`, `test` and
            `predict`. A file, a saved data set, a hub id or `toolbox[:split[:rows[:seed]]]`; see `readers.read_rows`.
        val_path: The rows that `fit` validates on; a held-out part of `path` when None.
        val_fraction: How much of `path` to hold out where there is no `val_path`; 0 is no validation.
        limit_val: Validate `fit` on at most so many rows, always the same ones.
        prompts_per_step: Prompts sampled from together, over all ranks.
        repeats: Optimizer steps for which a batch of prompts serves: inner epochs times mini-batches.
        max_prompt_length: Tokens; longer prompts are not trained on, and counted.
        eval_batch_size: Prompts generated together in evaluation, over all ranks.
        packing: Whether rollouts share rows in the update: `auto` if the model keeps them apart, which is tried when it
            is loaded; `on` refuses a model that does not; `off` gives each a row of its own, padded at the right.
        seed: Seed of the order of the prompts; that of the run (`seed_everything`) when None.
        on_bad_row: `raise` stops at the first bad row; `skip` leaves it out, counts it and writes it to
            `bad_rows.jsonl` in the folder of the run.
        cache_dir: Where encoded rows are kept; `funreason` in the cache of `datasets` when None.
        turns: Which turns of a chat become rows: the `last` that answers a user, or `every` one that answers a user or
            a tool. What is left out is counted.
        prompt: "paper" puts our text and the tools as JSON into the system message; "template" gives the tools to the
            model's own chat template. As the model was trained when None, and else "paper".
        answer_form: How calls are written: a "python" list, a "json" list, "hermes" blocks, or as the model's own
            "template" writes them; the reward accepts this form only. As the model was trained when None, and else
            "python", where calls with a name that is no Python identifier are written as JSON.
        think: Whether a chain of thought has to stand before the calls: "require" or "none" of it; "auto" follows
            the model, and requires one where it does not say how it was trained.
        system_prompt: Text in place of ours; the tools' JSON follows it, or, with `prompt: template`, nothing.
        chat_template: A file with a chat template, or "chatml", for a model that has none or another one.

    Raises:
        ValueError: A size, fraction or choice is impossible.
    """

    BATCH = "prompts_per_step"
    LIMIT = "max_prompt_length"
    REWARDED = True

    def __init__(
        self,
        tokenizer: str,
        path: str,
        val_path: str | None = None,
        val_fraction: float = 0.05,
        limit_val: int | None = None,
        prompts_per_step: int = 16,
        repeats: int = 1,
        max_prompt_length: int = 4096,
        eval_batch_size: int = 64,
        packing: Packing = "auto",
        seed: int | None = None,
        on_bad_row: OnBadRow = "raise",
        cache_dir: str | None = None,
        turns: Turns = "last",
        prompt: Prompt | None = None,
        answer_form: AnswerForm | None = None,
        think: Think = "auto",
        system_prompt: str | None = None,
        chat_template: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.hparams.seed = settled_seed(seed)
        self.check("prompts_per_step", "repeats", "max_prompt_length", "eval_batch_size", "limit_val")

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

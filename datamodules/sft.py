"""Rows for supervised fine-tuning: packed optimizer batches to train on, prompts to generate from in evaluation."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only

from datamodules.chat import load_tokenizer
from datamodules.encoding import EncodedRows, encode_rows
from datamodules.holdout import hold_out, query_places
from datamodules.loading import ResumableLoader, epoch_order
from datamodules.packing import PROMPT, PackedBatch, collate_packed, micro_batches, spread
from datamodules.prompts import PromptLoader
from datamodules.xlam import OnBadRow, complaint, write_jsonl

SHOWN = 5  # bad rows printed one by one


class XLAMSFTDataModule(LightningDataModule):
    """Rows of xLAM's schema, encoded with the model's tokenizer and packed without padding.

    Training yields, per optimizer step, this rank's micro-batches (`list[PackedBatch]`) of a global batch; validation,
    test and prediction yield `PromptBatch`es. Batch sizes are global: the number of ranks changes no optimizer step.

    Args:
        tokenizer: The model whose tokenizer and chat template to use (`model.init_args.init_from`).
        path: The rows of the command: those to train on in `fit`, those to evaluate in `validate`, `test` and
            `predict`. A file, a saved data set, a hub id or `toolbox[:split[:rows[:seed]]]`; see `readers.read_rows`.
        val_path: The rows that `fit` validates on; a held-out part of `path` when None.
        val_fraction: How much of `path` to hold out where there is no `val_path`; 0 is no validation.
        limit_val: Validate `fit` on at most so many rows, always the same ones.
        batch_size: Rows per optimizer step, over all ranks.
        eval_batch_size: Prompts generated together, over all ranks.
        max_length: Tokens of a packed row; longer rows are not trained on, and counted.
        micro_batch_tokens: Tokens, padding included, of one forward pass on one rank.
        seed: Seed of the order of the rows.
        on_bad_row: `raise` stops at the first bad row; `skip` leaves it out, counts it and writes it to
            `bad_rows.jsonl` in the folder of the run.
        cache_dir: Where encoded rows are kept; `funreason` in the cache of `datasets` when None.

    Raises:
        ValueError: A size, fraction or choice is impossible.
    """

    def __init__(
        self,
        tokenizer: str,
        path: str = "toolbox",
        val_path: str | None = None,
        val_fraction: float = 0.05,
        limit_val: int | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        max_length: int = 4096,
        micro_batch_tokens: int = 8192,
        seed: int = 0,
        on_bad_row: OnBadRow = "raise",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        for name in ("batch_size", "eval_batch_size", "max_length", "micro_batch_tokens", "limit_val"):
            if self.hparams[name] is not None and self.hparams[name] < 1:
                raise ValueError(f"data.{name} is {self.hparams[name]}; give at least 1")
        if max_length > micro_batch_tokens:
            raise ValueError(
                f"data.max_length {max_length} is more than data.micro_batch_tokens {micro_batch_tokens}: a forward "
                "pass holds at least one packed row, so raise micro_batch_tokens or lower max_length"
            )
        if not 0 <= val_fraction < 1:
            raise ValueError(f"data.val_fraction is {val_fraction}; give a fraction from 0 up to, but not including, 1")
        if on_bad_row not in ("raise", "skip"):
            raise ValueError(f"data.on_bad_row is {on_bad_row!r}; give raise or skip")

    def prepare_data(self) -> None:
        """Fill the cache, on one process per machine, and refuse what cannot work before anything is written."""
        self._load(self.trainer.state.fn if self.trainer else "fit")

    def setup(self, stage: str) -> None:
        """Take the rows from the cache, divide them, and say what was read and what was left out."""
        self._load(stage)
        log_dir = self.trainer.log_dir if self.trainer else None  # a collective: every rank asks
        bad = self.rows.bad + (self.val_rows.bad if self.val_rows is not self.rows else [])
        _report(self.summary(), bad, log_dir)

    def train_dataloader(self) -> ResumableLoader:
        """Loader of this rank's micro-batches, `list[PackedBatch]`, per optimizer step."""
        return ResumableLoader(
            len(self.train_indices), self.hparams.batch_size, self._packed_batches, seed=self.hparams.seed
        )

    def val_dataloader(self) -> PromptLoader | list[Any]:
        """Loader of prompts; none where nothing is held out."""
        return self._prompts() if len(self.val_indices) else []

    def test_dataloader(self) -> PromptLoader:
        """Loader of the prompts of `path`."""
        return self._prompts()

    predict_dataloader = test_dataloader

    def summary(self) -> str:
        """What was read, what was left out, and how the rest is trained on; one paragraph."""
        h, table = self.hparams, self.rows.table
        prompt, cot = (np.array(table[name]) for name in ("prompt_tokens", "cot_tokens"))
        call = self.lengths - prompt - cot
        text = (
            f"{h.path}: {len(table) + len(self.rows.bad):,} rows read, {len(self.rows.bad):,} bad, "
            f"{sum(table['json_form']):,} with their calls in JSON form, {int((cot == 0).sum()):,} without chain of "
            f"thought; mean tokens: prompt {prompt.mean():.0f}, CoT {cot.mean():.0f}, call {call.mean():.0f}."
        )
        if len(self.train_indices):
            text += (
                f" {self.too_long:,} rows are longer than max_length {h.max_length} and not trained on. Training on "
                f"{len(self.train_indices):,} rows, {len(self.train_dataloader()):,} steps of {h.batch_size} an epoch, "
                f"packed rows {self._fill():.0%} full; validating on {len(self.val_indices):,}."
            )
        return text

    def _load(self, stage: str) -> None:
        """Read the rows of a stage, and divide those of `fit` into rows to validate on and rows to train on."""
        h = self.hparams
        if h.batch_size < self._ranks()[1]:
            raise ValueError(
                f"data.batch_size {h.batch_size} is less than the {self._ranks()[1]} ranks of this run: "
                "raise batch_size or lower trainer.devices"
            )
        self.rows = self.val_rows = self._encode(h.path)
        self.lengths = pc.list_value_length(self.rows.table.data.column("input_ids")).to_numpy()  # [rows], tokens
        self.val_indices, self.train_indices, self.too_long = np.arange(len(self.lengths)), np.arange(0), 0
        if stage != "fit":
            return
        held_out = np.zeros(len(self.lengths), dtype=bool)
        if h.val_path:
            self.val_rows = self._encode(h.val_path)
        else:
            held_out = hold_out(query_places(self.rows.table["query"]), h.val_fraction)
        self.val_indices = np.arange(len(self.val_rows.table)) if h.val_path else np.flatnonzero(held_out)
        if h.limit_val is not None:
            order = np.argsort(query_places(self.val_rows.table[self.val_indices]["query"]), kind="stable")
            self.val_indices = np.sort(self.val_indices[order[: h.limit_val]])
        fits = self.lengths <= h.max_length
        self.train_indices = np.flatnonzero(fits & ~held_out)
        self.too_long = int((~fits & ~held_out).sum())
        if not len(self.train_indices):
            raise ValueError(
                f"every row of {h.path} is longer than data.max_length {h.max_length}, the shortest has "
                f"{self.lengths.min()} tokens: raise max_length"
                if self.too_long
                else f"{h.path} has too few rows to hold any out: set data.val_fraction to 0, or give data.val_path"
            )

    def _encode(self, path: str) -> EncodedRows:
        h = self.hparams
        return encode_rows(path, load_tokenizer(h.tokenizer), h.on_bad_row, h.cache_dir)

    def _ranks(self) -> tuple[int, int]:
        """This rank and the number of ranks."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _packed_batches(self, chosen: list[int]) -> list[PackedBatch]:
        """This rank's share of a global batch, in micro-batches; empty where there are more ranks than rows."""
        rank, ranks = self._ranks()
        indices = self.train_indices[chosen]
        mine = indices[spread(self.lengths[indices].tolist(), ranks)[rank]]
        if not len(mine):
            return []
        documents = self.rows.documents(mine)
        plan = micro_batches(self.lengths[mine].tolist(), self.hparams.max_length, self.hparams.micro_batch_tokens)
        return [collate_packed(documents, rows) for rows in plan]

    def _fill(self) -> float:
        """Share of the tokens that is not padding, over the first batches of the first epoch."""
        h, used, padded = self.hparams, 0, 0
        order = epoch_order(len(self.train_indices), h.seed, 0)
        for start in range(0, min(len(order), 8 * h.batch_size), h.batch_size):
            lengths = self.lengths[self.train_indices[order[start : start + h.batch_size]]]
            for part in spread(lengths.tolist(), self._ranks()[1]):
                for rows in micro_batches(lengths[part].tolist(), h.max_length, h.micro_batch_tokens):
                    filled = [int(lengths[part][row].sum()) for row in rows]
                    used, padded = used + sum(filled), padded + len(rows) * max(filled)
        return used / padded

    def _prompts(self) -> PromptLoader:
        documents = self.val_rows.documents(self.val_indices)
        prompt_ids = [document.input_ids[: document.segments.count(PROMPT)] for document in documents]
        examples = self.val_rows.examples(self.val_indices)
        return PromptLoader(examples, prompt_ids, self.hparams.eval_batch_size, *self._ranks())


@rank_zero_only
def _report(summary: str, bad: list[dict[str, Any]], log_dir: str | None) -> None:
    print(summary)
    for row in bad[:SHOWN]:
        print(f"left out: {complaint(row).rpartition(';')[0]}")
    if bad and log_dir:
        write_jsonl(Path(log_dir) / "bad_rows.jsonl", bad)
        print(f"all {len(bad):,} bad rows are in {Path(log_dir) / 'bad_rows.jsonl'}")

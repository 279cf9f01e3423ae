"""Rows for supervised fine-tuning: packed optimizer batches to train on, prompts to generate from in evaluation."""

from typing import Any

import numpy as np

from datamodules.base import XLAMDataModule
from datamodules.encoding import EncodedRows, segment_tokens
from datamodules.loading import ResumableLoader, epoch_order
from datamodules.packing import PackedBatch, balance_over_ranks, collate_packed, micro_batches


class XLAMSFTDataModule(XLAMDataModule):
    """Rows of xLAM's schema, encoded with the model's tokenizer and packed without padding where the model allows.

    Training yields, per optimizer step, this rank's micro-batches (`list[PackedBatch]`) of a global batch; validation,
    test and prediction yield `PromptBatch`es. Batch sizes are global: the number of ranks changes no optimizer step.

    Args:
        batch_size: Rows per optimizer step, over all ranks.
        max_length: Tokens of a row; longer rows are not trained on, and counted.
        micro_batch_tokens: Tokens, padding included, of one forward pass on one rank.
        *args: Those of `XLAMDataModule`.
        **kwargs: Those of `XLAMDataModule`.

    Raises:
        ValueError: A size, fraction or choice is impossible.
    """

    BATCH = "batch_size"
    LIMIT = "max_length"
    SIZES = ("batch_size", "max_length", "micro_batch_tokens")

    def __init__(
        self, *args: Any, batch_size: int = 32, max_length: int = 4096, micro_batch_tokens: int = 8192, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if max_length > micro_batch_tokens:
            raise ValueError(
                f"data.max_length {max_length} is more than data.micro_batch_tokens {micro_batch_tokens}: a forward "
                "pass holds at least one packed row, so raise micro_batch_tokens or lower max_length"
            )

    def measure(self, rows: EncodedRows) -> np.ndarray:
        """Tokens of prompt and target of each row, [rows]."""
        return segment_tokens(rows).sum(axis=0)

    def train_dataloader(self) -> ResumableLoader:
        """Loader of this rank's micro-batches, `list[PackedBatch]`, per optimizer step."""
        h, rows = self.hparams, len(self.train_indices)
        return ResumableLoader(rows, h.batch_size, self._packed_batches, h.seed, self.train_digest)

    def training_summary(self) -> str:
        """Number of rows, and steps of an epoch, in words."""
        h = self.hparams
        return (
            f"{self.too_long:,} rows are longer than max_length {h.max_length} and not trained on. Training on "
            f"{len(self.train_indices):,} rows, {len(self.train_dataloader()):,} steps of {h.batch_size} an epoch; "
            f"validating on {len(self.val_indices):,}. Their order is that of seed {h.seed}."
        )

    def _packed_batches(self, chosen: list[int]) -> list[PackedBatch]:
        """This rank's share of a global batch, in micro-batches; empty where there are more ranks than rows."""
        rank, ranks = self.ranks()
        indices = self.train_indices[chosen]
        mine = indices[balance_over_ranks(self.lengths[indices].tolist(), ranks)[rank]]
        if not len(mine):
            return []
        documents = self.rows.documents(mine)
        return [collate_packed(documents, rows) for rows in self._rows(self.lengths[mine].tolist())]

    def _rows(self, lengths: list[int]) -> list[list[list[int]]]:
        """Documents of these lengths in rows and micro-batches, as the module's model allows."""
        h, module = self.hparams, getattr(self.trainer, "lightning_module", None)
        return micro_batches(lengths, h.max_length, h.micro_batch_tokens, getattr(module, "packed", h.packing != "off"))

    def fill(self) -> float:
        """Share of the tokens that is not padding, over the first batches of the first epoch."""
        h, used, padded = self.hparams, 0, 0
        order = epoch_order(len(self.train_indices), h.seed, 0)
        for start in range(0, min(len(order), 8 * h.batch_size), h.batch_size):
            lengths = self.lengths[self.train_indices[order[start : start + h.batch_size]]]
            for part in balance_over_ranks(lengths.tolist(), self.ranks()[1]):
                for rows in self._rows(lengths[part].tolist()):
                    filled = [int(lengths[part][row].sum()) for row in rows]
                    used, padded = used + sum(filled), padded + len(rows) * max(filled)
        return used / padded

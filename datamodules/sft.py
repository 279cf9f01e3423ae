"""Rows for supervised fine-tuning: packed optimizer batches to train on, prompts to generate from in evaluation."""

import numpy as np

from datamodules.base import XLAMDataModule, total_tokens
from datamodules.chat.form import AnswerForm, Prompt, Think
from datamodules.encoding import EncodedRows
from datamodules.loading import ResumableLoader, epoch_order, settled_seed
from datamodules.packing import PackedBatch, Packing, balance_over_ranks, collate_packed, micro_batches
from datamodules.sources.targets import Turns
from datamodules.xlam import OnBadRow


class XLAMSFTDataModule(XLAMDataModule):
    """Rows of xLAM's schema, encoded with the model's tokenizer and packed without padding where the model allows.

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
        max_length: Tokens of a row; longer rows are not trained on, and counted.
        micro_batch_tokens: Tokens, padding included, of one forward pass on one rank.
        packing: Whether documents share rows: `auto` if the model keeps them apart, which is tried when it is loaded;
            `on` refuses a model that does not; `off` gives each a row of its own, padded at the right.
        seed: Seed of the order of the rows; that of the run (`seed_everything`) when None.
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
            the rows of `fit`, and in other commands the model, as far as it says how it was trained.
        system_prompt: Text in place of ours; the tools' JSON follows it, or, with `prompt: template`, nothing.
        chat_template: A file with a chat template, or "chatml", for a model that has none or another one.

    Raises:
        ValueError: A size, fraction or choice is impossible.
    """

    BATCH = "batch_size"
    LIMIT = "max_length"

    def __init__(
        self,
        tokenizer: str,
        path: str,
        val_path: str | None = None,
        val_fraction: float = 0.05,
        limit_val: int | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        max_length: int = 4096,
        micro_batch_tokens: int = 8192,
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
        self.check("batch_size", "eval_batch_size", "max_length", "micro_batch_tokens", "limit_val")
        if max_length > micro_batch_tokens:
            raise ValueError(
                f"data.max_length {max_length} is more than data.micro_batch_tokens {micro_batch_tokens}: a forward "
                "pass holds at least one packed row, so raise micro_batch_tokens or lower max_length"
            )

    def measure(self, rows: EncodedRows) -> np.ndarray:
        """Tokens of prompt and target of each row, [rows]."""
        return total_tokens(rows)

    def train_dataloader(self) -> ResumableLoader:
        """Loader of this rank's micro-batches, `list[PackedBatch]`, per optimizer step."""
        return ResumableLoader(
            len(self.train_indices), self.hparams.batch_size, self._packed_batches, seed=self.hparams.seed
        )

    def training_summary(self) -> str:
        """How many rows there are, and what an epoch of them is."""
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

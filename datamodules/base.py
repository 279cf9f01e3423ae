"""The base of the data modules over xLAM rows: reading, holding out a part, and prompts to evaluate on."""

import inspect
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only

from datamodules.bfcl.package import INSTALLED, find_package, instructions
from datamodules.cache import encode_rows
from datamodules.chat.form import AnswerForm, ChatForm, Prompt, Think, ToolForm, reads, recorded_form, resolve_form
from datamodules.chat.templates import first_token, turns_text
from datamodules.chat.tokenizer import load_tokenizer
from datamodules.encoding import BadRows, EncodedRows, encoded_prompts, segment_tokens
from datamodules.gold import check_gold
from datamodules.holdout import hold_out, opening, query_places
from datamodules.loading import PromptLoader, resolve_seed
from datamodules.packing import Packing
from datamodules.readers import files_left_out
from datamodules.reports import describe
from datamodules.sources.targets import Turns
from datamodules.system.arguments import taken
from datamodules.system.escaping import visible
from datamodules.system.files import check_writable
from datamodules.system.sentences import ONE_PATH
from datamodules.xlam import OnBadRow, left_out, write_jsonl
from rewards import FunctionCallReward

SHOWN = 5  # bad rows printed one by one


class XLAMDataModule(LightningDataModule):
    """Rows of xLAM's schema, divided into those to train on and those to evaluate; prompts of the latter.

    A subclass adds arguments, names those that the class attributes are about, and gives `measure`, `train_dataloader`
    and `training_summary`. All arguments are hyperparameters.

    Args:
        tokenizer: The model whose tokenizer and chat template to use (`model.init_args.init_from`).
        path: The rows of the command: those to train on in `fit`, those to evaluate in `validate`, `test` and
            `predict`. A file, a folder of files, a saved data set, a hub id or `toolbox[:split[:rows[:seed]]]`; see
            `readers.read_rows`.
        val_path: The rows that `fit` validates on; a held-out part of `path` when None.
        val_fraction: How much of `path` to hold out where there is no `val_path`; 0 is no validation.
        limit_val: Validate `fit` on at most so many rows, always the same ones.
        eval_batch_size: Prompts generated together in evaluation, over all ranks.
        packing: Whether documents (rows to train on, or rollouts) share rows of a batch: `auto` if the model keeps them
            apart, which is tried when it is loaded; `on` refuses a model that does not; `off` gives each a row of its
            own, padded at the right.
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
        think: Whether a chain of thought has to stand before the calls: "require" or "none". "auto" is as the rows have
            it in fine-tuning; elsewhere as the model was trained and, where it does not say, as the rows have it (in
            reinforcement learning: "require").
        system_prompt: Text in place of ours; the tools follow it, or, with `prompt: template`, nothing. "bfcl" is the
            text that BFCL asks models with, taken from the installed `bfcl-eval`; tools are then written as there.
        tool_form: How tools are written below the system text: as compact "json", or as "bfcl" prints them; when None
            "bfcl" with `system_prompt: bfcl`, else as the model was trained, and else "json".
        chat_template: A file with a chat template, or "chatml", for a model that has none or another one.

    Raises:
        ValueError: A size, fraction or choice is impossible.
    """

    BATCH: str  # the argument with the rows of a global training batch
    LIMIT: str  # the argument that bounds the rows trained on
    SIZES: tuple[str, ...]  # the arguments of the subclass that must be at least 1
    REWARDED = False  # whether rows are trained on through rewards alone

    def __init__(
        self,
        tokenizer: str,
        path: str,
        val_path: str | None = None,
        val_fraction: float = 0.05,
        limit_val: int | None = None,
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
        tool_form: ToolForm | None = None,
        chat_template: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # the subclass' arguments, too
        self.hparams.seed = resolve_seed(seed)
        self._check()

    def measure(self, rows: EncodedRows) -> np.ndarray:
        """Number of tokens of each row that `LIMIT` bounds, [rows]."""
        raise NotImplementedError

    def training_summary(self) -> str:
        """A sentence or two on how the rows are trained on."""
        raise NotImplementedError

    def _check(self) -> None:
        """Refuse impossible arguments."""
        h = self.hparams
        if isinstance(h.packing, bool):  # as YAML reads `on` and `off`
            h.packing = "on" if h.packing else "off"
        for name in ("path", "val_path"):
            if isinstance(h[name], list | tuple):
                raise ValueError(f"data.{name} {ONE_PATH}")
        # `declared` would do so, but `save_hyperparameters` sees no argument of a subclass past what that puts between.
        for kind in type(self).__mro__:
            for name, wanted in inspect.get_annotations(vars(kind).get("__init__", object.__init__)).items():
                if name in h:
                    h[name] = taken(f"data.{name}", h[name], wanted)
        for name in ("path", "val_path", "cache_dir"):
            if h[name] == "":
                raise ValueError(f"data.{name} is empty; give a path, or leave it out")
        if h.cache_dir:
            check_writable("data.cache_dir", h.cache_dir)
        for name in (*self.SIZES, "eval_batch_size", "limit_val"):
            if h[name] is not None and h[name] < 1:
                raise ValueError(f"data.{name} is {h[name]}; give at least 1")
        if not 0 <= h.val_fraction < 1:
            raise ValueError(
                f"data.val_fraction is {h.val_fraction}; give a fraction from 0 up to, but not including, 1"
            )
        if h.prompt != "template" and h.answer_form == "template":
            ChatForm(answer_form="template").check()

    def prepare_data(self) -> None:
        """Fill the cache, on one process per machine, and validate the settings before anything is written.

        What is found wrong by one rank of several is left to `setup`, in which all find it: here they wait for it.
        """
        try:
            self._load(self.trainer.state.fn if self.trainer else "fit")
        except (OSError, ValueError):
            if self.ranks()[1] == 1:
                raise

    def setup(self, stage: str) -> None:
        """Take the rows from the cache, divide them, and say what was read and what was left out."""
        self._load(stage)
        log_dir = self.trainer.log_dir if self.trainer else None  # a collective: every rank asks
        bad = [self.rows.bad, *([self.val_rows.bad] if self.val_rows is not self.rows else [])]
        _report(self.summary(), bad, log_dir)

    def val_dataloader(self) -> PromptLoader | list[Any]:
        """Loader of held-out prompts with the targets to score; an empty list where nothing is held out."""
        if not len(self.val_indices):
            return []
        loader = self.test_dataloader()
        loader.documents = self.val_rows.documents(self.val_indices)
        return loader

    def test_dataloader(self) -> PromptLoader:
        """Loader of the prompts of `path`."""
        examples, prompts = self.val_rows.examples(self.val_indices), encoded_prompts(self.val_rows, self.val_indices)
        return PromptLoader(examples, prompts, self.hparams.eval_batch_size, *self.ranks())

    predict_dataloader = test_dataloader

    def summary(self) -> str:
        """A paragraph on the rows read, those left out, and how the rest is trained on."""
        table = self.rows.table
        prompt, cot, call = segment_tokens(self.rows)
        text = (
            f"{self.hparams.path}: {len(table) + len(self.rows.bad):,} rows read, {len(self.rows.bad):,} bad, "
            f"{int((cot == 0).sum()):,} without chain of thought; mean tokens: prompt "
            f"{prompt.mean():.0f}, CoT {cot.mean():.0f}, call {call.mean():.0f}."
        )
        text += f"\n  {self.form.described(self.hparams.think)}" + self._of_thoughts(cot)
        if self.form.answer_form == "python" and (odd := sum(table["json_form"])):
            text += f" The calls of {odd:,} rows are written as JSON, for a name in them is no Python identifier."
        first = first_token(self.tokenizer)
        if not turns_text(self.tokenizer, [{"role": "user", "content": "question"}]).startswith(first):
            text += (
                f" Prompts do not begin with {first!r}, which the tokenizer puts before texts and models may need: let "
                "the template write {{ bos_token }} first."
            )
        for path, rows in {self.hparams.path: self.rows, self.hparams.val_path: self.val_rows}.items():
            if path and rows.unrewarded:
                text += f" The gold answers of {rows.unrewarded:,} rows of {path} earn nothing under model.reward."
        text = f"{text} {self.training_summary()}" if len(self.train_indices) else text
        folders = filter(None, (self.hparams.path, self.hparams.val_path))
        lines = [text, *describe(self.rows.counts), *map(files_left_out, folders)]
        return "\n  ".join(filter(None, lines))

    def _of_thoughts(self, cot: np.ndarray) -> str:
        """What becomes of rows that have, or have not, the chain of thought that the form asks for."""
        present = sum(text != "" for text in self.rows.table["cot"])
        if not self.form.think:
            return f" The chains of thought of {present:,} rows are not used." if present else ""
        if not len(self.train_indices) or self.REWARDED or not (missing := int((cot == 0).sum())):
            return ""
        return (
            f" {missing:,} of {len(cot):,} rows have none: they teach the model to answer at once, which the reward "
            "scores 0. Give them one (funreason-refine --config configs/cot.yaml), leave them out, or set data.think "
            "to none."
        )

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that completions are generated for."""
        rows = self.val_rows.table.select_columns("prompt_tokens")[self.val_indices]  # of all rows these alone are read
        return max(rows["prompt_tokens"], default=0)

    def ranks(self) -> tuple[int, int]:
        """This rank and the number of ranks."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _load(self, stage: str) -> None:
        """Read the rows of a stage in the form of the run, and divide those of `fit`."""
        h = self.hparams
        if h[self.BATCH] < self.ranks()[1]:
            raise ValueError(
                f"data.{self.BATCH} {h[self.BATCH]} is less than the {self.ranks()[1]} ranks of this run: "
                f"raise {self.BATCH} or lower trainer.devices"
            )
        self.tokenizer = load_tokenizer(h.tokenizer, h.chat_template)
        think = {"require": True, "none": False, "auto": None}[h.think]
        system, tool_form = h.system_prompt, h.tool_form
        if system == "bfcl":
            system = instructions(find_package(INSTALLED))
            tool_form = tool_form or (None if h.prompt == "template" else "bfcl")
        self.form = resolve_form(self.tokenizer, h.prompt, h.answer_form, think, system, tool_form)
        self.rows = self._encode(h.path, self.REWARDED and stage == "fit", stage == "predict")
        asks_rows = think is None and not self.REWARDED and (stage == "fit" or recorded_form(self.tokenizer) is None)
        if asks_rows and any(self.rows.table["answers"]):
            thoughtful = any(cot != "" for cot in self.rows.table["cot"])
            if thoughtful != self.form.think:
                self.form = replace(self.form, think=thoughtful)
                self.rows = self._encode(h.path, False, stage == "predict")
        self.val_rows = self.rows
        self.lengths = self.measure(self.rows)  # [rows], tokens
        self.val_indices, self.train_indices, self.too_long = np.arange(len(self.lengths)), np.arange(0), 0
        if stage == "fit":
            self._divide()

    def _divide(self) -> None:
        """Divide the rows into those to validate on, those to train on, and those that are too long for it."""
        h = self.hparams
        held_out = np.zeros(len(self.lengths), dtype=bool)
        if h.val_path:
            self.val_rows = self._encode(h.val_path, False)
        else:
            requests = map(opening, self.rows.table["query"], self.rows.table["history"])
            held_out = hold_out(query_places(requests), h.val_fraction)
        self.val_indices = np.arange(len(self.val_rows.table)) if h.val_path else np.flatnonzero(held_out)
        if h.limit_val is not None:
            queries = self.val_rows.table.select_columns("query")[self.val_indices]["query"]
            order = np.argsort(query_places(queries), kind="stable")
            self.val_indices = np.sort(self.val_indices[order[: h.limit_val]])
        fits = self.lengths <= h[self.LIMIT]
        self.train_indices = np.flatnonzero(fits & ~held_out)
        self.too_long = int((~fits & ~held_out).sum())
        self.train_digest = self.rows.digest(self.train_indices)
        if not len(self.train_indices):
            raise ValueError(
                f"every row of {h.path} is longer than data.{self.LIMIT} {h[self.LIMIT]}, the shortest has "
                f"{self.lengths.min()} tokens: raise {self.LIMIT}"
                if self.too_long
                else f"{h.path} has too few rows to hold any out: set data.val_fraction to 0, or give data.val_path"
            )

    def _encode(self, path: str, learnt: bool, unanswered: bool = False) -> EncodedRows:
        """The rows of a source whose gold answers can be returned and, if rewards are learnt from, earn one.

        With `unanswered` rows need no answer.
        """
        h, module = self.hparams, getattr(self.trainer, "lightning_module", None)
        reward_functions = getattr(module, "reward_functions", [FunctionCallReward()])
        ours = [reward for reward in reward_functions if isinstance(reward, FunctionCallReward)]
        learnt = learnt and len(ours) == len(reward_functions)  # what others give is not known
        judging = getattr(module, "reward", None)
        for reward in [*ours, *([judging] if isinstance(judging, FunctionCallReward) else [])]:
            reward.form, reward.think = reads(self.form, self.tokenizer), self.form.think
        rows = encode_rows(path, self.tokenizer, h.on_bad_row, h.cache_dir, h.turns, self.form, unanswered)
        rows = check_gold(rows, path, ours or [module.reward], learnt, self.form, self.tokenizer)
        rows.check(path, h.on_bad_row)
        return rows


@rank_zero_only
def _report(summary: str, bad: list[BadRows], log_dir: str | None) -> None:
    print(visible(summary))
    for row in islice(chain.from_iterable(bad), SHOWN):
        print(f"left out: {left_out(row)}")
    if (count := sum(map(len, bad))) and log_dir:
        write_jsonl(Path(log_dir) / "bad_rows.jsonl", chain.from_iterable(bad))
        print(f"all {count:,} bad rows are in {Path(log_dir) / 'bad_rows.jsonl'}")

"""The report of `funreason show`, computed without weights: rows, lengths, one row, its rewards, steps, memory."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.trainer.states import TrainerFn

from datamodules.base import SHOWN, XLAMDataModule
from datamodules.chat.form import frame_of
from datamodules.chat.segments import target_text
from datamodules.chat.tokenizer import resolve_model_folder
from datamodules.encoding import segment_tokens
from datamodules.xlam import left_out
from lightning_modules.base import FunctionCallingModule
from lightning_modules.callbacks.cheaper import cheaper
from lightning_modules.callbacks.memory import estimate
from lightning_modules.callbacks.memory_text import memory_rows, shown
from lightning_modules.callbacks.plan import build_empty, device_memory, parameter_counts, plan_of
from lightning_modules.callbacks.summary import rate_of, tokens_of_step
from lightning_modules.callbacks.validations import check_monitors, check_validates
from lightning_modules.cli import FunReasonCLI
from lightning_modules.commands.answers import ScoredAnswer, score_answers
from lightning_modules.commands.checks import check_attention
from lightning_modules.commands.page import Line, Section, plain
from lightning_modules.commands.sections import answer_lines, decoded, demo_values, histogram, table
from lightning_modules.grpo import GRPOModule
from lightning_modules.policy.reference import frozen_copy
from lightning_modules.policy.row_checks import check_vocabulary
from lightning_modules.policy.weight_files import has_weights
from lightning_modules.policy.weights import check_model
from lightning_modules.rollout.scoring import same_reward


class Preview(FunReasonCLI):
    """The settings of `fit`, read and checked as they are there; no run begins, and none has a folder."""

    starts = False

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of `show` to those of `fit`."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--row", type=int | None, default=None)
        parser.add_argument("--html", type=str | None, default=None)
        parser.add_argument("--color", action="store_true")

    def _run_subcommand(self, subcommand: str) -> None:
        """Train nothing."""

    @property
    def options(self) -> Namespace:
        """The settings, `row`, `html` and `color` among them."""
        return self.config[self.subcommand]


def prepare(trainer: Trainer, module: FunctionCallingModule, data: XLAMDataModule) -> None:
    """Read the rows, and build the model without its weights, as the start of `fit` does with them.

    Raises:
        ValueError: What `fit` would refuse, too, or data that have no rows of calls.
    """
    if not isinstance(data, XLAMDataModule):
        raise ValueError(
            f"data.class_path {type(data).__name__} has no rows with calls, so there is nothing to show: give "
            "XLAMSFTDataModule or XLAMPromptDataModule"
        )
    check_attention(module.attn_implementation, trainer.strategy.root_device)
    check_monitors(trainer, module)
    check_model(module.init_from, module.attn_implementation)
    trainer.state.fn = TrainerFn.FITTING
    trainer.training = True
    trainer._data_connector.attach_data(module, datamodule=data)
    trainer.strategy.connect(module)
    if trainer.max_epochs is None:  # as `fit` does
        trainer.fit_loop.max_epochs = 1000 if trainer.max_steps == -1 else -1
    data.prepare_data()
    module.setup("fit")
    check_validates(trainer)
    module.to(trainer.strategy.root_device)  # the empty model could not move
    build_empty(module)
    check_vocabulary(data.tokenizer, module.policy.causal_lm)
    module.check_rows_fit(data.tokenizer, module.policy)
    if getattr(module, "frozen", False):
        module.reference = frozen_copy(module.policy)
    module.configure_optimizers()  # refuses a run without steps, or without an end


def preview(
    trainer: Trainer, module: FunctionCallingModule, data: XLAMDataModule, number: int | None = None
) -> list[Section]:
    """The sections of the report on a run that `prepare` has set up.

    Args:
        trainer: The run's.
        module: Its module.
        data: Its rows.
        number: Of the row to show, as it is counted in the source; the first one trained on when None.

    Raises:
        ValueError: There is no such row, or it was left out.
    """
    place = place_of(data, number)
    answers, totals = answers_of(module, data, place)
    sections = [
        Section("Rows", rows_read(data)),
        Section("Lengths", histogram(data.lengths, data.hparams[data.LIMIT], f"data.{data.LIMIT}")),
        Section(f"Row {data.rows.table[place]['row']:,} of {data.hparams.path}", row_lines(data, place)),
        Section("What answers to it earn", answer_lines(answers, totals)),
        Section("Steps", table(steps(trainer, module, data))),
        Section("Memory", table(memory(trainer, module))),
    ]
    demo = demo_values(settings_of(trainer, module, data), sum(parameter_counts(module)))
    return [*sections, Section("Still as in the demo", table(demo))] if demo else sections


def rows_read(data: XLAMDataModule) -> list[Line]:
    """Lines on the rows read: forms of rows, chat form, rows left out and why."""
    lines = [plain(line.strip()) for line in data.summary().splitlines()]
    bad = [data.rows.bad, *([data.val_rows.bad] if data.val_rows is not data.rows else [])]
    for rows in bad:
        lines += [plain(f"left out: {left_out(row)}", "bad") for row in islice(rows, SHOWN)]
        if len(rows) > SHOWN:
            lines.append(plain(f"and {len(rows) - SHOWN:,} more, which a run lists in its bad_rows.jsonl", "bad"))
    return lines


def place_of(data: XLAMDataModule, number: int | None) -> int:
    """The place among the good rows of the one with a number; of several that were cut from it, the first.

    Raises:
        ValueError: There is no such row, or it was left out.
    """
    if number is None:
        return int(data.train_indices[0])
    numbers = np.array(data.rows.table["row"])
    if len(found := np.flatnonzero(numbers == number)):
        return int(found[0])
    reason = next((left_out(row) for row in data.rows.bad if row["row"] == number), "")
    last = max([int(numbers.max()), *(row["row"] for row in data.rows.bad)])
    raise ValueError(f"--row {number}: {reason or f'the rows of {data.hparams.path} are numbered from 1 to {last:,}'}")


def row_lines(data: XLAMDataModule, place: int) -> list[Line]:
    """A row as the model is trained on it, and whether it is trained on, held out or too long."""
    row, (document,) = data.rows.table[place], data.rows.documents([place])
    if place in data.train_indices:
        use = "trained on" if not data.REWARDED else "sampled from"
    elif data.lengths[place] > data.hparams[data.LIMIT]:
        use = f"longer than data.{data.LIMIT}, and not trained on"
    else:
        use = "held out to validate on"
    of_it = sum(number == row["row"] for number in data.rows.table["row"])
    kind = f", the first of {of_it} answers that were cut from it" if of_it > 1 else ""
    json_form = data.form.answer_form == "python" and row["json_form"]
    kind += "; its calls are JSON, for a name in them is no Python identifier" if json_form else ""
    return [
        plain(f"id {row['id']}, {use}: {len(document.input_ids):,} tokens{kind}"),
        *decoded(data.tokenizer, document),
    ]


def answers_of(
    module: FunctionCallingModule, data: XLAMDataModule, place: int
) -> tuple[list[ScoredAnswer], list[float | None] | None]:
    """Answers to a row scored by `model.reward`, and their weighted sums under `model.rewards` where those differ."""
    (example,) = data.rows.examples([place])
    target, frame = target_text(example, data.form, data.tokenizer), frame_of(data.form, data.tokenizer)
    answers = score_answers(module.reward, example, target, frame, learnt=not data.REWARDED)
    rewards = getattr(module, "rewards", None)
    if rewards is None or all(same_reward(function, module.reward) for function in rewards.functions.values()):
        return answers, None
    inputs = [(answer.text, example.tools, example.answers) for answer in answers]
    scores = rewards(inputs, [answer.result for answer in answers])
    columns = zip(*([answer.value for answer in scores[name]] for name in rewards.weights), strict=True)
    return answers, [rewards.total(dict(zip(rewards.weights, column, strict=True))) for column in columns]


def steps(trainer: Trainer, module: FunctionCallingModule, data: XLAMDataModule) -> dict[str, str]:
    """Steps and tokens of an epoch and of the run, and what a step is."""
    total, each = int(trainer.estimated_stepping_batches), len(data.train_dataloader())
    prompt, cot, call = segment_tokens(data.rows)[:, data.train_indices].sum(axis=1).tolist()
    tokens = f"{prompt + cot + call:,} tokens: prompts {prompt:,}, chains of thought {cot:,}, calls {call:,}"
    if isinstance(module, GRPOModule):
        rollouts = len(data.train_indices) * module.sampling.group_size
        most = module.sampling.group_size * prompt + rollouts * module.generator.max_new_tokens
        tokens = f"at most {most:,} tokens: {rollouts:,} rollouts with their prompts"
    rows = {"an epoch": f"{each:,} steps, {tokens}", "the run": f"{total:,} steps, {total / each:.3g} of an epoch's"}
    rows |= tokens_of_step(trainer, module) | {"learning rate": rate_of(trainer, module)} | module.settings_table()
    folder = Path(resolve_model_folder(module.init_from))
    if folder.is_dir() and not has_weights(folder):
        rows["weights"] = f"random, for {folder} holds a config.json and no weights"
    if data.hparams.packing == "auto" and module.packed:
        rows["packing"] = "taken for granted here; whether the model keeps documents apart is tried with its weights"
    return rows


def memory(trainer: Trainer, module: FunctionCallingModule) -> dict[str, str]:
    """The estimate of a device's memory, as a run prints it, and the attention that it is of."""
    plan = plan_of(trainer, module)
    if plan is None:
        return {"memory": "no estimate for such data"}
    rows = memory_rows(plan, device_memory(trainer, module.device), cheaper(trainer, module, plan))
    return rows | {"attention": attention_of(trainer, module)}


def attention_of(trainer: Trainer, module: FunctionCallingModule) -> str:
    """How documents attend in the run, and what it would need otherwise where its start decides."""
    if not module.policy.by_document:
        return f"{module.policy.causal_lm.config._attn_implementation}, under a mask of the row"
    shares = module.shares_prefixes
    module.policy.by_document = module.shares_prefixes = False
    masked = plan_of(trainer, module)
    module.policy.by_document, module.shares_prefixes = True, shares
    return (
        "each document by itself, if that is found right when the weights are there; else under a mask of the row, "
        f"which takes about {shown(estimate(masked).peak)}"
    )


def settings_of(trainer: Trainer, module: FunctionCallingModule, data: XLAMDataModule) -> dict[str, Any]:
    """The settings that a demo has values of its own for."""
    found = {f"model.{name}": getattr(module, name) for name in ("init_from", "learning_rate", "epsilon")}
    if isinstance(module, GRPOModule):
        found["model.sampling.temperature"] = module.sampling.temperature
    found |= {f"data.{name}": data.hparams[name] for name in ("path", "val_path")}
    return found | {"trainer.max_steps": trainer.max_steps}

"""Checks of GRPO's settings against each other, the data and the run, and their rows in the table at its start."""

import numpy as np

from datamodules.prompts import XLAMPromptDataModule
from lightning_modules.generators.base import Generator
from lightning_modules.generators.hf import HFGenerator
from lightning_modules.generators.vllm_server import VLLMServerGenerator
from lightning_modules.objectives import EntropyBonus, ImportanceSampling, PolicyLoss
from lightning_modules.policy.lora import LoRA
from lightning_modules.rollout.dynamic import DynamicSampling
from lightning_modules.rollout.sampling import Sampling


def check_full_distribution(sampling: Sampling, importance: ImportanceSampling) -> None:
    """Raise if top-p is combined with importance sampling, which scores under the full distribution.

    Raises:
        ValueError: Naming both settings.
    """
    if sampling.top_p < 1 and importance.cap is not None:
        raise ValueError(
            f"model.sampling.top_p {sampling.top_p} samples from a cut distribution, and the policy that learns from "
            "the samples is scored under the whole one, whichever generator it is: set model.sampling.top_p to 1, or "
            "model.importance_sampling.cap to null to learn from them uncorrected."
        )


def check_ahead(
    sampling: Sampling, generator: Generator, importance: ImportanceSampling, dynamic: DynamicSampling
) -> None:
    """Raise if `sampling.ahead` is on and another setting does not allow it.

    Raises:
        ValueError: Naming the settings and what to do.
    """
    if not sampling.ahead:
        return
    if not isinstance(generator, VLLMServerGenerator):
        raise ValueError(
            f"model.sampling.ahead needs a generator beside the trainer, and {type(generator).__name__} is none: give "
            "model.generator VLLMServerGenerator, or set model.sampling.ahead to false."
        )
    if importance.cap is None or dynamic.max_draws or dynamic.max_resample:
        raise ValueError(
            "model.sampling.ahead samples from the policy of one batch before, once for each prompt: give "
            "model.importance_sampling.cap a number, which corrects for that, and set model.dynamic_sampling.max_draws "
            "and model.dynamic_sampling.max_resample to 0."
        )


def check_sizes(
    data: XLAMPromptDataModule,
    mini_batches: int,
    inner_epochs: int,
    micro_batch_tokens: int,
    max_new_tokens: int,
    bonus: EntropyBonus,
) -> None:
    """Raise if the sizes of data, step and micro-batch do not go together.

    Raises:
        ValueError: Naming the settings and how to mend them.
    """
    prompts, repeats, longest = (data.hparams[k] for k in ("prompts_per_step", "repeats", "max_prompt_length"))
    wanted = mini_batches * inner_epochs
    if repeats != wanted:
        raise ValueError(
            f"data.repeats is {repeats}, and model.inner_epochs x model.mini_batches is {wanted}: set data.repeats to "
            f"{wanted}."
        )
    if prompts % mini_batches:
        raise ValueError(
            f"data.prompts_per_step {prompts} cannot be divided into {mini_batches} mini-batches: make it a multiple "
            "of model.mini_batches."
        )
    if bonus.scale > 0 and not data.form.think:
        raise ValueError(
            "model.entropy_bonus.scale pays for the entropy of the chain of thought, and data.think none asks for "
            "none: set data.think to require, or model.entropy_bonus.scale to 0 for plain GRPO."
        )
    if longest + max_new_tokens > micro_batch_tokens:
        raise ValueError(
            f"model.micro_batch_tokens {micro_batch_tokens} must hold a whole rollout: raise it to "
            f"{longest + max_new_tokens}, or lower data.max_prompt_length {longest} or the generator's max_new_tokens "
            f"{max_new_tokens}."
        )


def size_rows(
    data: XLAMPromptDataModule,
    generator: Generator,
    sampling: Sampling,
    mini_batches: int,
    inner_epochs: int,
    micro_batch_tokens: int,
    steps: int,
    ranks: int,
) -> dict[str, str]:
    """Rows of the table on the sizes of a step: rollouts, updates, run, rank, generation.

    Args:
        data: The prompts.
        generator: The sampler.
        sampling: How it samples.
        mini_batches: Optimizer steps per pass over a batch of rollouts.
        inner_epochs: Passes over it.
        micro_batch_tokens: Tokens of one forward pass on one rank.
        steps: Optimizer steps of the run.
        ranks: How many there are.
    """
    prompts, repeats = data.hparams.prompts_per_step, mini_batches * inner_epochs
    rollouts, batches = prompts * sampling.group_size, -(-steps // repeats)
    return {
        "rollouts": f"{prompts} prompts x {sampling.group_size} completions = {rollouts:,} a batch, of at most "
        f"{generator.max_new_tokens} tokens, at temperature {sampling.temperature:g} and top-p {sampling.top_p:g}, "
        f"by seed {generator.seed}",
        "updates": f"{inner_epochs} x {mini_batches} mini-batches of {rollouts // mini_batches:,} rollouts = {repeats} "
        "optimizer steps a batch",
        "whole run": f"{batches:,} batches, {batches * prompts:,} prompts, {batches * rollouts:,} rollouts at most",
        "each rank": f"{prompts / ranks:g} prompts, {rollouts / ranks:g} rollouts a batch; forward passes of at most "
        f"{micro_batch_tokens:,} tokens",
        "generation": generation_row(generator, data.lengths[data.train_indices], -(-rollouts // ranks)),
    }


def generation_row(generator: Generator, lengths: np.ndarray, rollouts: int) -> str:
    """The row on generation: rollouts of a rank that are generated together, and decoding steps of a batch.

    Args:
        generator: The sampler.
        lengths: Tokens of the prompts, [rows].
        rollouts: Of a batch, on one rank.
    """
    if not isinstance(generator, HFGenerator):
        return f"{rollouts:,} rollouts of each rank at once, scheduled by {type(generator).__name__}"
    fewest, usual = (min(rollouts, generator.rows_together(int(n))) for n in (lengths.max(), lengths.mean()))
    turns = -(-rollouts // usual)
    return (
        f"{usual:,} rows together on each rank, {fewest:,} after the longest prompts (token_budget "
        f"{generator.token_budget:,}): {turns:,} turns of at most {generator.max_new_tokens:,} tokens, so up to "
        f"{turns * generator.max_new_tokens:,} decoding steps one after the other for a batch"
    )


def objective_row(bonus: EntropyBonus, loss: PolicyLoss, lora: LoRA | None) -> str:
    """The row on the objective: entropy bonus, KL with its reference, and loss (one of the user's own by its name)."""
    reference = "none" if not loss.kl_coef else "a frozen copy" if lora is None else "the model without adapters"
    own = "" if type(loss) is PolicyLoss else type(loss).__name__
    return f"{bonus.described()}; KL {loss.kl_coef:g} with {reference}; {own or loss.described()}"


def extra_rows(data: XLAMPromptDataModule, max_draws: int, lora: LoRA | None) -> dict[str, str]:
    """Rows on dynamic sampling, and on dropout, which has no effect."""
    rows, prompts = {}, data.hparams.prompts_per_step
    if max_draws:
        rows["more prompts"] = (
            f"up to {max_draws} times {prompts} a batch, until {prompts} groups have rewards that differ"
        )
    if lora and lora.dropout:
        rows["dropout"] = (
            f"none: model.lora.dropout {lora.dropout:g} has no effect here, for samples and updates are to be of one "
            "policy"
        )
    return rows

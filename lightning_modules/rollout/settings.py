"""Sizes and settings of GRPO: validated, and described."""

import inspect
import math
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from datamodules.prompts import XLAMPromptDataModule
from lightning_modules.generators.base import Generator
from lightning_modules.generators.hf import HFGenerator
from lightning_modules.objectives import (
    entropy_shaped_advantages,
    group_advantages,
    shaping_entropy,
    truncated_importance_weights,
)

if TYPE_CHECKING:
    from lightning_modules.grpo import GRPOModule


def check_settings(module: "GRPOModule") -> None:
    """Refuse impossible settings.

    Raises:
        ValueError: Naming the setting.
    """
    sizes = {"group_size": 2, "mini_batches": 1, "inner_epochs": 1, "max_resample": 0, "dynamic_sampling": 0}
    sizes |= {"micro_batch_tokens": 1}
    for name, least in sizes.items():
        value = getattr(module, name)
        if value < least:
            why = ": a group of one has no advantage" if name == "group_size" else ""
            raise ValueError(f"model.{name} is {value}; give at least {least}{why}.")
    if module.max_resample and module.dynamic_sampling:
        raise ValueError(
            f"model.max_resample {module.max_resample} samples the same prompts again and model.dynamic_sampling "
            f"{module.dynamic_sampling} others in their place: set one of them to 0."
        )
    finite = max(module.temperature, module.kl_coef) < math.inf
    if not finite or not module.temperature > 0 or not 0 < module.top_p <= 1 or not module.kl_coef >= 0:
        raise ValueError(
            "model.temperature must be greater than 0, model.top_p lie in (0, 1] and model.kl_coef be at least 0, "
            f"got {module.temperature}, {module.top_p} and {module.kl_coef}."
        )
    if module.top_p < 1 and module.importance_cap is not None:
        raise ValueError(
            f"model.top_p {module.top_p} samples from a cut distribution, and the policy that learns from the samples "
            "is scored under the whole one, whichever generator it is: set model.top_p to 1, or model.importance_cap "
            "to null to learn from them uncorrected."
        )
    # The functions themselves know what they can do; asked here, they refuse before any weight is loaded.
    one, sample = torch.zeros(1, dtype=torch.float32), torch.zeros(1, dtype=torch.long)
    module.objective(one, one, one, sample)
    group_advantages(one[None], module.advantage_scale)
    entropy = shaping_entropy(one, sample.bool(), sample, 1, module.entropy_level)
    entropy_shaped_advantages(one, entropy, module.entropy_scale, module.clip_divisor)
    module.penalty(one)
    if module.importance_cap is not None:
        truncated_importance_weights(one, one, module.importance_cap, module.importance_above)


def check_reward(name: str, function: Callable[..., Any]) -> None:
    """Refuse a reward function that cannot be called as it will be.

    Raises:
        ValueError: Naming it and what it is called with.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some written in C
        return
    try:
        signature.bind("completion", "tools", "answers")
    except TypeError as error:
        raise ValueError(
            f"model.rewards.{name} is called with a completion, its row's tools and its row's answers, and takes "
            f"{signature}: {error}."
        ) from error


def check_sizes(module: "GRPOModule") -> None:
    """Refuse sizes of data and step that do not go together.

    Raises:
        ValueError: Naming the settings and how to mend them.
    """
    data = module.trainer.datamodule
    if not isinstance(data, XLAMPromptDataModule):
        return
    prompts, repeats, longest = (data.hparams[k] for k in ("prompts_per_step", "repeats", "max_prompt_length"))
    if repeats != module.repeats:
        raise ValueError(
            f"data.repeats is {repeats}, and model.inner_epochs x model.mini_batches is {module.repeats}: set "
            f"data.repeats to {module.repeats}."
        )
    if prompts % module.mini_batches:
        raise ValueError(
            f"data.prompts_per_step {prompts} cannot be divided into {module.mini_batches} mini-batches: make it a "
            "multiple of model.mini_batches."
        )
    if module.entropy_scale > 0 and not data.form.think:
        raise ValueError(
            "model.entropy_scale pays for the entropy of the chain of thought, and data.think none asks for none: set "
            "data.think to require, or model.entropy_scale to 0 for plain GRPO."
        )
    limit = module.generator.max_new_tokens
    if longest + limit > module.micro_batch_tokens:
        raise ValueError(
            f"model.micro_batch_tokens {module.micro_batch_tokens} must hold a whole rollout: raise it to "
            f"{longest + limit}, or lower data.max_prompt_length {longest} or the generator's max_new_tokens {limit}."
        )


def described(module: "GRPOModule") -> dict[str, str]:
    """Every size of a step, and what follows from it; a line each."""
    data = module.trainer.datamodule
    if not isinstance(data, XLAMPromptDataModule):
        return {}
    ranks, steps = module.trainer.world_size, int(module.trainer.estimated_stepping_batches)
    prompts = data.hparams.prompts_per_step
    rollouts, batches = prompts * module.group_size, -(-steps // module.repeats)
    loss = module.objective.keywords
    reference = (
        "none" if not module.kl_coef else "a frozen copy" if module.lora is None else "the model without adapters"
    )
    return {
        "rollouts": f"{prompts} prompts x {module.group_size} completions = {rollouts:,} a batch, of at most "
        f"{module.generator.max_new_tokens} tokens, at temperature {module.temperature:g} and top-p {module.top_p:g}, "
        f"by seed {module.generator.seed}",
        "updates": f"{module.inner_epochs} x {module.mini_batches} mini-batches of "
        f"{rollouts // module.mini_batches:,} rollouts = {module.repeats} optimizer steps a batch",
        "whole run": f"{batches:,} batches, {batches * prompts:,} prompts, {batches * rollouts:,} rollouts at most",
        "each rank": f"{prompts / ranks:g} prompts, {rollouts / ranks:g} rollouts a batch; forward passes of at most "
        f"{module.micro_batch_tokens:,} tokens",
        "generation": generation_row(module.generator, data.lengths[data.train_indices], -(-rollouts // ranks)),
        "rows": module.rows_of_documents(),
        "validation": f"{len(data.val_indices):,} prompts, {data.hparams.eval_batch_size:,} at a time over all ranks",
        "objective": f"entropy scale {module.entropy_scale:g} ({module.entropy_level}); KL {module.kl_coef:g} with "
        f"{reference}; ratio by {loss['ratio_level']}, clipped at 1 - {loss['clip_low']:g} and "
        f"1 + {loss['clip_high']:g}; {loss['aggregation']}",
        "rewards": rewards_described(module),
    } | extra_rows(module, prompts)


def generation_row(generator: Generator, lengths: np.ndarray, rollouts: int) -> str:
    """How many of a rank's rollouts of a batch are generated together, and how many decoding steps follow each other.

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


def time_left(seconds: float, taken: int, remaining: int) -> str:
    """How long a run will take by its first batch of rollouts, validation left out.

    Args:
        seconds: That it took, its updates included.
        taken: Its optimizer steps.
        remaining: Optimizer steps to come.
    """
    rest = timedelta(seconds=round(seconds / taken * remaining))
    return (
        f"The first batch of rollouts took {seconds:,.1f} s, {seconds / taken:,.1f} s an optimizer step; at that speed "
        f"the {remaining:,} steps to come take {rest}, and validation comes on top."
    )


def rewards_described(module: "GRPOModule") -> str:
    """The reward functions, where they run, and what becomes of their failures."""
    rewards = module.rewards
    terms = " + ".join(f"{weight:g} x {name}" for name, weight in rewards.weights.items())
    pools = [
        f"{name} in {len(pool)} processes a rank, {pool[0].timeout:g} s each" for name, pool in rewards.pools.items()
    ]
    return (
        f"{'; '.join([terms, *pools])}; a completion on which one fails is not learnt from, and more than "
        f"{rewards.max_error_share:.0%} of a batch stop the run"
    )


def extra_rows(module: "GRPOModule", prompts: int) -> dict[str, str]:
    """What is sampled beyond a batch of prompts, and what has no effect."""
    rows = {}
    if module.dynamic_sampling:
        rows["more prompts"] = (
            f"up to {module.dynamic_sampling} times {prompts} a batch, until {prompts} groups have rewards that differ"
        )
    if module.lora and module.lora.dropout:
        rows["dropout"] = (
            f"none: model.lora.dropout {module.lora.dropout:g} has no effect here, for samples and updates are to be "
            "of one policy"
        )
    return rows

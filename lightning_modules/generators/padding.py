"""Whether a model generates correctly with a cache and with left padding: tried on the model, as families differ.

Some linear-attention and recurrent layers carry what stands in the padding at the left into the prompt, and some caches
of a family's own do not work at all. Such a model generates, without a word, from another policy than the one that is
scored.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import product, starmap
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from lightning_modules.generators.decoding import Row, decode

PROMPT, LONGER, NEW = 8, 64, 3  # tokens: of the prompt that is compared, of the one beside it, of what follows
RAISED = (AttributeError, RuntimeError, TypeError, ValueError)
"""Errors of families that do without such a cache, mask or positions."""
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.25  # total variation; rounding alone was seen to make 1e-5, and 0.11 in bfloat16


class GenerationMode(NamedTuple):
    """How a model may generate and still give what it gives for one prompt alone, without a cache.

    Attributes:
        cached: With its key-value cache, or whatever states its family keeps.
        padded: Prompts of different lengths in one batch, the shorter ones padded at the left.
    """

    cached: bool
    padded: bool


@contextmanager
def exactly(model: PreTrainedModel) -> Iterator[None]:
    """Context to try a model in: without autocast, whose rounding hides faults, if all of its weights are float32."""
    in_float32 = all(weight.dtype == torch.float32 for weight in model.parameters())
    with torch.autocast(model.device.type, enabled=False) if in_float32 else nullcontext():
        yield


@torch.no_grad()
def find_mode(model: PreTrainedModel) -> GenerationMode:
    """The fastest mode in which a model generates from the policy that a forward pass scores; warns if it is slow.

    Args:
        model: In eval mode, without settings of its own in `generation_config`.

    Returns:
        The first of padded and cached, cached, padded, neither whose distributions are the plain ones.

    Raises:
        ValueError: If there is no such mode, or the model has room for no completion.
    """
    prompt, longer, following, want = _example(model)
    seen = []
    for mode in starmap(GenerationMode, product((True, False), repeat=2)):
        rows = [prompt, longer] if mode.padded else [prompt]
        try:
            got = _distributions(model, rows, following, mode.cached)
        except RAISED as error:
            seen.append(f"{type(error).__name__}: {error}".splitlines()[0])
            continue
        distance = _distance(got, want)
        if distance <= _tolerance(model):
            if seen:
                rank_zero_warn(_said(model, mode, seen[-1]))
            return mode
        seen.append(f"probabilities are off by {distance:.2g}")
    raise ValueError(
        f"init_from: {model.name_or_path} cannot be sampled from: {type(model).__name__} does not generate what its "
        f"forward pass predicts ({seen[-1]}); give another model."
    )


@torch.no_grad()
def decodes(model: PreTrainedModel) -> bool:
    """Whether `decode` generates from the policy that a forward pass scores: rows of unlike prompts, one ending early.

    Args:
        model: In eval mode.
    """
    prompt, longer, following, want = _example(model)
    rows, got = [Row(longer, 0), Row(prompt, 1)], []

    def choose(logits: Tensor, chosen: list[Row]) -> Tensor:
        for row, after in zip(chosen, logits.softmax(-1, torch.float32), strict=True):
            if row is rows[1]:
                got.append(after)
        return torch.tensor([row.prompt is prompt and following[len(row.ids)] for row in chosen])

    stop = {0} - set(following)  # ends the longer row at once; where it cannot, both go on
    try:
        for _ in decode(model, rows, choose, stop, NEW, lambda longest: 2):
            pass
    except RAISED:
        return False
    return _distance(torch.stack(got), want) <= _tolerance(model)


def _example(model: PreTrainedModel) -> tuple[list[int], list[int], list[int], Tensor]:
    """A prompt, a longer one, tokens that follow the first, and their plain distributions, [NEW, V]."""
    longer = _ids(model)
    prompt, following = longer[:PROMPT], longer[PROMPT : PROMPT + NEW]
    ids = torch.tensor([prompt + following], device=model.device)
    want = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].softmax(-1, torch.float32)
    return prompt, longer, following, want


def _distance(got: Tensor, want: Tensor) -> float:
    """Largest total variation."""
    return (got - want).abs().sum(-1).max().item() / 2


def _tolerance(model: PreTrainedModel) -> float:
    half = model.dtype.itemsize < 4 or torch.is_autocast_enabled(model.device.type)
    return HALF_TOLERANCE if half else TOLERANCE


def _said(model: PreTrainedModel, mode: GenerationMode, why: str) -> str:
    padded = "" if mode.padded else "padded (so only prompts of equal length are generated together)"
    cached = "" if mode.cached else "with its cache (so it does without, which is slow)"
    others = " or ".join(filter(None, (padded, cached)))
    return f"{type(model).__name__} does not generate what its forward pass predicts when {others}: {why}."


def _ids(model: PreTrainedModel) -> list[int]:
    """Ids from all over the vocabulary but not the padding's, fewer than the model has positions."""
    limit = getattr(model.config, "max_position_embeddings", None) or LONGER + NEW
    if limit <= NEW:
        raise ValueError(f"init_from: {model.name_or_path} has {limit} max_position_embeddings: nothing fits into them")
    size = model.get_input_embeddings().num_embeddings
    ids = torch.linspace(size - 1, 0, min(LONGER, limit - NEW) + 1, dtype=torch.float64).long().tolist()
    return [token for token in ids if token != getattr(model.config, "pad_token_id", None)]


def _distributions(model: PreTrainedModel, rows: list[list[int]], following: list[int], cached: bool) -> Tensor:
    """What `generate` has for the tokens that follow the first row, given those before them, [NEW, V]."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        prefix_allowed_tokens_fn=lambda row, so_far: [following[len(so_far) - width]],
        generation_config=GenerationConfig(
            max_new_tokens=len(following),
            do_sample=False,
            use_cache=cached,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        ),
    )
    return torch.stack([logits[0] for logits in output.logits]).softmax(-1, torch.float32)

"""Decoding with a cache of rows: a prompt is read once for its samples, and ended rows make way for waiting ones."""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from lightning_modules.generators.attention import sharing_keys
from lightning_modules.generators.cache import join_rows, row_cache

PREFILL_TOKENS = 2048  # of prompts read in one forward pass, padding included; one prompt is always let through
WORTH = 4  # the cache is moved when one in so many places is free


@dataclass(eq=False)
class Row:
    """A completion on its way.

    Attributes:
        prompt: Its token ids.
        key: Of its sampling noise.
        ids: Tokens generated so far.
        ended: Whether it is complete.
        columns: Tokens of it that are in the cache.
    """

    prompt: Sequence[int]
    key: int
    ids: list[int] = field(default_factory=list)
    ended: bool = False
    columns: int = field(init=False)

    def __post_init__(self) -> None:
        """The prompt comes into the cache as a whole."""
        self.columns = len(self.prompt)


Choose = Callable[[Tensor, list[Row]], Tensor]
"""From logits [B, V] and their rows, the next token of each, [B]."""


def decode(
    model: PreTrainedModel,
    rows: Sequence[Row],
    choose: Choose,
    stop: Collection[int],
    max_new_tokens: int,
    rows_together: Callable[[int], int],
) -> Iterator[Row]:
    """Generate the completions of rows, yielding each as it ends.

    Args:
        model: In eval mode; its cache must be one of plain keys and values.
        rows: Those of the same prompt one after the other, longest prompts first.
        choose: What picks the tokens.
        stop: Ids that end a row.
        max_new_tokens: Tokens after which a row ends.
        rows_together: How many rows may be generated together when so long is the longest prompt.

    Yields:
        The rows, with their `ids`.
    """
    waiting, running, cache = deque(rows), list[Row](), None
    while waiting or not all(row.ended for row in running):
        live = [place for place, row in enumerate(running) if not row.ended]
        longest = max((len(running[place].prompt) for place in live), default=0) or len(waiting[0].prompt)
        free = max(0, min(rows_together(longest) - len(live), len(waiting)))
        if max(free, len(running) - len(live)) * WORTH >= len(running):
            chosen, logits, parts = [waiting.popleft() for _ in range(free)], None, []
            if cache is not None and live:
                parts.append((cache, torch.tensor(live, device=model.device)))
            if chosen:
                fresh, logits = _read(model, [row.prompt for row in chosen])
                parts += fresh
            running = [running[place] for place in live] + chosen
            cache = join_rows(parts, max(row.columns for row in running))
        else:
            chosen, logits = running, _step(model, cache, running)
        for row, token in zip(chosen, [] if logits is None else choose(logits, chosen).tolist(), strict=True):
            if not row.ended:
                row.ids.append(token)
                row.ended = token in stop or len(row.ids) == max_new_tokens
                if row.ended:
                    yield row


def _read(model: PreTrainedModel, prompts: list[Sequence[int]]) -> tuple[list[tuple[Cache, Tensor]], Tensor]:
    """Read prompts, each once where it stands more than once in a row.

    Returns:
        Caches with the rows of theirs to take, and the logits that follow each prompt, [B, V].
    """
    distinct = [key for key, _ in groupby(prompts)]
    copies = [len(list(same)) for _, same in groupby(prompts)]
    parts, logits, start = [], [], 0
    while start < len(distinct):
        width = len(distinct[start])  # the longest comes first
        stop = start + max(1, PREFILL_TOKENS // width)
        read = distinct[start:stop]
        ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in read]
        columns = torch.tensor([len(prompt) for prompt in read], device=model.device)
        cache = row_cache(model.config)
        after = _forward(model, cache, torch.tensor(ids, device=model.device), columns)
        rows = torch.arange(len(read)).repeat_interleave(torch.tensor(copies[start:stop])).to(model.device)
        parts.append((cache, rows))
        logits.append(after[rows])
        start = stop
    return parts, torch.cat(logits)


def _step(model: PreTrainedModel, cache: Cache, rows: list[Row]) -> Tensor:
    """Logits of the token that follows the last one of each row, [B, V]."""
    last = torch.tensor([[row.ids[-1]] for row in rows], device=model.device)
    for row in rows:
        row.columns += 1
    with model._optimize_model_for_decode():  # as `generate` does: on a GPU, kernels of experts that suit few tokens
        return _forward(model, cache, last, torch.tensor([row.columns for row in rows], device=model.device))


def _forward(model: PreTrainedModel, cache: Cache, ids: Tensor, columns: Tensor) -> Tensor:
    """Logits that follow the last of the ids.

    Args:
        model: The model.
        cache: What stands before the ids; they are added to it.
        ids: [B, Q].
        columns: Tokens of each row, these among them; what is left of the columns is padding, [B].

    Returns:
        [B, V].
    """
    length = cache.get_seq_length() + ids.shape[1]
    places = torch.arange(length, device=ids.device) - (length - columns[:, None])  # [B, length], negative in padding
    with sharing_keys(model):
        output = model(
            input_ids=ids,
            attention_mask=(places >= 0).long(),
            position_ids=places[:, -ids.shape[1] :].clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    return output.logits[:, -1]

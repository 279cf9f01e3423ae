"""Rollouts as packed micro-batches, and which of their tokens are chain of thought.

What a generator returned stays token ids: text is decoded to find the think tags, and never encoded again.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from datamodules.packing import CALL, COT, IGNORED, PROMPT, Encoded, PackedBatch, collate_packed, micro_batches
from rewards.parser import split_completion

OPEN, CLOSE = "<think>", "</think>"


def cot_mask(
    tokenizer: PreTrainedTokenizerBase, completion_ids: Sequence[int], well_formed: bool | None = None
) -> list[bool]:
    """Mask of the tokens strictly between the think tags (the W tokens of arXiv 2508.05118, eq. 4).

    A token that holds a character of a tag is left out. Where the think block is not well formed (the parser of
    `rewards` decides: unclosed, empty, a tag twice, text before it), all tokens are.

    Args:
        tokenizer: The tokenizer of the model that generated the ids.
        completion_ids: Generated ids; any ids, also of half a character.
        well_formed: Whether the think block is, where that is known already; parsed here when None.

    Returns:
        A boolean for each id.
    """
    ids = list(completion_ids)
    text = tokenizer.decode(ids)
    if well_formed is None:
        well_formed = split_completion(text)[2] is None
    if not well_formed or OPEN not in text or CLOSE not in text:  # a reward of one's own may read other tags
        return [False] * len(ids)
    start = _tokens_until(tokenizer, ids, text.index(OPEN) + len(OPEN))
    end = _tokens_until(tokenizer, ids, text.index(CLOSE) + 1) - 1  # the token that brings the first character of it
    return [start <= i < end for i in range(len(ids))]


def pack_rollouts(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    cot: Sequence[Sequence[bool]],
    max_length: int,
    micro_batch_tokens: int,
    chosen: Sequence[int] | None = None,
    packed: bool = True,
    shared: bool = False,
) -> list[PackedBatch]:
    """Pack rollouts without padding into micro-batches whose targets are the completion tokens.

    Rollouts that share their prompt lie behind each other: the first one whole, and of each other one the last token of
    the prompt, from which its first token is predicted, and the completion.

    A value per rollout, such as the advantage, is looked up by `doc_ids`; a value per token, such as the old
    log-probability, by `tokens`. So all or some of the same rollouts can be packed again for each pass.

    Args:
        prompts: Token ids of each rollout's prompt, not empty; those of a group are repeated.
        completions: Token ids of each rollout's completion.
        cot: The `cot_mask` of each completion.
        max_length: Tokens a packed row may hold.
        micro_batch_tokens: Bound on rows x longest row of a micro-batch.
        chosen: The rollouts to pack; all of them when None.
        packed: Whether rollouts share rows.
        shared: Whether neighbours with the same prompt share it, too. A row then holds as many tokens as a micro-batch.

    Returns:
        Micro-batches as `datamodules.packing.collate_packed` makes them, with these differences: `doc_ids` is the
        number of the rollout in the lists given here (-1 in the padding); `segments` is 1 for a target strictly between
        the think tags and 2 for any other; `tokens`, [R, T], long, is the place of the target in all completions laid
        end to end, -1 where there is no target.

    Raises:
        ValueError: If a rollout is longer than `max_length`, its prompt is empty, or its mask is not of its length.
    """
    numbers = range(len(prompts)) if chosen is None else list(chosen)
    room = max(max_length, micro_batch_tokens) if shared else max_length
    groups = _neighbours(prompts, completions, numbers, room) if shared else [[i] for i in numbers]
    documents = {
        i: _document(prompts[i], completions[i], cot[i], whole=i == group[0]) for group in groups for i in group
    }
    lengths = [sum(len(documents[i].input_ids) for i in group) for group in groups]
    starts = torch.tensor([0, *map(len, completions)]).cumsum(0).tolist()
    batches = []
    for plan in micro_batches(lengths, room, micro_batch_tokens, packed):
        rows = [[i for group in row for i in groups[group]] for row in plan]
        batch = collate_packed(documents, rows)
        order = [i for row in rows for i in row]  # as they appear, which is how `doc_ids` counts them
        batch["doc_ids"] = torch.tensor([*order, -1])[batch["doc_ids"]]  # -1, the padding, stays -1
        places = [torch.arange(starts[i], starts[i + 1]) for i in order]
        batch["tokens"] = torch.full_like(batch["targets"], -1)
        batch["tokens"][batch["targets"] != IGNORED] = torch.cat(places)
        batches.append(batch)
    return batches


def _neighbours(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], numbers: Sequence[int], room: int
) -> list[list[int]]:
    """Rollouts behind each other that have the same prompt, as many together as a row has room for."""
    groups: list[list[int]] = []
    filled = 0
    for i in numbers:
        more = 1 + len(completions[i])
        if groups and filled + more <= room and prompts[groups[-1][0]] == prompts[i]:
            groups[-1].append(i)
            filled += more
        else:
            groups.append([i])
            filled = len(prompts[i]) + len(completions[i])
    return groups


def _document(prompt: Sequence[int], completion: Sequence[int], cot: Sequence[bool], whole: bool) -> Encoded:
    """A rollout, or what comes after a prompt that another one has brought."""
    if not prompt:
        raise ValueError("A rollout has an empty prompt: its first token has nothing to be predicted from.")
    start = 0 if whole else len(prompt) - 1
    segments = [COT if inside else CALL for _, inside in zip(completion, cot, strict=True)]
    return Encoded([*prompt[start:], *completion], [PROMPT] * (len(prompt) - start) + segments, start)


def _tokens_until(tokenizer: PreTrainedTokenizerBase, ids: list[int], characters: int) -> int:
    """The fewest leading tokens whose text has so many characters, found by bisection over decoded prefixes.

    A prefix that ends inside a character decodes to replacement characters, of which the whole one may have fewer; they
    are not counted until something follows, so that longer prefixes never have less text.
    """
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(tokenizer.decode(ids[:middle]).rstrip("\ufffd")) >= characters:
            high = middle
        else:
            low = middle + 1
    return low

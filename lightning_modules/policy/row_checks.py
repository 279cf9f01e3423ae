"""Whether a model has the tokens and the positions of prompts and rows; what it lacks is refused by name."""

import re

import numpy as np
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from datamodules.chat.templates import end_of_turn_id, turns_text
from datamodules.encoding import EncodedRows
from lightning_modules.policy.head import decoder_of
from lightning_modules.policy.weight_checks import BESIDE_THE_TEXT

TABLE = re.compile(r"(^|\.)(wpe|\w*position\w*)$")
"""Names of modules that hold a vector for each position."""


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel) -> None:
    """Refuse a model that lacks tokens of every prompt, as those of a template that were added to its tokenizer alone.

    A tokenizer may have more tokens than its model, as Gemma 3's has one for pictures.

    Raises:
        ValueError: If a token of a prompt or the end of a turn is none of the model's.
    """
    tokens = model.get_input_embeddings().num_embeddings
    prompt = tokenizer(turns_text(tokenizer, [{"role": "user", "content": "question"}]), add_special_tokens=False)
    most = max([*prompt["input_ids"], end_of_turn_id(tokenizer)])
    if most >= tokens:
        raise ValueError(
            f"init_from: {tokenizer.convert_ids_to_tokens(most)!r} is token {most:,} of the tokenizer of "
            f"{tokenizer.name_or_path}, whose model has {tokens:,}: resize the model's embeddings to its tokenizer, or "
            "give a chat template without such tokens (data.chat_template)"
        )


def check_rows_fit(
    tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel, data: object, max_new_tokens: int
) -> None:
    """Refuse rows with tokens that a model lacks, and rows or prompts with completions that it lacks positions for.

    Rows are read for it only where a tokenizer has more tokens than its model. And only families that look positions up
    in a table have an end of them (GPT-2, OPT); others compute them.

    Args:
        tokenizer: The tokenizer of the rows.
        model: The model.
        data: The rows; of data that do not say how long they are nothing is known.
        max_new_tokens: Of a completion; 0 where it is cut at the last position.

    Raises:
        ValueError: Naming the token, or both lengths.
    """
    sets = [rows for name in ("rows", "val_rows") if isinstance(rows := getattr(data, name, None), EncodedRows)]
    tokens = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > tokens and (most := max((rows.greatest_id() for rows in sets), default=-1)) >= tokens:
        raise ValueError(
            f"init_from: a row has {tokenizer.convert_ids_to_tokens(most)!r}, token {most:,} of the tokenizer of "
            f"{tokenizer.name_or_path}, whose model has {tokens:,}: resize the model's embeddings to its tokenizer"
        )
    has = learnt_positions(model)
    trained = getattr(data, "lengths", np.zeros(0))[getattr(data, "train_indices", [])]
    row, prompt = int(trained.max(initial=0)), int(getattr(data, "longest_prompt", 0))
    start = f"init_from: {model.name_or_path} has {has:,} positions"
    if has and row > has:
        raise ValueError(f"{start}, and a row to train on has {row:,} tokens: set data.{data.LIMIT} {has}")
    if has and max_new_tokens and prompt + max_new_tokens > has:
        raise ValueError(
            f"{start}, and the longest prompt has {prompt:,} tokens and its completion up to {max_new_tokens:,}: set "
            "model.generator.max_new_tokens lower, or give a model or rows of other lengths"
        )


def learnt_positions(model: PreTrainedModel) -> int:
    """How many positions a model looks up in a table; 0 if it has none."""
    tables = (
        name
        for name, module in decoder_of(model).named_modules()
        if isinstance(module, nn.Embedding) and TABLE.search(name) and not BESIDE_THE_TEXT.search(f"{name}.")
    )
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 0)) if any(tables) else 0

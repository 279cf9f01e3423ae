"""Rows and prompts with tokens or positions that a model lacks."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
from families import FAMILIES

from datamodules.cache import encode_rows
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.row_checks import check_rows_fit, check_vocabulary

BY_KIND = {family.kind: family for family in FAMILIES}


@pytest.fixture
def rows_of(tmp_path):
    """Encodes a row about the weather by a tokenizer."""
    tools = [{"name": "get_weather", "description": "W", "parameters": {"city": {"type": "str", "description": "C"}}}]
    answers = [{"name": "get_weather", "arguments": {"city": "Oslo"}}]
    row = {"query": "an umbrella in Oslo?", "tools": tools, "cot": "Oslo.", "answers": answers}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    return lambda tokenizer: encode_rows(str(file), tokenizer, cache_dir=str(tmp_path / "cache"))


def test_a_tokenizer_with_tokens_of_prompts_that_the_model_has_not_is_refused(make_model_dir, tiny_tokenizer):
    model = build_policy(str(make_model_dir(hidden_size=32, num_attention_heads=2, num_key_value_heads=1))).causal_lm
    check_vocabulary(tiny_tokenizer, model)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokens = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<|start|>"]})
    check_vocabulary(tokenizer, model)  # no prompt has them
    tokenizer.chat_template = "<|start|>" + tokenizer.chat_template
    words = rf"init_from: '<\|start\|>' is token {tokens + 1} of the tokenizer of .*, whose model has {tokens}: resize"
    with pytest.raises(ValueError, match=words):
        check_vocabulary(tokenizer, model)


def test_rows_with_tokens_that_the_model_has_not_are_refused(tiny_model_dir, tiny_tokenizer, rows_of):
    model, data, tokens = build_policy(str(tiny_model_dir)).causal_lm, SimpleNamespace(), len(tiny_tokenizer)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<unused>", "umbrella"])
    data.rows, data.val_rows = rows_of(tiny_tokenizer), rows_of(tiny_tokenizer)
    check_rows_fit(tokenizer, model, data, 8)  # more tokens, and no row has them
    data.val_rows = rows_of(tokenizer)
    words = (
        f"init_from: a row has 'umbrella', token {tokens + 1} of the tokenizer of .*, whose model has {tokens}: resize"
    )
    with pytest.raises(ValueError, match=words):
        check_rows_fit(tokenizer, model, data, 8)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "biogpt"])
def test_rows_beyond_a_table_of_positions_are_refused(tmp_path, tiny_tokenizer, kind):
    model = build_policy(str(BY_KIND[kind].save(tmp_path, tiny_tokenizer))).causal_lm  # of 512 positions
    data = SimpleNamespace(lengths=np.array([600, 512]), train_indices=np.array([1]), longest_prompt=500, LIMIT="max_x")
    check_rows_fit(tiny_tokenizer, model, data, 12)
    check_rows_fit(tiny_tokenizer, model, data, 0)
    check_rows_fit(tiny_tokenizer, model, object(), 12)
    with pytest.raises(
        ValueError, match=rf"{tmp_path} has 512 positions, and the longest prompt has 500 .* up to 13: set"
    ):
        check_rows_fit(tiny_tokenizer, model, data, 13)
    data.train_indices = np.array([0, 1])
    with pytest.raises(
        ValueError, match=r"has 512 positions, and a row to train on has 600 tokens: set data.max_x 512"
    ):
        check_rows_fit(tiny_tokenizer, model, data, 12)


@pytest.mark.parametrize("kind", ["llama", "xglm", "mpt", "gpt_neox"])
def test_positions_that_are_computed_have_no_end(tmp_path, tiny_tokenizer, kind):
    model = build_policy(str(BY_KIND[kind].save(tmp_path, tiny_tokenizer))).causal_lm
    check_rows_fit(tiny_tokenizer, model, SimpleNamespace(longest_prompt=10**6), 12)

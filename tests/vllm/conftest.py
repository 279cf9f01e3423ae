"""Tests that need a real vLLM, collected where there is one: `make test-vllm` makes an environment with it."""

import importlib.util

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*.py"]


@pytest.fixture(scope="session")
def small_heads_dir(tmp_path_factory, tiny_tokenizer):
    """As `tiny_model_dir`, with heads of a size that vLLM's attention on the CPU has."""
    folder = tmp_path_factory.mktemp("small-heads")
    config = Qwen2Config(
        vocab_size=len(tiny_tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder

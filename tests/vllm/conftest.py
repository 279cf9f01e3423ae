"""Tests that need a real vLLM, collected where there is one: `make test-vllm` makes an environment with it."""

import importlib.util

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*.py"]


@pytest.fixture(scope="session")
def small_heads_dir(make_model_dir):
    """As `tiny_model_dir`, with heads of a size that vLLM's attention on the CPU has."""
    return make_model_dir(hidden_size=64, num_attention_heads=2, num_key_value_heads=1)

"""Random models of a GPU session, by family and size, and the folders of such models."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from lightning_modules.policy.model import ScoredCausalLM

BASE = Path("assets/tiny-base")
IDS = 1024
LAYERS = 8  # of the 7B shape, where few are enough

SMALL = {
    "vocab_size": IDS,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.08,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": False,
    },
    "gemma3_text": {  # heads of 256, windows of 48 tokens in all layers but one
        "num_key_value_heads": 1,
        "head_dim": 256,
        "sliding_window": 48,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}
"""What families have of their own in a small model, by their `model_type`."""


def config_of(family: str, **sizes: Any) -> PreTrainedConfig:
    """The config of a small model of a family, with other sizes where they are given."""
    return AutoConfig.for_model(family, **SMALL | FAMILIES[family] | sizes)


def policy_of(config: PreTrainedConfig, device: torch.device) -> ScoredCausalLM:
    """A model with random weights, drawn on its device, in train mode."""
    torch.manual_seed(0)
    with device:  # of a large model, billions of random numbers
        return ScoredCausalLM(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")).train()


def save(model: nn.Module, folder: Path) -> None:
    """A model's folder, with the tokenizer of the tiny base model."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (BASE / name).exists():
            (folder / name).write_bytes((BASE / name).read_bytes())
    model.save_pretrained(folder)

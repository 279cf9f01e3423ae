"""The plan of a run of the tiny model, all of whose weights learn."""

import pytest
from transformers import AutoConfig

from lightning_modules.callbacks.memory import Plan


@pytest.fixture
def plan(tiny_model_dir):
    config = AutoConfig.from_pretrained(tiny_model_dir)
    return Plan(config, 10_000_000, 0, "bf16-mixed", rows=4, length=1024, checkpointing=False)

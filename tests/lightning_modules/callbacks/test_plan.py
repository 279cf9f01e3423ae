"""What a run's settings say that its devices will hold."""

from types import SimpleNamespace

import numpy as np
import pytest
from transformers import AutoConfig

from lightning_modules.callbacks.memory import Plan
from lightning_modules.callbacks.plan import generation, streamed, whole
from lightning_modules.generators import VLLMServerGenerator
from lightning_modules.strategies import FSDP1, FSDP2


@pytest.mark.parametrize("transfer", ["folder", "nccl"])
def test_servers_are_given_a_part_of_the_model_at_a_time_however_it_is_sent(tiny_model_dir, monkeypatch, transfer):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    config = AutoConfig.from_pretrained(tiny_model_dir)
    plan = Plan(config, 10_000_000, 0, "bf16-mixed", rows=4, length=1024, checkpointing=False, fsdp=True, shards=8)
    module = SimpleNamespace(generator=VLLMServerGenerator(["http://localhost:8000"], transfer=transfer))
    data = SimpleNamespace(lengths=np.array([70, 100]), train_indices=np.arange(2), val_indices=np.arange(1))
    for strategy, size in ((FSDP2(), streamed(plan)), (FSDP1(), whole(plan))):  # the latter unshards all of it first
        trainer = SimpleNamespace(strategy=strategy, datamodule=data, limit_val_batches=1.0)
        assert generation(trainer, module, plan) == {"copy": size} and size > 0
    assert streamed(plan) < whole(plan)  # one of two layers

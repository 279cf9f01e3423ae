"""What a run's settings say that its devices will hold."""

from types import SimpleNamespace

import numpy as np
import pytest
from transformers import AutoConfig

from lightning_modules.callbacks import plan as planning
from lightning_modules.callbacks.memory import Plan
from lightning_modules.callbacks.plan import generation, streamed, whole
from lightning_modules.generators import VLLMGenerator, VLLMServerGenerator
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


def test_the_longest_prompt_may_be_one_to_validate_on(tiny_model_dir, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(planning, "device_memory", lambda *_: 0)  # of which an engine takes what it needs to start
    config = AutoConfig.from_pretrained(tiny_model_dir)
    plan = Plan(config, 10_000_000, 0, "bf16-mixed", rows=4, length=1024, checkpointing=False)
    module = SimpleNamespace(generator=VLLMGenerator(max_new_tokens=28), device=None)
    rows = {"lengths": np.array([70, 100]), "train_indices": np.arange(2), "val_indices": np.arange(1)}
    engines = []
    for longest in (60, 100, 160):
        trainer = SimpleNamespace(strategy=None, limit_val_batches=1.0)
        trainer.datamodule = SimpleNamespace(longest_prompt=longest, **rows)
        engines.append(generation(trainer, module, plan)["engine"])
    # Keys and values of a token are 64 numbers of 2 bytes.
    assert [engine - engines[0] for engine in engines] == [0, 0, 60 * 64 * 2]

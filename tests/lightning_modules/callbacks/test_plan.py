"""What a run's settings say that its devices will hold."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from datamodules import XLAMPromptDataModule, XLAMSFTDataModule
from lightning_modules.callbacks import plan as planning
from lightning_modules.callbacks.memory import Plan
from lightning_modules.callbacks.plan import cast, generation, micro_batch_of, sharding, streamed, whole
from lightning_modules.generators import HFGenerator, VLLMGenerator, VLLMServerGenerator
from lightning_modules.grpo import GRPOModule
from lightning_modules.rollout.sampling import Sampling
from lightning_modules.strategies import DDP, FSDP1, FSDP2


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


def test_an_engine_holds_the_longest_prompt_and_no_row_that_is_learnt_from_with_its_answer(tiny_model_dir, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(planning, "device_memory", lambda *_: 0)  # of which an engine takes what it needs to start
    config = AutoConfig.from_pretrained(tiny_model_dir)
    plan = Plan(config, 10_000_000, 0, "bf16-mixed", rows=4, length=1024, checkpointing=False)
    module = SimpleNamespace(generator=VLLMGenerator(max_new_tokens=28), device=None)
    rows = {"lengths": np.array([70, 100]), "train_indices": np.arange(2), "val_indices": np.arange(1)}
    engines = []
    for longest in (60, 100, 160, config.max_position_embeddings):
        trainer = SimpleNamespace(strategy=None, limit_val_batches=1.0)
        trainer.datamodule = SimpleNamespace(longest_prompt=longest, **rows)
        engines.append(generation(trainer, module, plan)["engine"])
    # Keys and values of a token are 64 numbers of 2 bytes; a completion ends at the model's last position.
    most = config.max_position_embeddings - 28
    assert [engine - engines[0] for engine in engines] == [n * 64 * 2 for n in (0, 40, 100, most - 60)]


def rows_of(kind, **settings):
    """Rows of which those of 70 and 100 tokens are trained on."""
    data = kind(tokenizer="none", path="none", **settings)
    data.lengths, data.train_indices, data.val_indices = np.array([70, 300, 100]), np.array([0, 2]), np.arange(3)
    return data


@pytest.mark.parametrize(
    ("batch_size", "ranks", "packed", "micro_batch"),
    [
        (100, 1, True, (4, 1000)),  # rows of max_length, as many as 4,000 tokens are
        (100, 3, True, (3, 1000)),  # of 34 documents a rank, 3,400 tokens at most
        (8, 1, True, (1, 800)),  # of 8 documents, which one row holds
        (8, 3, True, (1, 300)),  # of 3 on the rank that has most
        (100, 1, False, (40, 100)),  # a document a row
        (1, 2, False, (1, 100)),
    ],
)
def test_the_largest_micro_batch_of_rows_to_learn_from(batch_size, ranks, packed, micro_batch):
    data = rows_of(XLAMSFTDataModule, batch_size=batch_size, max_length=1000, micro_batch_tokens=4000)
    trainer, module = SimpleNamespace(datamodule=data, world_size=ranks), SimpleNamespace(packed=packed)
    assert micro_batch_of(trainer, module) == micro_batch
    assert micro_batch_of(SimpleNamespace(datamodule=None, world_size=ranks), module) is None


@pytest.mark.parametrize(
    ("tokens", "shared", "micro_batch"),
    [
        (1000, False, (6, 160)),  # prompts of 100 tokens and completions of 60
        (8000, False, (10, 160)),  # all 10 that a rank has of 4 x 5
        (1000, True, (1, 1000)),  # one row that completions share their prompts in
        (8000, True, (1, 1600)),
        (150, True, (1, 160)),  # which has to hold the longest
    ],
)
def test_the_largest_micro_batch_of_rollouts(tokens, shared, micro_batch):
    module = GRPOModule(
        init_from="none", generator=HFGenerator(60), sampling=Sampling(group_size=5), micro_batch_tokens=tokens
    )
    module.shares_prefixes = shared
    trainer = SimpleNamespace(datamodule=rows_of(XLAMPromptDataModule, prompts_per_step=4), world_size=2)
    assert micro_batch_of(trainer, module) == micro_batch


@pytest.mark.parametrize(
    ("budget", "validates", "cache"),
    [
        (1280, 1.0, 10 * 128),  # 10 of 12 rollouts together, of 100 + 28 tokens; of prompts of 900 tokens one
        (10**5, 1.0, 2 * 928),  # 12 x 128 are less than the 2 of 3 prompts that a rank has to validate on
        (10**5, 0, 12 * 128),
    ],
)
def test_the_cache_is_that_of_rollouts_or_of_validation_whichever_is_larger(tiny_model_dir, budget, validates, cache):
    config = AutoConfig.from_pretrained(tiny_model_dir)
    plan = Plan(config, 10_000_000, 0, "bf16-mixed", rows=4, length=1024, checkpointing=False)
    module = GRPOModule(
        init_from="none", generator=HFGenerator(28, token_budget=budget), sampling=Sampling(group_size=6)
    )
    data = SimpleNamespace(hparams=SimpleNamespace(prompts_per_step=4, eval_batch_size=64), longest_prompt=900)
    data.lengths, data.train_indices, data.val_indices = np.array([70, 100]), np.arange(2), np.arange(3)
    trainer = SimpleNamespace(datamodule=data, strategy=None, world_size=2, limit_val_batches=validates)
    # Keys and values of a token are 64 numbers of 2 bytes; the copy is of weights that a GPU casts to them.
    assert generation(trainer, module, plan) == {"copy": 20_000_000, "cache": cache * 64 * 2}
    sharded = replace(plan, fsdp=True, shards=2)
    assert generation(trainer, module, sharded)["copy"] == 20_000_000  # of all shards, and cast already
    config.tie_word_embeddings = False
    assert cast(plan) == (10_000_000 - config.vocab_size * 32) * 2  # the embedding stays as it is


def test_ranks_that_share_a_copy_of_the_weights():
    hybrid = FSDP1(sharding_strategy="HYBRID_SHARD")
    hybrid.parallel_devices = [torch.device("cpu")] * 4  # of a node
    found = [
        sharding(SimpleNamespace(strategy=strategy, world_size=16))
        for strategy in (FSDP2(), FSDP2(shard_size=8), FSDP1(), hybrid)
    ]
    assert [settings["shards"] for settings in found] == [16, 8, 16, 4]
    assert [settings["hybrid"] for settings in found] == [False, True, False, False]  # of FSDP2 alone
    assert sharding(SimpleNamespace(strategy=DDP(), world_size=16)) == {}


@pytest.mark.parametrize("strategy", [FSDP1, FSDP2])
def test_shards_wait_on_the_host_and_gradients_are_whole_as_the_strategy_is_told(strategy):
    for settings in ({"cpu_offload": True}, {"accumulate_unsharded": True}):
        found = sharding(SimpleNamespace(strategy=strategy(**settings), world_size=2))
        assert [found["offload"], found["unsharded"]] == ["cpu_offload" in settings, "accumulate_unsharded" in settings]

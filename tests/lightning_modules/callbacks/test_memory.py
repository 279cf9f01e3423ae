"""The estimate against hand arithmetic and against the tensors of a real step; `tests/benchmarks` has its peaks."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Mamba2Config, MambaConfig, MistralConfig, Qwen2Config

from lightning_modules.callbacks.memory import (
    Plan,
    adapters,
    cached_numbers,
    estimate,
    head_bytes,
    heads_of,
    layer_bytes,
)
from lightning_modules.callbacks.memory_text import derived

SIZES = {"vocab_size": 100, "hidden_size": 8, "intermediate_size": 20, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
CONFIG = Qwen2Config(**SIZES)
# Embedding and head have 2 x 100 x 8 = 1,600 weights; say that the layers have 3 x 800.
PLAN = Plan(CONFIG, trained=4000, frozen=0, precision="32-true", rows=2, length=10, checkpointing=True)


def parts(plan):
    """What is held at the moment of the peak, whatever moment that is."""
    return estimate(plan).parts


def test_weights_and_adamw_are_stored_in_the_precision_of_the_run_over_the_shards():
    assert estimate(PLAN).always == {"weights": 16_000, "AdamW": 32_000, "reference": 0}
    half = replace(PLAN, precision="bf16-true", fsdp=True, shards=4, reference=True)
    assert estimate(half).always == {"weights": 2_000, "AdamW": 4_000, "reference": 2_000}
    # bf16-mixed: weights as with 32-true, and the layers' 2,400 cast to 2 bytes; with recomputation one layer's 800
    mixed = replace(PLAN, precision="bf16-mixed")
    whole = estimate(replace(mixed, checkpointing=False)).moments
    assert [moment.get("casts", 0) for moment in whole.values()] == [4_800, 4_800, 4_800, 0, 0, 0]
    assert [moment.get("casts", 0) for moment in estimate(mixed).moments.values()] == [0, 1_600, 1_600, 0, 0, 0]
    assert not any(moment.get("casts") for moment in estimate(replace(mixed, fsdp=True)).moments.values())


def test_gradients_of_each_strategy():
    assert parts(PLAN)["gradients"] == 16_000
    assert parts(replace(PLAN, buckets=True))["gradients"] == 32_000
    assert parts(replace(PLAN, fsdp=True, shards=4))["gradients"] == 4_000
    # A whole copy in float32 besides the shard of 4,000 x 2 / 4.
    whole = replace(PLAN, precision="bf16-true", fsdp=True, shards=4, unsharded=True)
    assert parts(whole)["gradients"] == 2_000 + 16_000


def test_activations_with_and_without_recomputation():
    # Of each of 20 tokens in float32. Norms: 2 x (4 + 4) x 8 = 128; inputs of q, k, v and of gate, up: 2 x 4 x 8 = 64;
    # q, k, v and output over all heads: 4 x 4 x 8 = 128; MLP: 4 x 4 x 20 = 320. The mask: 4 x 2 rows x 10 x 10 = 800.
    kept = 20 * (128 + 64 + 128 + 320) + 800
    # The gradients of two intermediate states, 2 x 4 x 20 for each token.
    assert layer_bytes(PLAN) == (kept, 20 * 160)
    # After the layers 20 x 8 x (4 + 2 x 4); the mask as booleans 200.
    after = 1_920 + 200
    checkpointed, whole = (estimate(replace(PLAN, checkpointing=on)) for on in (True, False))
    moment = "the backward pass of a layer"
    assert checkpointed.moments[moment]["activations"] == 3 * 20 * 8 * 4 + after
    assert whole.moments[moment]["activations"] == 3 * kept + after
    assert checkpointed.moments[moment]["layer"] == kept + 3_200
    assert whole.moments[moment]["layer"] == 3_200


def test_activations_where_some_layers_keep_theirs_and_inputs_wait_on_the_host():
    kept, moment = layer_bytes(PLAN)[0], "the backward pass of a layer"
    given, after = 20 * 8 * 4, 1_920 + 200  # as above
    plans = (replace(PLAN, every_n_layers=n, offload_activations=off) for n in (2, 3) for off in (False, True))
    held = [estimate(plan).moments[moment] for plan in plans]
    # Of layers 0, 1, 2 the first and the last are computed again, then the first alone: what the last two keep is free
    # by the time that it is.
    assert [moment["activations"] - after for moment in held] == [2 * given + kept, kept, given + 2 * kept, 2 * kept]
    assert [moment["layer"] for moment in held] == [kept + 3_200, kept + 3_200, 3_200, 3_200]
    # Of adapters' frozen weights, casts of the layers that keep them, and of one that computes again: 2 bytes x 800.
    lean = replace(PLAN, trained=100, frozen=3_900, precision="bf16-mixed")
    casts = [
        estimate(replace(lean, every_n_layers=n)).moments["the backward pass of a layer"]["casts"] for n in (1, 2, 3)
    ]
    assert casts == [1_600, 2 * 1_600, 3 * 1_600]
    assert "in 2 of 3 layers" in derived(replace(PLAN, every_n_layers=2))["activations"]


def test_flash_attention_and_attention_by_document_have_no_mask():
    assert layer_bytes(PLAN)[0] - layer_bytes(replace(PLAN, attention="flash_attention_2"))[0] == 800
    # By document, either; but there its result is in parts and joined, 4 bytes x 8 for each of 20 tokens.
    assert layer_bytes(PLAN)[0] - layer_bytes(replace(PLAN, attention="by_document"))[0] == 800 - 640


def test_the_head_holds_a_tile_and_not_all_logits():
    # A tile of 20 targets x 100 ids in float32 twice; of these ids two sums of 8; the gradient of 800 weights; hidden
    # states of 20 targets, their gradient and its sum, 3 x 4 x 8 each.
    assert head_bytes(PLAN) == 2 * 4 * 2000 + 2 * 4 * 800 + 4 * 800 + 20 * 96
    more = replace(PLAN, rows=2000)  # 20,000 targets, of which a tile on a GPU has 4,096, and on a CPU 1,024
    assert head_bytes(more) == 2 * 4 * 409_600 + 2 * 4 * 800 + 4 * 800 + 20_000 * 96
    assert head_bytes(replace(more, cuda=False)) == 2 * 4 * 102_400 + 2 * 4 * 800 + 4 * 800 + 20_000 * 96
    assert head_bytes(replace(more, scored=3)) == 2 * 4 * 300 + 2 * 4 * 800 + 4 * 800 + 3 * 96


def test_the_gradient_of_a_head_waits_for_that_of_the_embedding_where_both_are_summed_or_reduced_together():
    def bytes_of(plan):
        moments = {name.rpartition(" ")[2]: moment for name, moment in estimate(plan).moments.items()}
        assert moments["layer"]["waiting"] == estimate(plan).moments["the backward pass of the first layer"]["waiting"]
        return moments["layer"]["waiting"], moments["embedding"]["embedding"]

    tied = replace(PLAN, config=Qwen2Config(**SIZES | {"tie_word_embeddings": True}), trained=3_200)
    # Each has 800 weights. The gradient of a head of its own is added up at once; else it is there until the end.
    assert bytes_of(PLAN) == (0, 3_200) and bytes_of(tied) == (3_200, 6_400)
    # FSDP keeps it in bfloat16, and at the end all of them besides in float32.
    apart, one = (replace(plan, precision="bf16-mixed", fsdp=True, shards=8) for plan in (PLAN, tied))
    assert bytes_of(apart) == (1_600, 1_600 * 6) and bytes_of(one) == (1_600, 800 * 6)
    # Adapters leave both as they are.
    assert bytes_of(replace(tied, trained=100, frozen=3_100)) == (0, 0)


def test_fsdp_holds_embedding_and_head_whole_but_not_those_of_a_reference():
    plan = replace(PLAN, precision="bf16-mixed", fsdp=True, shards=8)
    assert parts(plan)["gathered"] == 1_600 * 2
    assert parts(replace(plan, reference=True))["gathered"] == 1_600 * 2


def test_replicas_of_shards_keep_what_they_reduced_until_the_backward_pass_is_over():
    # Of the layers' 2,400 weights 4 ranks have 600 gradients each in float32, besides the sum over micro-batches.
    plan = replace(PLAN, precision="bf16-mixed", fsdp=True, shards=4, hybrid=True)
    first, embedding = (
        estimate(plan).moments[f"the backward pass of the {part}"] for part in ("first layer", "embedding")
    )
    assert first["reduced"] == embedding["reduced"] == 2_400 and first["gradients"] == 4_000
    # Of the activations those of the first layer are left, with its input of 20 x 8 x 2 bytes, and the last norm's.
    kept, passing = layer_bytes(plan)
    assert (first["activations"], first["layer"]) == (320 + kept + 20 * 8 * (4 + 4) + 200, passing)
    # Gradients of 1,600 weights in bfloat16 and float32; the weights themselves are in shards again.
    assert embedding == {"gradients": 4_000, "rollouts": 0, "embedding": 1_600 * 6, "reduced": 2_400}
    alone = estimate(replace(plan, hybrid=False)).moments
    assert alone["the backward pass of the first layer"] == alone["the backward pass of a layer"]


def test_gradients_follow_weights_that_are_offloaded():
    offloaded = estimate(replace(PLAN, fsdp=True, shards=4, offload=True))
    assert set(offloaded.always.values()) == {0} and "gradients" not in offloaded.parts


def test_a_cpu_keeps_of_norms_and_gated_mlps_what_they_were_given():
    # From 2**18 numbers on: 40,000 tokens x 8 in the norms, x 20 in the MLP.
    gpu, cpu = (replace(PLAN, rows=4000, attention="by_document", cuda=on) for on in (True, False))
    (kept, passing), (less, more) = layer_bytes(gpu), layer_bytes(cpu)
    # Two norms leave 4 x 8 bytes of a token less each, and the MLP 4 x 20; both factors of its product have gradients.
    assert kept - less == 40_000 * (2 * 32 + 80) and more - passing == 40_000 * 80
    assert layer_bytes(replace(PLAN, cuda=False)) == layer_bytes(PLAN)  # too few


def test_what_generating_takes_is_held_without_gradients_and_activations():
    plan = replace(PLAN, fsdp=True, shards=4, copy=10**6, cache=10**5, engine=10**4)
    moments = estimate(plan).moments
    assert moments["sampling rollouts"] == {"copy": 10**6, "cache": 10**5, "rollouts": 10**4}
    # One weight at a time is whole in float32: the embedding's or the head's 800.
    assert moments["unsharding the weights"] == {"copy": 10**6, "gathered": 3_200}
    assert estimate(plan).peak == 12_000 + 10**6 + 10**5 + 10**4


def test_the_cache_holds_keys_and_values_of_every_column_or_of_a_window():
    # 3 layers, 2 heads of 2 for keys and as many for values: 24 numbers a column.
    assert cached_numbers(CONFIG, rows=5, length=100) == 24 * 500
    window = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=10, max_window_layers=1)
    assert window.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert cached_numbers(window, rows=5, length=100) == 8 * 5 * (100 + 10 + 10)
    # Mistral's config names no kinds of layers: each has the window.
    assert cached_numbers(MistralConfig(**SIZES, sliding_window=10), rows=5, length=100) == 24 * 5 * 10


def test_rollouts_share_the_device_only_if_they_do_not_sleep():
    asleep = replace(PLAN, engine=10**9)
    assert estimate(asleep).moment == "sampling rollouts"
    assert estimate(asleep).peak == 16_000 + 32_000 + 10**9  # no gradients then
    awake = replace(asleep, sleeps=False)
    assert estimate(awake).peak == estimate(PLAN).peak + 10**9


def test_models_without_attention_are_estimated_by_their_states():
    assert heads_of(CONFIG) == (4, 2, 2)
    sizes = {"vocab_size": 100, "hidden_size": 8, "num_hidden_layers": 3}
    mamba2 = Mamba2Config(**sizes, num_heads=4, head_dim=4, expand=2)  # states of 4 x 4, twice the hidden size
    assert heads_of(mamba2) == (4, 4, 4) and heads_of(MambaConfig(**sizes)) == (1, 1, 8)
    assert layer_bytes(replace(PLAN, config=mamba2))[0] > layer_bytes(replace(PLAN, config=MambaConfig(**sizes)))[0] > 0


def test_every_part_is_explained():
    for plan in (PLAN, replace(PLAN, reference=True, precision="bf16-mixed"), replace(PLAN, fsdp=True, engine=10**9)):
        memory, words = estimate(plan), derived(plan)
        assert set(memory.always) | {name for moment in memory.moments.values() for name in moment} <= set(words)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("lora", [False, True])
def test_weights_gradients_and_optimizer_are_the_bytes_of_a_real_step(precision, lora):
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    model = AutoModelForCausalLM.from_config(CONFIG, dtype=dtype)
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights)
    model(torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    trained = sum(p.numel() for p in weights)
    assert trained == adapters(CONFIG, 2) or not lora
    frozen = sum(p.numel() for p in model.parameters()) - trained
    memory = estimate(replace(PLAN, trained=trained, frozen=frozen, precision=precision))
    assert memory.always["weights"] == sum(p.nbytes for p in model.parameters())
    assert memory.parts["gradients"] == sum(p.grad.nbytes for p in weights)
    states = [s for state in optimizer.state.values() for name, s in state.items() if name != "step"]
    assert memory.always["AdamW"] == sum(s.nbytes for s in states)

"""The simulation and the estimate at the start of a run, held against real steps and against arithmetic."""

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from lightning_modules.callbacks.memory import Plan, adapters, estimate
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.recompute import keep_inputs_alone

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are run from the repository and not installed
from benchmarks.sharded_step import Case, StepCost, measure, simulate
from benchmarks.simulate_fsdp import GIB, planned
from benchmarks.tensor_memory import allocator_peak

CPU = torch.device("cpu")
RESULTS = json.loads((Path(__file__).parents[2] / "benchmarks/results.json").read_text())
SIMULATED = RESULTS["FSDP2: memory and traffic of a GPU, simulated"]["rows"]


@cache
def weights_of(shape):
    """Number of weights of a shape, from two shallow models of it."""

    def count(layers):
        with torch.device("meta"):
            return sum(p.numel() for p in Qwen2ForCausalLM(Case("SRML", shape, layers=layers).config).parameters())

    one, two = count(1), count(2)
    return one + (Case("SRML", shape).config.num_hidden_layers - 1) * (two - one)


@pytest.mark.parametrize("row", SIMULATED, ids=lambda row: " ".join(row[:4]))
def test_the_estimate_is_a_simulated_peak_or_little_more(row):
    shape, objective, gpus, shards, peak = row[:5]
    case = Case(objective, shape, int(gpus), int(shards), length=4096 if objective == "SRML" else 16384)
    weights, learn = weights_of(shape), adapters(case.config, 16)
    counts = (learn, weights) if "LoRA" in objective else (weights, 0)
    guess = estimate(planned(case, StepCost(trained=counts[0], frozen=counts[1]))).peak
    assert 1.00 <= round(guess / GIB / float(peak), 2) <= 1.06


@pytest.mark.parametrize(
    ("layers", "length", "gpus"), [(4, 64, 8), (8, 16, 8), (8, 64, 8), (4, 64, 64), (12, 16, 64), (12, 64, 64)]
)
def test_the_estimate_is_a_peak_that_is_simulated_now(layers, length, gpus):
    case = Case("SRML", "small", gpus, 8, length=length, layers=layers)
    cost = simulate(case, as_on_gpu=False)
    guess = estimate(planned(case, cost))
    assert 1.00 <= round(guess.peak / cost.peak, 2) <= 1.06
    # Averaged over replicas the gradients of 12 layers, 11.8 MB / 8, are what most is held with.
    assert ("reduced" in guess.parts) == (layers == 12)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["SRML", "EGPO"])
def test_simulated_and_estimated_peaks_are_those_of_a_real_step(objective):
    case = Case(objective, "small", length=64, layers=2)
    cost, real = simulate(case, as_on_gpu=False), measure(case, CPU)
    assert cost.peak == pytest.approx(real, rel=0.15)
    assert estimate(planned(case, cost)).peak == pytest.approx(real, rel=0.15)


@pytest.mark.parametrize(("gpus", "shards"), [(8, 8), (64, 8)])
def test_traffic_is_what_fully_sharded_weights_have_to_move(gpus, shards):
    case = Case("SRML", "small", gpus, shards, length=64, layers=2)
    moved = simulate(case).moved
    root, norm = 2 * 4096 * 128, 128  # embedding and head; the last norm
    # q, k, v, o, gate, up, down; biases of q, k, v; two norms
    layer = 128 * (128 + 64 + 64 + 128 + 3 * 512) + (128 + 64 + 64) + 2 * 128
    # Two micro-batches. In bfloat16, layers twice (forward and backward pass) and the rest once; gradients in float32.
    gathered = 2 * 2 * (2 * 2 * layer + root + norm)
    reduced = 2 * 4 * (2 * layer + root + norm)
    assert moved["allgather_base", shards] == pytest.approx(gathered * (shards - 1) / shards, rel=0.01)
    assert moved["reduce_scatter_base", shards] == pytest.approx(reduced * (shards - 1) / shards, rel=0.01)
    if shards < gpus:  # this rank's shard of the gradients, over the 8 ranks that hold the same one
        assert moved["allreduce", 8] == pytest.approx(2 * reduced / shards * 7 / 8, rel=0.01)


@pytest.mark.parametrize(
    ("precision", "checkpointing", "lora"),
    [
        ("32-true", False, False),
        ("32-true", True, True),
        ("bf16-mixed", False, True),
        ("bf16-mixed", True, False),
        ("bf16-true", True, True),
    ],
)
@pytest.mark.parametrize("by_document", [False, True])
def test_the_estimate_is_the_peak_of_an_unsharded_step(precision, checkpointing, lora, by_document):
    config = Qwen2Config(
        vocab_size=4096,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    ids = torch.ones(2, 128, dtype=torch.long)
    positions = torch.arange(128).remainder(64).repeat(2, 1)
    with allocator_peak(CPU) as found:
        dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lora:
            model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        policy = ScoredCausalLM(model).train()
        policy.by_document = by_document
        weights = [p for p in policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights)
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, precision == "bf16-mixed", cache_enabled=False):  # as Lightning
                for _ in range(2):
                    policy(ids, positions, ids, entropy=True).logprobs.sum().backward()
                optimizer.step()
                optimizer.zero_grad()
    trained = sum(p.numel() for p in weights)
    frozen = sum(p.numel() for p in policy.parameters()) - trained
    attention = policy.causal_lm.config._attn_implementation
    sizes = (config, trained, frozen, precision, 2, 128, checkpointing)
    plan = Plan(*sizes, cuda=False, attention=attention)
    assert estimate(plan).peak == pytest.approx(found[0], rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "checkpointing"), [("32-true", False), ("bf16-mixed", True)])
def test_the_estimate_knows_what_a_cpu_computes_again(precision, checkpointing):
    sizes = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3}
    config = Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    ids, positions = torch.ones(2, 1024, dtype=torch.long), torch.arange(1024).remainder(64).repeat(2, 1)
    with allocator_peak(CPU) as found:
        model = Qwen2ForCausalLM(config)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy = ScoredCausalLM(model).train()
        policy.by_document = True
        keep_inputs_alone(model)
        optimizer = torch.optim.AdamW(policy.parameters(), fused=True)
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, precision == "bf16-mixed", cache_enabled=False):
                for _ in range(2):
                    policy(ids, positions, ids, entropy=True).logprobs.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    weights = sum(p.numel() for p in policy.parameters())
    plan = Plan(config, weights, 0, precision, 2, 1024, checkpointing, cuda=False, attention="by_document")
    assert estimate(plan).peak == pytest.approx(found[0], rel=0.15)
    kept = estimate(replace(plan, cuda=True)).parts["activations"]
    assert kept > estimate(plan).parts["activations"]


@pytest.mark.parametrize("tied", [False, True])
def test_the_estimate_knows_that_the_gradient_of_a_tied_head_waits(tied):
    sizes = {"vocab_size": 16384, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    config = Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied)
    ids, positions = torch.ones(2, 8, dtype=torch.long), torch.arange(8).repeat(2, 1)
    with allocator_peak(CPU) as found:
        policy = ScoredCausalLM(Qwen2ForCausalLM(config)).train()
        optimizer = torch.optim.AdamW(policy.parameters(), fused=True)
        for _ in range(2):
            for _ in range(2):
                policy(ids, positions, ids).logprobs.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    weights = sum(p.numel() for p in policy.parameters())
    memory = estimate(Plan(config, weights, 0, "32-true", 2, 8, False, cuda=False))
    # Beside weights, gradients and AdamW one gradient of 4 MiB, or those of head and embedding until they are one.
    assert memory.moment == f"the backward pass of the {'embedding' if tied else 'head'}"
    assert memory.peak == pytest.approx(found[0], rel=0.05)

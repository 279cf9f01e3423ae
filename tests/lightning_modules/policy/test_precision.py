"""bfloat16 weights: what is refused, what stays float32 in a run, and metrics that no default dtype rounds."""

import os
from pathlib import Path

import bf16_step
import pytest
import torch
from lightning.pytorch import Trainer
from training_runs import Steps, script_on_ranks
from transformers import AutoConfig, AutoModelForCausalLM

from lightning_modules import SRMLModule
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.precision import LEAST_RATE, check_precision
from lightning_modules.policy.shard import set_dtypes

HERE = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("16-true", True, 1e-4), "16-true is not supported"),
        (("16-mixed", False, None), "16-mixed is not supported"),
        (("transformer-engine", False, None), "transformer-engine is not supported"),
        (("bf16-true", False, 1e-6), "learning_rate 1e-06 would round away what AdamW"),
        (("bf16-true", True, 1e-4, True), "does not work with FSDP1"),
    ],
)
def test_what_cannot_work_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        check_precision(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("32-true", False, 1e-6),
        ("bf16-mixed", False, 1e-6),
        ("64-true", True, 1e-6),
        ("bf16-true", True, 1e-6),
        ("bf16-true", False, LEAST_RATE),
        ("bf16-true", False, None),  # evaluation
    ],
)
def test_what_works_is_not(arguments):
    check_precision(*arguments)


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_a_run_is_refused_before_its_model_is_loaded(precision):
    trainer = Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=f"trainer.precision {precision}"):
        trainer.fit(SRMLModule(init_from="no/such/folder"), Steps())


@pytest.mark.parametrize(("rate", "least", "most"), [(1e-6, 0.005, 0.02), (4e-5, 0.2, 0.5), (LEAST_RATE, 0.9, 1.05)])
def test_the_least_rate_is_where_bfloat16_weights_move_as_adamw_means_them_to(rate, least, most):
    generator = torch.Generator().manual_seed(0)
    start = (0.02 * torch.randn(20_000, generator=generator)).bfloat16()
    mean = 0.3 * torch.randn(len(start), generator=generator)
    weights = [start.float().requires_grad_(), start.clone().requires_grad_()]
    optimizers = [torch.optim.AdamW([weight], lr=rate, weight_decay=0.0) for weight in weights]
    for _ in range(100):
        gradient = mean + torch.randn(len(start), generator=generator)
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = gradient.to(weight.dtype)
            optimizer.step()
    meant, done = (weight.detach().double() - start.double() for weight in weights)
    assert least < meant @ done / (meant @ meant) < most


@pytest.fixture(scope="module")
def long_model_dir(make_model_dir):
    """Heads as wide as those of Qwen2.5, whose slowest rotary frequencies lie near 1e-6."""
    return make_model_dir(
        hidden_size=128, num_attention_heads=1, num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip


@pytest.fixture(scope="module")
def one_process(long_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    bf16_step.main(long_model_dir, folder)
    return torch.load(folder / "0.pt")


def test_adapters_and_their_moments_learn_in_float32_on_bfloat16_weights(one_process):
    for name, dtype in one_process["weights"].items():
        kept = ".lora_" in name or name == "alpha_logit"
        assert dtype == (torch.float32 if kept else torch.bfloat16), name
    assert one_process["states"] == {torch.float32}
    for name, weight in one_process["adapters"].items():
        moved = weight != weight.bfloat16().float()
        assert moved.float().mean() > 0.5, name  # it holds what bfloat16 cannot
    # AdamW's first two steps are as long as the rate, 100 x 0.001, from log(0.7 / 0.3) = 0.8473; bfloat16: 0.6445.
    assert one_process["alpha"].item() == pytest.approx(0.8473 - 0.2, abs=1e-3)


def test_positions_are_turned_by_exact_angles_however_long_the_document(one_process):
    # The oracle in float64: position p turns the pair i by p * theta^(-2i / d).
    inverse = 1e6 ** -(torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    frequencies = next(b for name, b in one_process["buffers"].items() if name.endswith("rotary_emb.inv_freq"))
    assert frequencies.dtype == torch.float32
    # float32 keeps 24 bits: 4,000 x 2^-24 = 0.0002 rad; bfloat16 would be off by up to 4,000 x 2^-9 = 8.
    torch.testing.assert_close(4000 * frequencies.double(), 4000 * inverse, rtol=0, atol=5e-4)


@pytest.mark.ranks
def test_two_ranks_in_shards_hold_what_one_process_does(long_model_dir, one_process, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    done = script_on_ranks(HERE / "bf16_step.py", long_model_dir, tmp_path, 2, "fsdp2")
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in range(2):  # the second one has loaded nothing, and was sent its weights
        left = torch.load(tmp_path / f"{rank}.pt")
        for part in ("weights", "copied", "states"):
            assert left[part] == one_process[part]
        for name, buffer in one_process["buffers"].items():
            assert left["buffers"][name].dtype == buffer.dtype and torch.equal(left["buffers"][name], buffer)
        for name, weight in one_process["adapters"].items():
            # The rate is 1e-3; gathered in bfloat16, gradients that are all rounding may have the other sign.
            torch.testing.assert_close(left["adapters"][name], weight, rtol=0, atol=4e-3, msg=name)
            assert left["adapters"][name].dtype == torch.float32
        policy, copy = left["logprobs"]
        torch.testing.assert_close(copy, policy, rtol=0, atol=0.1)


def test_ranks_that_load_nothing_make_what_loading_keeps_in_float32(tmp_path):
    # A sparse model whose router has a bias that transformers never rounds.
    config = AutoConfig.for_model(
        "deepseek_v3", vocab_size=64, hidden_size=32, intermediate_size=32, moe_intermediate_size=16,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4, n_shared_experts=1,
        n_group=2, topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    loaded, empty = (
        build_policy(str(tmp_path), LoRA(r=2, target_modules=["q_a_proj"]), dtype=torch.bfloat16, empty=empty)
        for empty in (False, True)
    )
    dtypes = {name: weight.dtype for name, weight in loaded.state_dict().items()}
    assert sum(dtype == torch.float32 for dtype in dtypes.values()) == 2 * 2 + 1  # adapters of two layers, the bias
    set_dtypes(empty, dtypes)
    assert {name: weight.dtype for name, weight in empty.state_dict().items()} == dtypes
    assert all(p.is_meta for p in empty.parameters())

"""Rollouts by vLLM engines, one per rank, of a policy in shards over two gloo ranks; the exported model in vLLM."""

import csv
import os
from pathlib import Path

import pytest
import torch
from training_runs import run_ranks
from transformers import AutoModelForCausalLM

from lightning_modules.generators.vllm_engine import Engine

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "model.sampling.group_size": 4,
    "model.learning_rate": 0.001,
    "model.rewards": '{"vowels": {"function": "vowel_rewards.vowels"}}',
    "model.reward_timeout": 60,
    "model.generator.init_args.max_new_tokens": 16,
    "model.generator.init_args.kv_cache_gib": 0.1,
    "data.path": "toolbox:train:24",
    "data.val_path": "toolbox:heldout:2",
    "data.prompts_per_step": 4,
    "trainer.max_steps": 3,
    "trainer.val_check_interval": 3,
    "trainer.enable_progress_bar": "false",
    "trainer.accelerator": "cpu",
    "trainer.devices": 2,
    "trainer.strategy.class_path": "lightning_modules.strategies.FSDP2",
}


APART = {"model.lora.r": 4, "model.generator.init_args.enable_lora": "true"}


@pytest.mark.parametrize("lora", [{}, {"model.lora.r": 4}, APART], ids=["all weights", "adapters", "adapters alone"])
def test_a_sharded_policy_learns_from_samples_of_its_own(tmp_path, monkeypatch, lora):
    (tmp_path / "vowel_rewards.py").write_text(
        "def vowels(completion, tools, answers):\n    return sum(c in 'aeiou' for c in completion)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.chdir(ROOT)
    options = SMALL | lora | {"data.cache_dir": tmp_path / "cache", "trainer.default_root_dir": tmp_path / "run"}
    files = ("configs/grpo.yaml", "configs/variants/grpo_vllm.yaml")
    command = ["fit", *(f"--config={file}" for file in files), *(f"--{key}={value}" for key, value in options.items())]
    done = run_ranks("-m", "lightning_modules", *command)
    assert done.returncode == 0, done.stderr[-4000:]
    run = tmp_path / "run" / "egpo-fit-0"
    with (run / "metrics.csv").open() as file:
        metrics = {(int(row["step"]), row["name"]): float(row["value"]) for row in csv.DictReader(file)}
    for step in (1, 2, 3):  # all but the first sample from a policy that has been updated
        assert metrics[step, "sampling/logp_diff_max"] <= 5e-3
        assert metrics[step, "sampling/is_ratio_raw_mean"] == pytest.approx(1, abs=1e-3)
        assert metrics[step, "train/grad_norm"] > 0
    assert (3, "tool/exact_match") in metrics
    options = {"dtype": torch.float32, "enforce_eager": True, "kv_cache_memory_bytes": 10**8, "max_model_len": 256}
    engine = Engine(str(run / "hf"), torch.device("cpu"), 300.0, False, **options)
    ids = list(range(3, 40))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(run / "hf", dtype=torch.float32)(torch.tensor([ids])).logits
    expected = logits.log_softmax(-1)[0, :-1].gather(1, torch.tensor(ids[1:])[:, None]).squeeze(1)
    torch.testing.assert_close(engine.score(ids), expected, rtol=1e-3, atol=1e-3)
    engine.close()

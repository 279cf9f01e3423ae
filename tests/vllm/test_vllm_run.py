"""The shipped experiment with vLLM, made small: rollouts match the policy after updates; a dead engine ends it well."""

import csv
import os
import signal
from pathlib import Path

import pytest

from lightning_modules.cli import main
from lightning_modules.generators.vllm_engine import Engine

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "model.sampling.group_size": 4,
    "model.learning_rate": 0.001,
    "model.rewards": '{"vowels": {"function": "vowel_rewards.vowels"}}',
    "model.reward_timeout": "null",
    "model.generator.init_args.max_new_tokens": 16,
    "model.generator.init_args.kv_cache_gib": 0.1,
    "data.path": "toolbox:train:24",
    "data.val_path": "toolbox:heldout:2",
    "data.prompts_per_step": 2,
    "trainer.max_steps": 5,
    "trainer.val_check_interval": 2,
    "trainer.enable_progress_bar": "false",
    "last_checkpoint.every_n_train_steps": 100,
}


def metrics_of(run):
    with (run / "metrics.csv").open() as file:
        return {(int(row["step"]), row["name"]): float(row["value"]) for row in csv.DictReader(file)}


def test_a_run_learns_from_its_own_samples_and_goes_on_after_its_engine_has_died(tmp_path, monkeypatch):
    (tmp_path / "vowel_rewards.py").write_text(
        "def vowels(completion, tools, answers):\n    return sum(c in 'aeiou' for c in completion)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(ROOT)
    options = SMALL | {"data.cache_dir": tmp_path / "cache", "trainer.default_root_dir": tmp_path / "run"}
    files = ("configs/grpo.yaml", "configs/variants/grpo_vllm.yaml")
    command = ["fit", *(f"--config={file}" for file in files), *(f"--{key}={value}" for key, value in options.items())]
    generate, sampled = Engine.generate, []

    def dying(self, prompts, settings, progress=False):
        if len(prompts) == 8:
            sampled.append(len(prompts))
        if len(sampled) == 4:
            (core,) = self._llm.llm_engine.engine_core.resources.engine_manager.processes
            os.kill(core.pid, signal.SIGKILL)
        return generate(self, prompts, settings, progress)

    monkeypatch.setattr(Engine, "generate", dying)
    with pytest.raises(SystemExit) as end:
        main(command)
    assert str(end.value).startswith("error: The vLLM engine died while generating 8 completions: ")
    died = tmp_path / "run" / "egpo-fit-0"
    assert [path.name for path in (died / "checkpoints").glob("last-*")] == ["last-000003.ckpt"]

    monkeypatch.setattr(Engine, "generate", generate)
    main([*command, f"--ckpt_path={died}"])
    resumed = tmp_path / "run" / "egpo-fit-1"
    assert (resumed / "hf" / "model.safetensors").exists()
    metrics = metrics_of(died) | metrics_of(resumed)
    for step in (1, 2, 3, 4, 5):  # all but the first sample from a policy that has been updated
        assert metrics[step, "sampling/logp_diff_max"] <= 5e-3
        assert metrics[step, "sampling/is_ratio_raw_mean"] == pytest.approx(1, abs=1e-3)
        assert metrics[step, "sampling/ess"] == pytest.approx(1, abs=1e-3)
        assert metrics[step, "sampling/masked_frac"] == 0
        assert metrics[step, "time/weight_sync"] > 0
        assert metrics[step, "train/grad_norm"] > 0
    assert {(2, "tool/exact_match"), (4, "tool/exact_match")} <= set(metrics)

"""The step of a GPU session that samples with vLLM, with a real engine on the CPU."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks are run from the repository and not installed
from benchmarks import gpu_session


def test_the_step_samples_before_and_after_new_weights(capfd, monkeypatch):
    monkeypatch.setattr(sys, "stdin", open("/dev/null"))
    gpu_session.measure("vllm", small=True)
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line.startswith("{")]
    assert [list(line) for line in lines] == [["machine"], ["transfer: folder"]]
    found = lines[1]["transfer: folder"]
    assert "error" not in found
    rounds = [found["start and first sync"], found["sync after a step"]]
    for each in rounds:
        assert each["probe passed"] and each["seconds"] > 0 and each["from the policy, nats"] <= 5e-3
        assert each["tokens"] == 2 * 2 * 8 and each["tokens/s"] > 0  # prompts, samples of each, tokens of each
    assert rounds[1]["the policy moved, nats"] > 5e-3  # or the probe would pass without a sync

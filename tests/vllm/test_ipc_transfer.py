"""Weights over CUDA IPC as far as no GPU is needed: vLLM's own code on both sides of a real engine.

A mapped file stands in for a GPU's memory (`mapped_memory`).
"""

import json
from textwrap import indent

import pytest
import torch
from training_runs import SHARDED, script_on_ranks
from vllm.distributed.weight_transfer import ipc_engine

from lightning_modules.generators import HFGenerator, VLLMGenerator, ipc_transfer
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from tests.vllm.mapped_memory import GPU, share
from tests.vllm.test_vllm_generator import PROMPTS, SMALL, gap, ids, update

WORKERS = "tests.vllm.mapped_memory.Workers"
RANKS = (
    SHARDED
    + """
import json, os, pathlib, sys

folder, model, rank = pathlib.Path(sys.argv[1]), sys.argv[2], os.environ["RANK"]
os.environ["MAPPED_GPU"] = f"GPU-{rank}"
(files := folder / f"memory-{rank}").mkdir()

from lightning_modules.generators import VLLMGenerator
from tests.vllm import mapped_memory
from tests.vllm.test_vllm_generator import PROMPTS, SMALL

sizes = mapped_memory.share(setattr, files)
policy, whole = sharded(model, LoRA(r=4))
generator = VLLMGenerator(**SMALL, transfer="ipc")
generator.options["worker_extension_cls"] = "tests.vllm.mapped_memory.Workers"
sampled = []
for step in range(2):
    completions = generator(policy, PROMPTS[rank == "1" :], stop_ids=[])  # the ranks' rows are not equally many
    sampled.append([completion.token_ids for row in completions for completion in row])
    with torch.no_grad():
        policy.causal_lm.get_input_embeddings().weight.to_local().mul_(-1)
generator.engine.close()
(folder / f"{rank}.json").write_text(json.dumps({"sampled": sampled, "packs": len(sizes), "left": len(held)}))
if rank == "0":
    torch.save(whole, folder / "whole.pt")
dist.destroy_process_group()
"""
)
GUARDED = "if __name__ == '__main__':\n" + indent(RANKS, "    ")  # the engines' processes import the script


@pytest.fixture
def memory(monkeypatch, tmp_path):
    """The sizes of the files that stand for a GPU's memory."""
    monkeypatch.setenv(GPU, "GPU-0")
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "0")  # which an engine sets, and nothing unsets
    return share(monkeypatch.setattr, tmp_path)


@pytest.fixture
def packs(monkeypatch):
    """Names and dtypes of the weights in each pack."""
    found, send = [], ipc_engine.IPCTrainerWeightTransferEngine._do_send

    def noted(self, names, dtype_names, shapes, ipc_handles, tensor_sizes):
        found.append((names, set(dtype_names)))
        assert list(ipc_handles) == ["GPU-0"]
        send(self, names, dtype_names, shapes, ipc_handles, tensor_sizes)

    monkeypatch.setattr(ipc_engine.IPCTrainerWeightTransferEngine, "_do_send", noted)
    return found


def test_an_engine_scores_and_samples_by_the_weights_that_it_was_handed(memory, packs, monkeypatch, small_heads_dir):
    policy = build_policy(str(small_heads_dir), lora=LoRA(r=4))
    largest = max(weight.numel() for weight in policy.causal_lm.state_dict().values()) * 4
    monkeypatch.setattr(ipc_transfer, "PACK", largest // 2)  # many packs, and the largest weight is more than one
    generator = VLLMGenerator(**SMALL, transfer="ipc")
    generator.options["worker_extension_cls"] = WORKERS
    before = generator(policy, PROMPTS, n=2, temperature=1.0)
    assert gap(policy, PROMPTS, before) <= 5e-3
    sent = [name for names, _ in packs for name in names]
    assert memory == [largest] and len(packs) > 2 and len(set(sent)) == len(sent)
    for _ in range(2):
        update(policy, 1e-2)
        assert gap(policy, PROMPTS, before) > 5e-3
        before = generator(policy, PROMPTS, n=2, temperature=1.0)
        assert gap(policy, PROMPTS, before) <= 5e-3
    assert ids(generator(policy, PROMPTS, stop_ids=[])) == ids(HFGenerator(8)(policy, PROMPTS, stop_ids=[]))
    assert [name for names, _ in packs for name in names] == sent * 3
    assert all(dtypes == {"float32"} for _, dtypes in packs)
    with torch.no_grad():
        next(weight for name, weight in policy.named_parameters() if name.endswith("norm.weight"))[3] = torch.nan
    with pytest.raises(ValueError, match="is not finite"):
        generator(policy, PROMPTS)
    assert len(memory) == 3  # nothing more was handed over
    generator.engine.close()


@pytest.mark.ranks
def test_each_rank_of_a_sharded_policy_hands_weights_to_an_engine_of_its_own(small_heads_dir, tmp_path):
    (script := tmp_path / "ranks.py").write_text(GUARDED)
    done = script_on_ranks(script, tmp_path, small_heads_dir)
    assert done.returncode == 0, done.stderr[-3000:]
    policy, want = build_policy(str(small_heads_dir)), []
    policy.causal_lm.load_state_dict(torch.load(tmp_path / "whole.pt"))
    for _ in range(2):
        want.append([row[0].token_ids for row in HFGenerator(8)(policy, PROMPTS, stop_ids=[])])
        with torch.no_grad():
            policy.causal_lm.get_input_embeddings().weight.mul_(-1)  # the head's, too
    assert want[0] != want[1]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == {"sampled": [rows[rank:] for rows in want], "packs": 2, "left": 0}

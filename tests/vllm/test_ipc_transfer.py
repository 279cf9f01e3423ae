"""Weights over CUDA IPC as far as no GPU is needed: vLLM's own code on both sides of a real engine.

A mapped file stands in for a GPU's memory (`mapped_memory`).
"""

from types import SimpleNamespace

import pytest
import torch
from vllm.distributed.weight_transfer import ipc_engine, packed_tensor

from lightning_modules.generators import HFGenerator, VLLMGenerator, ipc_transfer
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from tests.vllm.mapped_memory import UUID, mapped, properties
from tests.vllm.test_vllm_generator import PROMPTS, SMALL, gap, ids, update


@pytest.fixture
def memory(monkeypatch, tmp_path):
    """What the trainer's side asks CUDA for, by a file; gives the sizes of what was mapped."""
    sizes = []

    def empty(size, dtype, device):
        assert (dtype, device) == (torch.uint8, "cuda")
        (file := tmp_path / f"{len(sizes)}").write_bytes(b"")
        sizes.append(size)
        tensor = mapped(str(file), size)
        tensor.file = str(file)
        return tensor

    here = SimpleNamespace(**{name: getattr(torch, name) for name in ("uint8", "Tensor", "dtype")})
    here.empty, here.cuda = empty, SimpleNamespace(current_stream=lambda: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(packed_tensor, "torch", here)
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "0")  # which an engine sets, and nothing unsets
    monkeypatch.setattr(packed_tensor, "reduce_tensor", lambda t: (None, (t.file, t.numel(), torch.Tensor, t.shape, t.dtype, b"", None)))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    return sizes


@pytest.fixture
def packs(monkeypatch):
    """Names and dtypes of the weights in each pack."""
    found, send = [], ipc_engine.IPCTrainerWeightTransferEngine._do_send

    def noted(self, names, dtype_names, shapes, ipc_handles, tensor_sizes):
        found.append((names, set(dtype_names)))
        assert list(ipc_handles) == [UUID]
        send(self, names, dtype_names, shapes, ipc_handles, tensor_sizes)

    monkeypatch.setattr(ipc_engine.IPCTrainerWeightTransferEngine, "_do_send", noted)
    return found


def test_an_engine_scores_and_samples_by_the_weights_that_it_was_handed(memory, packs, monkeypatch, small_heads_dir):
    policy = build_policy(str(small_heads_dir), lora=LoRA(r=4))
    largest = max(weight.numel() for weight in policy.causal_lm.state_dict().values()) * 4
    monkeypatch.setattr(ipc_transfer, "PACK", largest // 2)  # many packs, and the largest weight is more than one
    generator = VLLMGenerator(**SMALL, transfer="ipc")
    generator.options["worker_extension_cls"] = "tests.vllm.mapped_memory.Workers"
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

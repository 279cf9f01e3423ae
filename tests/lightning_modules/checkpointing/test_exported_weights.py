"""Exports in several files: written as the weights come, by a rank that never holds more than a file and a layer."""

import json

import pytest
import torch
from safetensors.torch import load_file
from training_runs import SHARDED, script_on_ranks
from transformers import AutoModelForCausalLM

from lightning_modules.checkpointing import exported_weights
from lightning_modules.checkpointing.export import export_hf
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.weight_blocks import block_of

LARGEST = 10_000  # bytes of a file: less than a layer of the tiny model
RANKS = (
    SHARDED
    + f"""
import json, os, pathlib, sys
from transformers import AutoTokenizer
from safetensors import SafetensorError
from lightning_modules.checkpointing import export, exported_weights

folder, model, rank = pathlib.Path(sys.argv[1]), sys.argv[2], int(os.environ["RANK"])
exported_weights.LARGEST, tokenizer = {LARGEST}, AutoTokenizer.from_pretrained(model)
save_file, found = exported_weights.save_file, {{}}

def full(tensors, file, metadata):
    if "00002" in file.name:
        raise SafetensorError("No space left on device")
    save_file(tensors, file, metadata)

for kind, lora in {{"adapters": LoRA(r=4), "weights": None}}.items():
    policy, whole = sharded(model, lora)
    torch.save(whole, folder / f"{{kind}}-{{rank}}.pt")
    unshard.unshard, most[0] = counted, 0
    export.export_hf(policy, tokenizer, folder / kind, write=rank == 0)
    unshard.unshard = gather
found |= {{"most": most[0], "left": len(held)}}
with torch.no_grad():
    policy.causal_lm.model.norm.weight.to_local().mul_(2)
exported_weights.save_file = full
try:
    export.export_hf(policy, tokenizer, folder / "weights", write=rank == 0)
except OSError as error:
    found["full"] = str(error)
exported_weights.save_file = save_file
export.export_hf(policy, tokenizer, folder / "after", write=rank == 0)  # the ranks are still together
(folder / f"{{rank}}.json").write_text(json.dumps(found))
dist.destroy_process_group()
"""
)


def written(folder):
    """All tensors of a folder's files, of each of which the index says where it is."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = {file.name: load_file(file) for file in folder.glob("*.safetensors")}
    tensors = {name: tensor for file in files.values() for name, tensor in file.items()}
    assert index["weight_map"] == {name: file for file, part in files.items() for name in part}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert len(files) > 2 and all(
        sum(tensor.nbytes for tensor in file.values()) <= LARGEST or len(file) == 1 for file in files.values()
    )
    return tensors


@pytest.mark.ranks
def test_a_sharded_policy_is_exported_without_more_than_a_file_and_a_layer_on_the_rank_that_writes(
    tiny_model_dir, tmp_path
):
    (script := tmp_path / "ranks.py").write_text(RANKS)
    done = script_on_ranks(script, tmp_path, tiny_model_dir)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for kind in ("adapters", "weights"):
        want, got = torch.load(tmp_path / f"{kind}-0.pt"), written(tmp_path / kind)
        assert want.keys() - got.keys() == {"lm_head.weight"} and not got.keys() - want.keys()  # it is tied
        assert all(torch.equal(weight, want[name]) for name, weight in got.items())
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / kind).state_dict()
        assert loaded.keys() == want.keys() and all(torch.equal(loaded[name], want[name]) for name in want)
    layers = {}
    for name, weight in got.items():
        layers[block_of(name)] = layers.get(block_of(name), 0) + weight.nbytes
    assert [rank["left"] for rank in ranks] == [0, 0]
    assert ranks[0]["most"] <= max(layers.values()) + LARGEST < sum(layers.values()) / 2
    assert ranks[1]["most"] == max(weight.nbytes for weight in got.values())  # it writes nothing
    assert "cannot be written: No space left on device" in ranks[0]["full"] and "full" not in ranks[1]
    names = {"adapters", "after", "weights", "ranks.py", *(f"{r}.json" for r in (0, 1))}
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".pt"} == names  # nothing half-written
    after = written(tmp_path / "after")
    assert torch.equal(after["model.norm.weight"], 2 * want["model.norm.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_several_files_hold_what_one_does(tiny_model_dir, tiny_tokenizer, tmp_path, monkeypatch, lora, dtype):
    policy = build_policy(str(tiny_model_dir), lora, dtype=dtype)
    export_hf(policy, tiny_tokenizer, tmp_path / "one")
    monkeypatch.setattr(exported_weights, "LARGEST", LARGEST)
    export_hf(policy, tiny_tokenizer, tmp_path / "several")
    want, got = load_file(tmp_path / "one" / "model.safetensors"), written(tmp_path / "several")
    assert want.keys() == got.keys() and all(torch.equal(weight, want[name]) for name, weight in got.items())
    assert {weight.dtype for weight in got.values()} == {dtype}
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("one", "several")]
    assert configs[0] == configs[1] and configs[0]["dtype"] == str(dtype).removeprefix("torch.")

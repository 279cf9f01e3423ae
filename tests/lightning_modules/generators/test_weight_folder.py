"""Folders of weights for an engine: the policy's to the bit, written by layers, and never whole in any process."""

import json
import re
import shutil

import pytest
import torch
from families import FAMILIES
from peft import PeftModel
from safetensors.torch import load_file
from training_runs import SHARDED, script_on_ranks
from transformers import AutoModelForCausalLM

from lightning_modules.generators.weight_folder import write_adapters, write_weights
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.unshard import merged_weights
from lightning_modules.policy.weight_blocks import block_of

MIXTURE = next(family for family in FAMILIES if family.kind == "qwen3_moe")
RANKS = (
    SHARDED
    + """
import json, os, pathlib, sys
from lightning_modules.generators import weight_folder

folder, model, rank = pathlib.Path(sys.argv[1]), sys.argv[2], int(os.environ["RANK"])
for kind, lora in {"adapters": LoRA(r=4), "weights": None}.items():
    policy, whole = sharded(model, lora)
    torch.save(whole, folder / f"{kind}-{rank}.pt")
    (folder / kind).mkdir(exist_ok=True)
    unshard.unshard, most[0] = counted, 0
    weight_folder.write_weights(policy, folder / kind, torch.float32, write=rank == 0)
    unshard.unshard = gather
    if lora:
        weight_folder.write_adapters(policy, folder / "apart", torch.float32, write=rank == 0)
found = {"most": most[0], "left": len(held)}
policy.causal_lm.model.norm.weight.to_local().data.fill_(torch.nan)
try:
    weight_folder.write_weights(policy, folder / "weights", torch.float32, write=False)
except ValueError as error:
    found["refused"] = str(error)
weight_folder.shutil.disk_usage = lambda place: type("", (), {"free": 5})
try:
    weight_folder.write_weights(policy, folder / "weights", torch.float32, write=rank == 0)
except (OSError, ValueError) as error:
    found["room"] = str(error)
(folder / f"{rank}.json").write_text(json.dumps(found))
dist.destroy_process_group()
"""
)


def written(folder):
    """All tensors of a folder's files."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [None, LoRA(r=4)], ids=["all weights", "adapters"])
def test_a_folder_holds_the_merged_weights_by_layers(tiny_model_dir, tmp_path, lora, dtype):
    policy = build_policy(str(tiny_model_dir), lora)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if ".lora_B." in name:
                weight.normal_()
    write_weights(policy, tmp_path, dtype)
    want = {name: weight.to(dtype) for name, weight in merged_weights(policy)}
    files, index = written(tmp_path), json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert files.keys() == want.keys() == index["weight_map"].keys()
    assert all(torch.equal(files[name], weight) for name, weight in want.items())
    assert index["weight_map"]["model.layers.1.mlp.up_proj.weight"] == "model.layers.1.safetensors"
    assert len(set(index["weight_map"].values())) == 2 + 3  # layers, and embedding, norm, head
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert not model.config.tie_word_embeddings and policy.causal_lm.config.tie_word_embeddings
    assert torch.equal(model.lm_head.weight, want["lm_head.weight"])


def test_adapters_go_into_a_folder_of_their_own_beside_weights_without_them(tiny_model_dir, tmp_path):
    policy = build_policy(str(tiny_model_dir), LoRA(r=4), dtype=torch.bfloat16)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if ".lora_B." in name:
                weight.normal_()
    (tmp_path / "base").mkdir()
    with policy.model.disable_adapter():
        write_weights(policy, tmp_path / "base", torch.bfloat16)
    want, got = (
        build_policy(str(tiny_model_dir), dtype=torch.bfloat16).causal_lm.state_dict(),
        written(tmp_path / "base"),
    )
    assert want.keys() == got.keys() and all(torch.equal(got[name], weight) for name, weight in want.items())
    write_adapters(policy, tmp_path / "apart", torch.bfloat16)
    assert {weight.dtype for weight in written(tmp_path / "apart").values()} == {torch.bfloat16}
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "apart")
    learnt, kept = (
        {name: weight.bfloat16() for name, weight in model.named_parameters() if ".lora_" in name}
        for model in (policy.model, again)
    )
    assert learnt.keys() == kept.keys() and all(torch.equal(kept[name], weight) for name, weight in learnt.items())
    with torch.no_grad():
        policy.model.get_parameter(next(iter(learnt))).fill_(torch.inf)
    with pytest.raises(ValueError, match=r"^The weight \S+lora_A\S+ is not finite in torch\.bfloat16"):
        write_adapters(policy, tmp_path / "apart", torch.bfloat16)


def test_weights_of_experts_have_the_names_of_the_family(tmp_path, tiny_tokenizer):
    """transformers holds those of a layer in one tensor, and files have one for each expert."""
    policy = build_policy(str(MIXTURE.save(tmp_path / "model", tiny_tokenizer)))
    policy.causal_lm.save_pretrained(tmp_path / "whole")
    (tmp_path / "streamed").mkdir()
    write_weights(policy, tmp_path / "streamed", torch.float32)
    want, got = written(tmp_path / "whole"), written(tmp_path / "streamed")
    assert "model.layers.0.mlp.experts.3.up_proj.weight" in want
    assert want.keys() | {"lm_head.weight"} == got.keys()
    assert all(torch.equal(got[name], weight) for name, weight in want.items())


@pytest.mark.ranks
def test_no_rank_gathers_more_than_a_layer_of_a_sharded_policy_at_a_time(tiny_model_dir, tmp_path):
    (script := tmp_path / "ranks.py").write_text(RANKS)
    done = script_on_ranks(script, tmp_path, tiny_model_dir)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in ("adapters", "weights"):
        want, got = torch.load(tmp_path / f"{kind}-0.pt"), written(tmp_path / kind)
        assert want.keys() == got.keys() and all(torch.equal(got[name], weight) for name, weight in want.items())
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, tmp_path / "apart").merge_and_unload().state_dict()
    for name, weight in torch.load(tmp_path / "adapters-0.pt").items():
        torch.testing.assert_close(merged[name], weight)
    layers = {}
    for name, weight in want.items():
        layers[block_of(name)] = layers.get(block_of(name), 0) + weight.nbytes
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["left"] for rank in ranks] == [0, 0]
    assert ranks[0]["most"] == max(layers.values()) < sum(layers.values()) / 2
    assert ranks[1]["most"] == max(weight.nbytes for weight in want.values())  # it writes nothing
    for rank in ranks:
        assert re.match(r"The weight \S+ is not finite in torch.float32", rank["refused"])
        assert f"need {sum(layers.values()):,} bytes in {tmp_path}" in rank["room"]  # also of the one that writes none


def test_a_weight_that_is_not_finite_in_the_dtype_of_the_engine_is_named(tiny_model_dir, tmp_path):
    policy = build_policy(str(tiny_model_dir))
    with torch.no_grad():
        policy.causal_lm.model.norm.weight[3] = 1e5  # float16 ends at 65,504
    write_weights(policy, tmp_path, torch.bfloat16)
    with pytest.raises(ValueError, match=r"^The weight model\.norm\.weight is not finite in torch\.float16"):
        write_weights(policy, tmp_path, torch.float16)


def test_too_little_room_is_said_before_anything_is_written(tiny_model_dir, tmp_path, monkeypatch):
    policy = build_policy(str(tiny_model_dir))
    size = sum(2 * weight.numel() for _, weight in merged_weights(policy))
    (folder := tmp_path / "weights").mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: type("", (), {"free": size - 1}))
    words = (
        rf"need {size:,} bytes in {tmp_path}, which has {size - 1:,} free: give the generator's weights_dir .*TMPDIR"
    )
    with pytest.raises(OSError, match=words):
        write_weights(policy, folder, torch.bfloat16)
    assert not list(folder.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda place: type("", (), {"free": size}))
    write_weights(policy, folder, torch.bfloat16)


def test_a_disk_that_fills_up_meanwhile_is_said_in_the_same_words(tiny_model_dir, tmp_path, monkeypatch):
    def full(tensors, file, metadata):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_modules.generators.weight_folder.save_file", full)
    with pytest.raises(OSError, match=r"weights_dir .*No space left on device"):
        write_weights(build_policy(str(tiny_model_dir)), tmp_path, torch.float32)

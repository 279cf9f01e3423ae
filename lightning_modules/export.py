"""The Hugging Face folder that a run leaves: at its end, or from a checkpoint of its."""

import shutil
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from lightning_modules.gathering import merged_weights, named_state, whole
from lightning_modules.models import ScoredCausalLM


def export_hf(
    policy: ScoredCausalLM, tokenizer: PreTrainedTokenizerBase, folder: str | Path, write: bool = True
) -> None:
    """Write a Hugging Face folder: merged safetensors, tokenizer, chat template; with LoRA also `adapter/`.

    The folder is written beside its place and then renamed, so that it is never seen half-written; an earlier one of
    that name is replaced. The live model is not changed.

    Args:
        policy: The model; where it is sharded, every rank has to take part.
        tokenizer: Its tokenizer.
        folder: Where to write.
        write: Whether this rank writes; the others only help to gather.
    """
    device = torch.device("cpu")  # one weight at a time leaves the accelerator
    weights = {name: weight.to(device) for name, weight in merged_weights(policy) if write}
    adapter = {name: whole(weight) for name, weight in named_state(policy).items() if ".lora_" in name}
    if not write:
        return
    folder = Path(folder)
    partial, previous = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "previous"))
    for leftover in (partial, previous):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    policy.causal_lm.save_pretrained(partial, state_dict=weights)
    tokenizer.save_pretrained(partial)
    if isinstance(policy.model, PeftModel):
        state = {f"base_model.model.{name}": weight for name, weight in adapter.items()}
        policy.model.save_pretrained(partial / "adapter", state_dict=state, save_embedding_layers=False)
    for file in partial.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes them for their owner alone
    if folder.exists():
        folder.rename(previous)
    partial.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)

"""Folders of a policy's weights, or adapters, for vLLM, written layer by layer: nobody ever holds the whole model."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig

from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.unshard import is_sharded, merged_on_meta, merged_weights, named_state, unshard
from lightning_modules.policy.weight_blocks import by_blocks
from lightning_modules.policy.weight_files import is_finite
from lightning_modules.ranks import failing_together


def temporary_folder(place: str | None) -> TemporaryDirectory[str]:
    """A folder for weights until they are loaded, in this place or, when None, where Python makes such folders."""
    return TemporaryDirectory(prefix="funreason-weights-", dir=place)


def write_weights(policy: ScoredCausalLM, folder: str | Path, dtype: torch.dtype, write: bool = True) -> None:
    """Write the weights as a Hugging Face folder: a file of safetensors per decoder layer.

    Adapters are merged, unless peft has them disabled. Where the policy is sharded, each weight is gathered, checked
    where it is, and let go of before the next one; a rank that writes keeps one decoder layer in the memory of its
    host. The head is not tied to the embedding, see `untied_config`.

    Args:
        policy: The model; where it is sharded, every rank has to take part.
        folder: An empty folder.
        dtype: Of the weights in the files.
        write: Whether this rank writes; the others only help to gather.

    Raises:
        OSError: If there is too little room for the weights, or the folder cannot be written.
        ValueError: If a weight is not finite in that dtype, on every rank that takes part.
    """
    folder, empty = Path(folder), merged_on_meta(policy)
    size = sum(weight.numel() for weight in empty.values()) * dtype.itemsize
    sharded = is_sharded(policy)
    with failing_together() if sharded else nullcontext():
        if write:
            check_room(folder, size)
    files: dict[str, str] = {}
    failed: OSError | None = None
    for block, weights in by_blocks(policy, empty, on_host(policy, dtype, write)):
        try:
            files |= {} if failed else save_block(weights, folder / f"{block}.safetensors", size)
        except OSError as error:  # raised once nothing is left to gather, for which the others wait
            failed = error
        del weights  # before the next ones are gathered
    with failing_together() if sharded else nullcontext():
        if failed:
            raise failed
    if write:
        index = {"metadata": {"total_size": size}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        untied_config(policy, dtype).save_pretrained(folder)


def on_host(policy: ScoredCausalLM, dtype: torch.dtype, write: bool) -> Iterator[tuple[str, Tensor]]:
    """The merged weights in the dtype of an engine, in the memory of the host of a rank that writes; none on others."""
    for name, weight in merged_weights(policy):
        weight = finite(name, weight, dtype)
        if write:
            yield name, weight.to("cpu").contiguous()
        del weight  # before the next one is gathered


def write_adapters(policy: ScoredCausalLM, folder: str | Path, dtype: torch.dtype, write: bool = True) -> None:
    """Write the adapters alone, as peft's `save_pretrained` does.

    Args:
        policy: The model; where it is sharded, every rank has to take part.
        folder: Where to; it is made.
        dtype: Of the adapters in the file.
        write: Whether this rank writes; the others only help to gather.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If an adapter is not finite in that dtype, on every rank that takes part.
    """
    folder, state = Path(folder), {}
    for name, weight in named_state(policy).items():
        if ".lora_" in name:
            state[f"base_model.model.{name}"] = finite(name, unshard(weight), dtype).cpu()
    with failing_together() if is_sharded(policy) else nullcontext():
        try:
            if write:
                policy.model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
        except (OSError, SafetensorError) as error:
            size = sum(weight.nbytes for weight in state.values())
            raise OSError(f"{no_room(folder.parent, size)} ({error})") from error


def finite(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in the dtype of an engine.

    Raises:
        ValueError: It is not finite there.
    """
    if not is_finite(weight := weight.to(dtype)):
        raise ValueError(f"The weight {name} is not finite in {dtype}: the vLLM engine was not given it.")
    return weight


def save_block(tensors: dict[str, Tensor], file: Path, size: int) -> dict[str, str]:
    """Write the weights of a layer; gives the file by their names.

    Raises:
        OSError: See `no_room`.
    """
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise OSError(f"{no_room(file.parent, size)} ({error})") from error
    return dict.fromkeys(tensors, file.name)


def untied_config(policy: ScoredCausalLM, dtype: torch.dtype) -> PreTrainedConfig:
    """The model's config with a head of its own and another dtype.

    vLLM on the CPU keeps a packed copy of the head, and leaves the old one in place where weights are tied.
    """
    config = deepcopy(policy.causal_lm.config)
    config.tie_word_embeddings, config.dtype = False, dtype
    config.architectures = [type(policy.causal_lm).__name__]
    return config


def check_room(folder: Path, size: int) -> None:
    """Raise if a folder's file system has less room than weights of so many bytes need.

    Raises:
        OSError: Naming the folder, what it has, what is needed and what to change.
    """
    if shutil.disk_usage(folder).free < size:
        raise OSError(no_room(folder, size))


def no_room(folder: Path, size: int) -> str:
    """What is wrong with a folder that weights of so many bytes do not go into, and what to change."""
    place = os.fspath(folder.parent)
    return (
        f"The weights for the vLLM engine need {size:,} bytes in {place}, which has "
        f"{shutil.disk_usage(folder).free:,} free: give the generator's weights_dir (or, where that is not set, the "
        "environment variable TMPDIR) a folder with more room; a container's /dev/shm grows with --shm-size"
    )

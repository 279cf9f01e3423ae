"""The files of a model's folder: whether its weights are all there, and what they are by their headers alone."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from datamodules.chat.model_files import PICKLE, merging, models_in, unread_in
from datamodules.system.files import is_pointer

SHARD = re.compile(r"\d+-of-\d+$")
"""How the names of files end that hold a model together."""
SAVED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""Dtypes of weights by their names in safetensors."""


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights beside its config.json.

    Raises:
        FileNotFoundError: If a file that its index names is missing, one is a link to nothing, or a run's export has
            lost its weights.
        PermissionError: If a file must not be read.
        ValueError: If the weights are an adapter's, pickled, of another format or in a folder within; or the index is
            damaged or missing.
    """
    index, files = folder / SAFE_WEIGHTS_INDEX_NAME, files_of(folder)
    _refuse_adapter(folder, whole=index.is_file() or (folder / SAFE_WEIGHTS_NAME).is_file())
    if index.is_file():
        names = _named_by(index)
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing and not (folder / SAFE_WEIGHTS_NAME).is_file():  # which is taken before the index
            raise FileNotFoundError(
                f"init_from: {folder} lacks {len(missing)} of the {len(names)} files that its {index.name} names "
                f"({missing[0]}{', …' if len(missing) > 1 else ''}): get them again"
            )
    for file in files:
        _check_readable(file)
    if index.is_file() or (folder / SAFE_WEIGHTS_NAME).is_file():
        return True
    if files:
        _refuse_name(files[0])
    _refuse_others(folder)
    run = folder.absolute().parent
    if folder.name == "hf" and any((run / name).exists() for name in ("config.yaml", "checkpoints")):
        raise FileNotFoundError(
            f"init_from: {folder} is the export of a run and has lost its weights: write it again by funreason export "
            f"--ckpt_path {run} --output_dir {folder}"
        )
    return False


def files_of(source: str | Path) -> list[Path]:
    """The safetensors of a folder; none of a hub id."""
    return sorted(Path(source).glob("*.safetensors"))


def exact_dtype(source: str | Path, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a folder's weights, if all have one that holds no number that `dtype` does not; else `dtype`."""
    kinds = {kind for _, kind in _kinds(source)}
    saved = SAVED.get(kinds.pop(), dtype) if len(kinds) == 1 else dtype
    return saved if torch.promote_types(saved, dtype) == dtype else dtype


def whole_numbers(source: str | Path, parameters: set[str]) -> Iterator[tuple[str, str]]:
    """Names and kinds of parameters that are no floating-point numbers in the files; loading would cast them."""
    yield from ((name, kind) for name, kind in _kinds(source) if name in parameters and "F" not in kind)  # of F32, BF16


def differ(source: str | Path, name: str, other: str) -> bool:
    """Whether a folder's files hold two weights under these names, and not the same one twice."""
    found = {}
    for path in files_of(source):
        with safe_open(path, framework="pt") as file:
            found |= {key: file.get_tensor(key) for key in {name, other} & set(file.keys())}
    return len(found) == 2 and not torch.equal(found[name], found[other])


def is_finite(weight: Tensor) -> bool:
    """Whether no value is NaN or infinite, which the least or the greatest one would be."""
    return not weight.is_floating_point() or not weight.numel() or bool(torch.stack(weight.aminmax()).isfinite().all())


def not_finite(source: str | Path) -> Iterator[tuple[Path, str]]:
    """The tensors of a folder's files that are not finite; names in files can differ from those in the model."""
    for path in files_of(source):
        with safe_open(path, framework="pt") as file:
            yield from ((path, name) for name in file.keys() if not is_finite(file.get_tensor(name)))


def damaged(source: str | Path) -> str | Path:
    """The file of a folder that is no whole safetensors."""
    for path in files_of(source):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError):
            return path
    return source


def _kinds(source: str | Path) -> Iterator[tuple[str, str]]:
    for path in files_of(source):
        with safe_open(path, framework="pt") as file:
            yield from ((name, file.get_slice(name).get_dtype()) for name in file.keys())


def _named_by(index: Path) -> set[str]:
    """The files that an index names."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if names and all(isinstance(name, str) for name in names):
            return names
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    raise ValueError(f"init_from: {index} is damaged, it does not say which file holds which weight: get it again")


def _refuse_adapter(folder: Path, whole: bool) -> None:
    """Raise if a folder holds an adapter, beside the weights of a whole model or without them."""
    found = sorted(file.name for file in folder.glob("adapter_*") if file.stem in ("adapter_config", "adapter_model"))
    if found and whole:
        raise ValueError(
            f"init_from: {folder} holds an adapter ({found[0]}) beside the weights of a model: merge it into them "
            "(merge_and_unload of peft) in another folder, or take its files out to train without it"
        )
    if found:
        raise ValueError(
            f"init_from: {folder} holds an adapter ({found[0]}), and the weights it sits on are elsewhere: "
            f"{merging(folder / 'adapter_config.json')}"
        )


def _check_readable(file: Path) -> None:
    if not file.exists():
        raise FileNotFoundError(f"init_from: {file} is a link to a file that is not there: get it again")
    if not os.access(file, os.R_OK):  # safetensors says of such a file that it is not there
        raise PermissionError(f"init_from: {file} must not be read by this user: have it made readable (chmod a+r)")
    if is_pointer(file):
        raise ValueError(f"init_from: {file} is a pointer of Git LFS and no weights: fetch them by git lfs pull")


def _refuse_name(file: Path) -> NoReturn:
    """Raise on a safetensors file that has a name by which no model is found, and say what it may be."""
    if file.name.startswith("consolidated"):
        advice = "such files have Mistral's own names for the weights: get those of transformers of the same model"
    elif SHARD.search(file.stem):
        advice = "get the index again, which says what lies in which"
    else:
        advice = f"if that is the whole model, name it {SAFE_WEIGHTS_NAME}"
    raise ValueError(
        f"init_from: {file.parent} holds {file.name}, and neither a {SAFE_WEIGHTS_NAME} nor a {SAFE_WEIGHTS_INDEX_NAME}"
        f": {advice}"
    )


def _refuse_others(folder: Path) -> None:
    """Raise if a folder without safetensors holds weights all the same, which random ones would stand in for."""
    inside = [place for place in models_in(folder) if files_of(place)]
    unread = unread_in(folder)
    if not inside and not unread:
        return
    if inside:
        words = f"a config.json and no weights: give one of the folders in it, as {inside[-1]}"
    elif PICKLE.fullmatch(unread[0]):
        words = (
            f"no safetensors but pickles ({unread[0]}), which are not read: load the model with transformers and save "
            "it to another folder (save_pretrained), with its tokenizer"
        )
    elif unread[0].endswith((".incomplete", ".part")):
        words = f"no safetensors, for its download was cut off ({unread[0]}): get them again"
    else:
        words = (
            f"no safetensors but {unread[0]}, which is not read: give a folder with the safetensors of the model, or "
            "with its config.json alone to start from random weights"
        )
    raise ValueError(f"init_from: {folder} holds {words}")

"""The files of a model's folder: whether its weights are all there, and what they are by their headers alone."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

SAVED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""Dtypes of weights by their names in safetensors."""
PICKLES = ("*.bin", "*.pt", "*.pth")


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights beside its config.json.

    Raises:
        FileNotFoundError: If a file that its index names is missing.
        ValueError: If the weights are an adapter's or pickled, or the index is damaged.
    """
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"init_from: {folder} holds an adapter (adapter_config.json), and the weights it sits on are elsewhere: "
            "merge both into one folder first"
        )
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        names = _named_by(index)
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing and not (folder / SAFE_WEIGHTS_NAME).is_file():  # which is taken before the index
            raise FileNotFoundError(
                f"init_from: {folder} lacks {len(missing)} of the {len(names)} files that its {index.name} names "
                f"({missing[0]}{', …' if len(missing) > 1 else ''}): get them again"
            )
    if index.is_file() or files_of(folder):
        return True
    if pickles := sorted(path.name for pattern in PICKLES for path in folder.glob(pattern)):
        raise ValueError(
            f"init_from: {folder} holds no safetensors but pickles ({pickles[0]}), which are not read: load the model "
            "with transformers and save it to another folder (save_pretrained), with its tokenizer"
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

"""What a folder holds in the place of a model: adapters, models in folders within it, weights of other formats."""

import json
import re
from pathlib import Path

from datamodules.system.files import is_pointer

PICKLE = re.compile(r"(?!openvino|training_args|optimizer|scheduler|scaler|rng_state)[^/]*\.(bin|pt|pth)")
"""Names of pickled weights, and not of what a Trainer saves beside them."""
UNREAD = re.compile(
    r".*\.(bin|pt|pth|ckpt|gguf|onnx|h5|msgpack|distcp|incomplete|part)|weights\.npz|pytorch_model\.bin\.index\.json"
)
"""Names of weights in formats that are not read, and of what is left where a download or a training was cut off."""
DOWNLOAD = ".cache/huggingface/download"  # where `hf download --local-dir` has files that are not whole yet


def models_in(folder: Path) -> list[Path]:
    """The models right below a folder, as a Trainer's `checkpoint-500`; the one of the greatest number comes last.

    Those with safetensors, or, if none has any, those with a config.json. A model of the hub's cache lies one deeper.
    """
    files = [*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]
    found = sorted((file.parent for file in files), key=_by_number)
    return [place for place in found if any(place.glob("*.safetensors"))] or found


def unread_in(folder: Path) -> list[str]:
    """Weights that are not read, in a folder or right below it, by their paths in it."""
    files = [*folder.glob("*"), *folder.glob("*/*"), *folder.glob(f"{DOWNLOAD}/**/*.incomplete")]
    names = [str(file.relative_to(folder)) for file in files if UNREAD.fullmatch(file.name) and file.is_file()]
    return sorted(names, key=lambda name: (name.count("/"), not PICKLE.fullmatch(name), name))


def adapter_in(folder: Path) -> Path | None:
    """The config of the adapter in a folder or, in case of several, of the last one right below it."""
    own = folder / "adapter_config.json"
    below = sorted(folder.glob("*/adapter_config.json"), key=lambda file: _by_number(file.parent))
    return own if own.is_file() else below[-1] if below else None


def check_settings(file: Path) -> None:
    """Refuse a config.json that holds no settings, of which transformers would say that the tokenizer is damaged.

    Args:
        file: The config.json.

    Raises:
        ValueError: Naming the file.
    """
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        fault = "is a pointer of Git LFS: fetch it by git lfs pull" if is_pointer(file) else f"is no JSON ({error})"
        raise ValueError(f"init_from: {file} {fault}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"init_from: {file} holds no settings, in braces: get it again")


def merging(adapter: Path) -> str:
    """What to do with an adapter.

    Args:
        adapter: Its adapter_config.json.
    """
    try:
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    named = f"{base}, " if base else ""
    return (
        f"merge it into the model that it sits on ({named}by merge_and_unload of peft), save that with its tokenizer, "
        "and give the folder"
    )


def _by_number(folder: Path) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", folder.name)]

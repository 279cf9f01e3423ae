"""Loading weights: those missing, unexpected, of another shape or not finite are refused by name."""

import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from datamodules.chat.tokenizer import resolve_model_folder

log = logging.getLogger(__name__)

SHOWN = 3  # names in an error
SAVED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""Dtypes of weights by their names in safetensors."""
BESIDE_THE_TEXT = re.compile(
    r"(^|\.)(vision_tower|vision_model|visual|vision_embed\w*|audio_tower|multi_modal_projector|mtp\w*|v_head)\."
    r"|(inv_freq|masked_bias)$"
)
"""What whole checkpoints hold and a language model rightly leaves, beside what its class in transformers names: what
sees, hears, predicts further tokens or estimates a value, and tables that are computed nowadays."""
CONVERTED = re.compile(r"^(.+?) +\| +\S*CONVERSION", re.MULTILINE)
"""A weight in transformers' report that it could not make of several of a file, such as those of the experts."""
ODD_CONFIG = (
    *(RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError),
    StrictDataclassError,
)
"""What transformers meets in a config with values that it does not expect, beside the errors that it raises itself."""


def load_weights(init_from: str, empty: bool, in_files: bool = False, **options: Any) -> PreTrainedModel:
    """Load a causal LM, or make a random one where a folder holds a config.json and no weights.

    Args:
        init_from: Run folder (its `hf/`), Hugging Face folder, or hub id.
        empty: Read the config alone; the weights are whatever the caller's context makes of them.
        in_files: Leave weights where they lie, in the dtype that they have there if that is exact: they take no memory
            of this process then, only of the system's cache of files.
        **options: Of `from_pretrained`, among them `dtype` and `attn_implementation`.

    Returns:
        The model; every weight of it comes from the folder, or none does.

    Raises:
        FileNotFoundError: If there is no such folder, no config.json in it, no such model on the hub, or a shard is
            missing.
        ValueError: If the weights are no whole safetensors, do not fit the config, are not finite, are quantized or are
            an adapter's, or if the architecture is unknown, no causal one or lacks a package or the attention kernel.
    """
    source, report = resolve_model_folder(init_from), []
    place = source
    random = Path(source).is_dir() and not _has_weights(Path(source))
    try:
        if random or empty:
            if not empty:
                log.warning("%s holds a config.json and no weights: starting from random weights.", source)
            return _of_config(source, options)
        with _kept_off_screen(report):
            place = _folder_of(source)
            loading = options | ({"dtype": exact_dtype(place, options["dtype"])} if in_files else {})
            loading |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # so that they are named below
            model, info = AutoModelForCausalLM.from_pretrained(
                source, use_safetensors=True, trust_remote_code=False, **loading
            )
    except OSError as error:
        raise FileNotFoundError(f"init_from: {source} could not be loaded: {str(error).splitlines()[0]}") from error
    except SafetensorError as error:
        raise ValueError(f"init_from: {_damaged(place)} is damaged ({error}): get it again") from error
    except (ValueError, ImportError, *ODD_CONFIG) as error:  # of transformers, which lists all it knows
        if mixed := CONVERTED.findall("\n".join(report)):
            raise ValueError(
                f"init_from: the weights of {source} do not fit its config.json: not all that {_some(mixed)} is made "
                "of is there and of its shape"
            ) from error
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        if isinstance(error, ODD_CONFIG):
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if method := _quantization(place):
            reason = f"quantization_config in its config.json ({method}): {reason}"
        elif (kernel := options["attn_implementation"]) and isinstance(error, ValueError | ImportError):
            reason = f"model.attn_implementation {kernel}: {reason}"  # asked for by name: the default is never refused
        raise ValueError(f"init_from: {source} could not be loaded: {reason}") from error
    check_names(source, info)
    check_values(place, model)
    return model if loading.get("dtype") == options.get("dtype") else _computing_in(source, model, options)


def _computing_in(source: str, model: PreTrainedModel, options: dict[str, Any]) -> PreTrainedModel:
    """A model of the dtype in `options` but for its parameters, which are those of the one given."""
    with init_empty_weights(include_buffers=False):  # which are computed in the dtype of the run
        whole = _of_config(source, options)
    own, parameters = whole.state_dict(), {name for name, _ in model.named_parameters(remove_duplicate=False)}
    state = {n: w if n in parameters else w.to(own[n].dtype) for n, w in model.state_dict().items()}
    whole.load_state_dict(state, assign=True)
    whole.tie_weights()
    return whole


def _of_config(source: str, options: dict[str, Any]) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)


def _folder_of(source: str) -> str:
    """The folder that holds the weights: of a hub id that of the cache, into which transformers' files are fetched.

    No others are: hubs hold the same weights in further formats. Where a hub has no safetensors it is the id.
    """
    if Path(source).is_dir():
        return source
    found = cached_file(source, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    if found is None:
        found = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
        if found is not None:
            get_checkpoint_shard_files(source, found)
    return source if found is None else str(Path(found).parent)


def exact_dtype(source: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of a folder's weights, if all have one that holds no number that `dtype` does not; else `dtype`."""
    kinds = set()
    for path in _files(source):
        with safe_open(path, framework="pt") as file:
            kinds |= {file.get_slice(name).get_dtype() for name in file.keys()}
    saved = SAVED.get(kinds.pop(), dtype) if len(kinds) == 1 else dtype
    return saved if torch.promote_types(saved, dtype) == dtype else dtype


def check_names(source: str, info: dict[str, Any]) -> None:
    """Raise if weights are missing, unknown or of another shape than the config's.

    Args:
        source: The folder or hub id they were loaded from.
        info: What transformers says of the loading; tied weights, and what a class is known to do without, are no
            longer in it.

    Raises:
        ValueError: If names are missing or left over, or a shape is another.
    """
    shapes = (f"{name} is {list(here)} and must be {list(there)}" for name, here, there in info["mismatched_keys"])
    faults = {
        "missing": info["missing_keys"],
        "not of this model": (name for name in info["unexpected_keys"] if not BESIDE_THE_TEXT.search(name)),
        "of another shape": shapes,
    }
    told = [f"{len(names)} {word} ({_some(names)})" for word, found in faults.items() if (names := sorted(found))]
    if told:
        raise ValueError(
            f"init_from: the weights of {source} do not fit its config.json: {', '.join(told)}; give the folder of one "
            "whole model, or a config.json alone to start from random weights"
        )


@torch.no_grad()
def check_values(source: str, model: PreTrainedModel) -> None:
    """Raise if a weight is not finite, at the cost of reading each once, or no floating-point number.

    Raises:
        ValueError: Naming the file and the tensor.
    """
    kinds = {name: weight.dtype for name, weight in model.named_parameters() if not weight.is_floating_point()}
    for name, kind in [*kinds.items(), *_whole_numbers(source, {name for name, _ in model.named_parameters()})]:
        raise ValueError(
            f"init_from: {source} holds quantized weights ({name} is {kind}), which nothing here can train or export: "
            "give the model they were made from"
        )
    for name, weight in model.state_dict().items():
        if not is_finite(weight):
            file, tensor = next(_not_finite(source), (source, name))
            raise ValueError(
                f"init_from: {file} holds {tensor}, in which not all values are finite in {weight.dtype}: get it "
                "again, or give a model from before its training went wrong"
            )


def is_finite(weight: Tensor) -> bool:
    """Whether no value is NaN or infinite, which the least or the greatest one would be."""
    return not weight.is_floating_point() or not weight.numel() or bool(torch.stack(weight.aminmax()).isfinite().all())


def _whole_numbers(source: str, parameters: set[str]) -> Iterator[tuple[str, str]]:
    """Names and kinds of parameters that are no floating-point numbers in the files; loading would cast them."""
    for path in _files(source):
        with safe_open(path, framework="pt") as file:
            kinds = ((name, file.get_slice(name).get_dtype()) for name in file.keys() if name in parameters)
            yield from ((name, kind) for name, kind in kinds if "F" not in kind)  # of F32, BF16, F8_E4M3


def _not_finite(source: str) -> Iterator[tuple[Path, str]]:
    """The tensors of a folder's files that are not finite; names in files can differ from those in the model."""
    for path in _files(source):
        with safe_open(path, framework="pt") as file:
            yield from ((path, name) for name in file.keys() if not is_finite(file.get_tensor(name)))


def _damaged(source: str) -> str | Path:
    """The file of a folder that is no whole safetensors."""
    for path in _files(source):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError):
            return path
    return source


def _files(source: str) -> list[Path]:
    return sorted(Path(source).glob("*.safetensors"))  # none of a hub id without safetensors


def _has_weights(folder: Path) -> bool:
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"init_from: {folder} holds an adapter (adapter_config.json), and the weights it sits on are elsewhere: "
            "merge both into one folder first"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not _is_index(index):
        raise ValueError(f"init_from: {index} is damaged, it does not say which file holds which weight: get it again")
    if index.is_file() or _files(str(folder)):
        return True
    if pickles := sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)):
        raise ValueError(
            f"init_from: {folder} holds pickled weights ({pickles[0]}); convert them to safetensors first."
        )
    return False


def _is_index(path: Path) -> bool:
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return bool(files) and all(isinstance(name, str) for name in files.values())
    except (ValueError, LookupError, TypeError, AttributeError):
        return False


def _quantization(source: str) -> str:
    """What a folder's config.json says that its weights were quantized with; "" if they were not."""
    try:
        config = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    found = config.get("quantization_config") if isinstance(config, dict) else None
    return "" if found is None else str(found.get("quant_method")) if isinstance(found, dict) else repr(found)


def _some(names: Iterable[str]) -> str:
    first, rest = (names := list(names))[:SHOWN], len(names) - SHOWN
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")


@contextmanager
def _kept_off_screen(report: list[str]) -> Iterator[None]:
    """Collect the table in which transformers lists what is said here in a sentence."""

    def is_other(record: logging.LogRecord) -> bool:
        if table := "LOAD REPORT" in record.getMessage():
            report.append(record.getMessage())
        return not table

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)

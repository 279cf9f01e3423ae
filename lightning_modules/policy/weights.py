"""Loading the weights of a model, or making random ones: what cannot be loaded is refused in one sentence."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from datamodules.chat.tokenizer import resolve_model_folder
from datamodules.system.hub import refuse_unreachable
from lightning_modules.policy.weight_checks import (
    GIVE_ANOTHER,
    check_causal,
    check_head,
    check_kinds,
    check_names,
    check_ties,
    check_values,
    some,
)
from lightning_modules.policy.weight_files import damaged, exact_dtype, files_of, has_weights

log = logging.getLogger(__name__)

CONVERTED = re.compile(r"^(.+?) +\| +\S*CONVERSION", re.MULTILINE)
"""A weight in transformers' report that it could not make of several of a file, such as those of the experts."""
NO_CLASS = re.compile(r"Unrecognized configuration class <class '[\w.]*?(\w+)'>")
"""What transformers says of a family without a causal language model."""
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
    source = resolve_model_folder(init_from)
    refuse_by_config(source, options)
    random = Path(source).is_dir() and not has_weights(Path(source))
    if random and not empty:
        log.warning("%s holds a config.json and no weights: starting from random weights.", source)
    if random or empty:
        with _in_a_sentence(source, options):
            return _of_config(source, options)
    with _in_a_sentence(source, options):
        place = weight_folder(source)
        loading = options | ({"dtype": exact_dtype(place, options["dtype"])} if in_files else {})
    model = _fitting(source, place, loading)
    check_values(place, model)
    check_ties(source, model)
    return model if loading.get("dtype") == options.get("dtype") else _computing_in(source, model, options)


def check_model(init_from: str, attn_implementation: str = "sdpa") -> None:
    """Refuse a model that `load_weights` would, as far as config.json and headers of files tell; no weight is read.

    Of a hub id the config alone is looked at, and nothing else is fetched. Of files larger than this machine's memory,
    which cannot be mapped to read their headers, it is seen that they are there.

    Args:
        init_from: See `load_weights`.
        attn_implementation: Attention kernel that the model is to have.

    Raises:
        FileNotFoundError: See `load_weights`.
        ValueError: See `load_weights`.
    """
    source = resolve_model_folder(init_from)
    if not Path(source).is_dir():
        refuse_unreachable(source)
    options = {"device_map": "meta", "attn_implementation": kernel_of(attn_implementation)}
    refuse_by_config(source, options)
    if not (Path(source).is_dir() and has_weights(Path(source))):
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if all(file.stat().st_size < memory for file in files_of(source)):
        check_ties(source, _fitting(source, source, options))


def kernel_of(attn_implementation: str) -> str | None:
    """An attention kernel as transformers is asked for it: a name is a demand, None is sdpa where it can be."""
    return None if attn_implementation == "sdpa" else attn_implementation


def refuse_by_config(source: str, options: dict[str, Any]) -> None:
    """Refuse a model whose config.json says that its weights are quantized, or are an encoder's and a decoder's.

    What transformers makes of quantized weights depends on the machine: those of some methods it turns into floats
    where there is no GPU, and else leaves them as they are. Of an encoder and a decoder it would take the latter alone.

    Raises:
        FileNotFoundError: There is no config.json.
        ValueError: Naming the method or the key; or the config.json cannot be read.
    """
    with _in_a_sentence(source, options):
        config = PreTrainedConfig.get_config_dict(source)[0]
        found, two_parts = config.get("quantization_config"), config.get("is_encoder_decoder")
    if found is not None:
        method = found.get("quant_method") if isinstance(found, dict) else repr(found)
        raise ValueError(
            f"init_from: {source} holds quantized weights (quantization_config {method} in its config.json), which "
            "nothing here can train or export: give the model they were made from"
        )
    if two_parts:
        raise ValueError(
            f"init_from: {source} is no causal language model, for its decoder goes on from what an encoder reads "
            f"(is_encoder_decoder true in its config.json): {GIVE_ANOTHER}"
        )


def _fitting(source: str, place: str, options: dict[str, Any]) -> PreTrainedModel:
    """The model of a folder or hub id, once all names, shapes and kinds of its weights are seen to fit its config."""
    with _in_a_sentence(source, options, place):
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            config=_config(source),  # else its own kernel would win
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are named below
            **options,
        )
    check_causal(source, model)
    check_head(source, model)
    check_names(source, info)
    check_kinds(place, model)
    return model


@contextmanager
def _in_a_sentence(source: str, options: dict[str, Any], place: str | None = None) -> Iterator[None]:
    """Raise what transformers ends in, and what it lists in a table, as one sentence."""
    report: list[str] = []
    try:
        with _kept_off_screen(report):
            yield
    except OSError as error:
        fault = f"{source} could not be loaded"
        if not Path(source).is_dir():
            fault = (
                f"there is no folder {source} here, and the hub gives no such model (a relative path begins where the "
                "command runs)"
            )
        raise FileNotFoundError(f"init_from: {fault}: {str(error).splitlines()[0]}") from error
    except SafetensorError as error:
        raise ValueError(f"init_from: {damaged(place or source)} is damaged ({error}): get it again") from error
    except (ValueError, ImportError, *ODD_CONFIG) as error:  # of transformers, which lists all it knows
        if mixed := CONVERTED.findall("\n".join(report)):
            raise ValueError(
                f"init_from: the weights of {source} do not fit its config.json: not all that {some(mixed)} is made "
                "of is there and of its shape"
            ) from error
        if found := NO_CLASS.match(str(error)):
            raise ValueError(
                f"init_from: {source} is no causal language model: transformers has none for its {found[1]}; "
                f"{GIVE_ANOTHER}"
            ) from error
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"init_from: {source} needs code of its own (auto_map in its config.json), and none but transformers' "
                f"is run here: {GIVE_ANOTHER} and that transformers knows"
            ) from error
        reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        if isinstance(error, ODD_CONFIG):
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            reason = f"its config.json, it seems, holds what its family does not expect ({what})"
        elif kernel := options["attn_implementation"]:
            reason = f"model.attn_implementation {kernel}: {reason}"  # asked for by name: the default is never refused
        raise ValueError(f"init_from: {source} could not be loaded: {reason}") from error


def _computing_in(source: str, model: PreTrainedModel, options: dict[str, Any]) -> PreTrainedModel:
    """A model of the dtype in `options` but for its parameters, which are those of the one given."""
    with init_empty_weights(include_buffers=False):  # which are computed in the dtype of the run
        fresh = _of_config(source, options)
    own, parameters = fresh.state_dict(), {name for name, _ in model.named_parameters(remove_duplicate=False)}
    state = {n: w if n in parameters else w.to(own[n].dtype) for n, w in model.state_dict().items()}
    fresh.load_state_dict(state, assign=True)
    fresh.tie_weights()
    return fresh


def _of_config(source: str, options: dict[str, Any]) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(_config(source), trust_remote_code=False, **options)


def _config(source: str) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(source, trust_remote_code=False)


def weight_folder(source: str) -> str:
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

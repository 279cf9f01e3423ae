"""Checks of loaded weights: those missing, unknown, of another shape or kind, or not finite are refused by name."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from lightning_modules.policy.weight_files import differ, is_finite, not_finite, whole_numbers

SHOWN = 3  # names in an error
GIVE_ANOTHER = "give a model that writes text"
BESIDE_THE_TEXT = re.compile(
    r"(^|\.)(vision_tower|vision_model|visual|vision_embed\w*|audio_tower|multi_modal_projector|mtp\w*|v_head)\."
    r"|(inv_freq|masked_bias)$"
)
"""What whole checkpoints hold and a language model rightly leaves, beside what its class in transformers names: what
sees, hears, predicts further tokens or estimates a value, and tables that are computed nowadays."""


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
    bad = [f"{len(names)} {word} ({some(names)})" for word, found in faults.items() if (names := sorted(found))]
    if bad:
        raise ValueError(
            f"init_from: the weights of {source} do not fit its config.json: {', '.join(bad)}; give the folder of one "
            "whole model, or a config.json alone to start from random weights"
        )


def check_causal(source: str, model: PreTrainedModel) -> None:
    """Raise if each token of a model sees those after it, as far as its config tells; the probe tries it.

    Raises:
        ValueError: It is an encoder, of those that embed texts or fill in masked words, or reads in any order.
    """
    text = model.config.get_text_config()
    signs = {
        "is_causal": getattr(text, "is_causal", None) is False,
        "causal": getattr(text, "causal", None) is False,
        "attn_type": getattr(text, "attn_type", None) == "bi",
        "use_bidirectional_attention": getattr(text, "use_bidirectional_attention", None) in (True, "all"),
        "is_decoder": any(
            name.endswith("attention.self") and getattr(module, "is_causal", None) is False
            for name, module in model.named_modules()
        ),
    }
    for key, found in signs.items():
        if found:
            raise ValueError(
                f"init_from: {source} is no causal language model, for each of its tokens sees those after it ({key} "
                f"{getattr(text, key)} in its config.json): {GIVE_ANOTHER}"
            )


def check_head(source: str, model: PreTrainedModel) -> None:
    """Raise if layers of the head's own stand between the decoder and the logits, as in BERT's kind; see `policy.head`.

    Raises:
        ValueError: Naming the module that holds them.
    """
    head = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is head), "")
    place = name.rpartition(".")[0]
    if place and any(part.dim() > 1 and part is not head.weight for part in model.get_submodule(place).parameters()):
        raise ValueError(
            f"init_from: {source} is no model of a kind that is trained here: between its decoder and its logits are "
            f"further layers ({place} of {type(model).__name__}): {GIVE_ANOTHER} and ends in one matrix"
        )


def check_ties(source: str, model: PreTrainedModel) -> None:
    """Raise if the config says that two weights are one, and the files hold two.

    They would stay two where weights are loaded, and be one where they are read in shards, exported or served.

    Args:
        source: The folder or hub id they were loaded from.
        model: What was loaded; weights on the meta device are compared in the files.

    Raises:
        ValueError: Naming both.
    """
    for name, other in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        one, two = model.get_parameter(name), model.get_parameter(other)
        if differ(source, name, other) if one.device.type == "meta" else one is not two:
            raise ValueError(
                f"init_from: {source} holds a {name} that is not {other}, and its config.json says that they are one "
                "(tie_word_embeddings true): set it to false there, or take the first out of the safetensors"
            )


def check_kinds(source: str, model: PreTrainedModel) -> None:
    """Raise if a weight is no floating-point number, in the model or in the files.

    Raises:
        ValueError: Naming the tensor.
    """
    kinds = {name: weight.dtype for name, weight in model.named_parameters() if not weight.is_floating_point()}
    for name, kind in [*kinds.items(), *whole_numbers(source, {name for name, _ in model.named_parameters()})]:
        raise ValueError(
            f"init_from: {source} holds quantized weights ({name} is {kind}), which nothing here can train or export: "
            "give the model they were made from"
        )


@torch.no_grad()
def check_values(source: str, model: PreTrainedModel) -> None:
    """Raise if a weight is not finite, at the cost of reading each once.

    Raises:
        ValueError: Naming the file and the tensor.
    """
    for name, weight in model.state_dict().items():
        if not is_finite(weight):
            file, tensor = next(not_finite(source), (source, name))
            raise ValueError(
                f"init_from: {file} holds {tensor}, in which not all values are finite in {weight.dtype}: get it "
                "again, or give a model from before its training went wrong"
            )


def some(names: Iterable[str]) -> str:
    """The first of some names, and how many more there are."""
    first, rest = (names := list(names))[:SHOWN], len(names) - SHOWN
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")

"""The run of a checkpoint, identified: by the model, tokenizer, form and initial weights that it was trained with."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate
from transformers import PreTrainedTokenizerFast

from datamodules.chat.form import ChatForm

Shapes = Mapping[str, tuple[int, ...]]
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their size in bytes


def identity(
    init_from: str, tokenizer: PreTrainedTokenizerFast, form: ChatForm | None, derived: str | None
) -> dict[str, Any]:
    """Entries of a checkpoint that say which run it belongs to; `check_run` compares them with those of another run.

    Args:
        init_from: Where the run's weights came from.
        tokenizer: The run's.
        form: How its data put requests and want answers; None for data without one.
        derived: The `fingerprint` of the weights that are left out, because they are as `init_from` has them; None for
            a run that only reads a checkpoint and needs none of them.
    """
    return {
        "tokenizer": fingerprint_of(tokenizer),
        "form": form.recorded() if form else None,
        "derived": {"init_from": init_from, "fingerprint": derived},
    }


def check_run(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise if a checkpoint's run had other initial weights, another tokenizer or another form.

    Args:
        theirs: The checkpoint, with the `identity` of the run that wrote it.
        ours: The `identity` of this run.

    Raises:
        ValueError: Saying what differs.
    """
    if "derived" not in theirs:
        raise ValueError(
            "The checkpoint does not say which weights its run started from: an earlier version has written it, "
            "from which this one cannot go on; give the hf/ folder of its run to model.init_from."
        )
    init_from, derived = ours["derived"]["init_from"], ours["derived"]["fingerprint"]
    if derived is not None and theirs["derived"]["fingerprint"] != derived:
        raise ValueError(
            f"model.init_from {init_from} does not hold the weights that the checkpoint's run started from "
            f"({theirs['derived']['init_from']}), which it needs beside those that it learnt: give those."
        )
    if theirs["tokenizer"] != ours["tokenizer"]:
        raise ValueError(
            f"The tokenizer of model.init_from {init_from} is not the one that the checkpoint's run had "
            "(other vocabulary or chat template): resume with that one."
        )
    if ours["form"] and (kept := theirs.get("form")):
        for name, value in ours["form"].items():
            if kept[name] != value:
                raise ValueError(
                    f"data.{name} is {value!r} in this run and was {kept[name]!r} in the one that wrote the "
                    "checkpoint: set it to that (true is require, false none)."
                )


def check_settings(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise if a run's settings are not those that the optimizer and the adapters of a checkpoint have learnt with.

    Args:
        theirs: Those of the run that wrote the checkpoint, by their names in `model`; of earlier versions none.
        ours: Those of this run.

    Raises:
        ValueError: Naming the first that differs.
    """
    for name, value in ours.items():
        if name in theirs and theirs[name] != value:
            raise ValueError(
                f"model.{name} is {value} in this run and was {theirs[name]} in the one that wrote the checkpoint, "
                "which goes on with that: set it to that, or, to change it, start a run from the weights, "
                "with --model.init_from RUN in place of --ckpt_path."
            )


def check_same_model(theirs: Shapes, ours: Shapes, init_from: str) -> None:
    """Raise if a checkpoint's weights have other names or shapes than the model's.

    Args:
        theirs: Names and shapes in the checkpoint.
        ours: Names and shapes in this run.
        init_from: Where this run's model comes from.

    Raises:
        ValueError: If a weight is missing, unknown or of another shape.
    """
    for name in [*ours, *theirs]:
        if theirs.get(name) != ours.get(name):
            here, there = (shapes.get(name, "absent") for shapes in (ours, theirs))
            raise ValueError(
                f"The checkpoint holds another model than model.init_from {init_from}: {name} is {there} there and "
                f"{here} here; resume with the model, LoRA settings and module of the run that wrote it."
            )


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes and weights, the same on any device and however sharded; a collective over shards."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in weights.items():
        digest.update(f"{name} {tuple(weight.shape)} {_sum_of_words(weight)}".encode())
    return digest.hexdigest()


def _sum_of_words(weight: Tensor) -> int:
    """The bits of a tensor added up as integers; of shards, the sum over all of them, none of which is gathered."""
    own = weight.to_local() if isinstance(weight, DTensor) else weight
    total = own.detach().contiguous().view(INTEGERS[own.element_size()]).sum(dtype=torch.int64)
    if isinstance(weight, DTensor):
        parts = [Partial() if placement.is_shard() else Replicate() for placement in weight.placements]
        total = DTensor.from_local(total, weight.device_mesh, parts).full_tensor()
    return int(total)


def fingerprint_of(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hash of everything in a tokenizer that turns text into ids."""
    text = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

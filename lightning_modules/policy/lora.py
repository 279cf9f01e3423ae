"""Low-rank adapters: their settings, and which layers of a model they are put on."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from datamodules.system.arguments import declared
from lightning_modules.policy.head import decoder_of

if TYPE_CHECKING:
    from peft import PeftModel

PAST_ADAPTERS = ("dt_proj", "out_proj")
OF_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


@declared
@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (arXiv 2106.09685) on top of frozen weights.

    Attributes:
        r: Rank.
        alpha: Scale; the adapter's product is multiplied by alpha / r.
        dropout: Probability of dropping an adapter input in training.
        target_modules: Names of the linear layers to adapt; "all-linear" is all of the decoder but, where it has
            them, the MLPs of a mixture-of-experts and two layers of Mamba.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        """Refuse settings that peft would take, or refuse in words of its own."""
        if self.r < 1 or not 0 < self.alpha < math.inf or not 0 <= self.dropout < 1 or not self.target_modules:
            raise ValueError(
                "model.lora: r must be at least 1, alpha greater than 0, dropout from 0 to below 1 and target_modules "
                f"not empty, got {self.r}, {self.alpha}, {self.dropout} and {self.target_modules!r}."
            )


def add_adapters(model: PreTrainedModel, lora: LoRA) -> "PeftModel":
    """Freeze a model and put adapters on its layers, in place.

    Raises:
        ValueError: If there is no such layer, or one is not a linear layer.
    """
    from peft import LoraConfig, TaskType, get_peft_model  # here: other runs need none of it

    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_linear_layers(model) if lora.target_modules == "all-linear" else lora.target_modules,
        task_type=TaskType.CAUSAL_LM,
    )
    try:
        with _in_the_dtype_of_the_run(model):
            adapted = get_peft_model(model, config)
    except ValueError as error:  # of peft: it finds no such layer, or knows this family not to take an adapter
        advice = ""
        if isinstance(lora.target_modules, str):  # of which peft makes a pattern for whole names
            advice = f" A single text is a pattern of whole names: for layers called so give [{lora.target_modules}]."
        raise ValueError(f"model.lora.target_modules: {' '.join(str(error).split())}{advice}") from error
    _check_adapters(adapted)
    return adapted


@contextmanager
def _in_the_dtype_of_the_run(model: PreTrainedModel) -> Iterator[None]:
    """Context without the weights that lie in files in a narrower dtype, to which peft would round what it draws."""
    wide = {p: torch.promote_types(p.dtype, model.config.dtype) for p in model.parameters()}
    narrow = {p: p.data for p, dtype in wide.items() if dtype != p.dtype}
    for p, data in narrow.items():
        p.data = torch.zeros((), dtype=wide[p], device=data.device).expand(data.shape)  # of one number's memory
    try:
        yield
    finally:
        for p, data in narrow.items():
            p.data = data


def _check_adapters(model: "PeftModel") -> None:
    from peft.tuners import lora as peft_lora

    for name, module in model.named_modules():
        if isinstance(module, peft_lora.LoraLayer) and type(module) is not peft_lora.Linear:
            raise ValueError(
                f"model.lora.target_modules: {name.removeprefix('base_model.model.')} is not a linear layer "
                f"({type(module.get_base_layer()).__name__}), and an adapter on it could not be exported: name linear "
                "layers alone, such as [q_proj, k_proj, v_proj, o_proj]."
            )


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """What adapters of "all-linear" sit on: linear layers that are asked for their products and for nothing else.

    The head is not one, nor is a layer that no text reaches, as of a vision tower. Mamba multiplies by two of its
    weights itself, past an adapter. And in models whose experts are one tensor peft takes the names of an MLP's layers
    for those of experts, whose adapters could not be merged.
    """
    modules, of_text = dict(model.named_modules()), set(decoder_of(model).modules())
    mamba = {name for name, module in modules.items() if hasattr(module, "A_log") and hasattr(module, "D")}
    experts = any(p.ndim == 3 and ".experts." in name for name, p in model.named_parameters())
    names = []
    for name, module in modules.items():
        block, _, leaf = name.rpartition(".")
        passed_by = (block in mamba and leaf in PAST_ADAPTERS) or (experts and leaf in OF_EXPERTS)
        if type(module) in (nn.Linear, Conv1D) and module in of_text and not passed_by:
            names.append(name)
    return names

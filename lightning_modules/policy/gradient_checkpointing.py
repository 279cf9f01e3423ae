"""Gradient checkpointing: which decoder layers compute their activations again, and where their inputs wait."""

from dataclasses import dataclass
from inspect import signature

import transformers
from transformers import PreTrainedModel

from datamodules.system.arguments import declared


@declared
@dataclass(frozen=True)
class GradientCheckpointing:
    """Decoder layers keep what they were given, and compute their activations again in the backward pass.

    Attributes:
        every_n_layers: Of so many layers in a row the first one does; the others keep their activations, for more
            memory and less time.
        offload: Keep what the layers were given in the memory of the host: less on the GPU, for copies there and back.
    """

    every_n_layers: int = 1
    offload: bool = False

    def __post_init__(self) -> None:
        """Refuse settings without a meaning."""
        if self.every_n_layers < 1:
            raise ValueError(
                f"model.gradient_checkpointing: every_n_layers must be at least 1, got {self.every_n_layers}."
            )


def enable(model: PreTrainedModel, settings: GradientCheckpointing) -> None:
    """Let the layers of a model compute their activations again.

    Raises:
        ValueError: The family computes nothing again, or this version of transformers offloads nothing.
    """
    if not model.supports_gradient_checkpointing:
        raise ValueError(
            f"model.gradient_checkpointing: {type(model).__name__} (model_type {model.config.model_type}) of "
            "transformers computes no layer again: set it to false, or give another model."
        )
    if settings.offload and "offload" not in signature(model.gradient_checkpointing_enable).parameters:
        raise ValueError(
            f"model.gradient_checkpointing: transformers {transformers.__version__} knows no offload: install 5.17 or "
            "newer, or leave it out."
        )
    offload = {"offload": True} if settings.offload else {}
    kwargs = {"use_reentrant": False}
    model.gradient_checkpointing_enable(kwargs, every_n_layers=settings.every_n_layers, **offload)


def resolve_gradient_checkpointing(given: bool | GradientCheckpointing) -> GradientCheckpointing | None:
    """The settings that `model.gradient_checkpointing` stands for; None where nothing is computed again."""
    return given if isinstance(given, GradientCheckpointing) else GradientCheckpointing() if given else None

"""From hidden states to logits in each family of models: where the decoder ends, and what scales or caps the logits."""

from inspect import signature
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Names of a soft cap in configs: Gemma, NanoChat and VaultGemma; RecurrentGemma; xLSTM."""
FACTORS = ("logit_scale", "lm_head_multiplier")
"""Names of what multiplies the logits: Cohere; Falcon-H1."""
DIVISORS = ("logits_scaling",)
"""Names of what divides them: Granite; MiniCPM3, which divides the hidden states instead."""
MULTIPLIED_ALL_THE_SAME = ("hyperclovax",)
"""Families that multiply by what is called a divisor elsewhere."""


class AfterHead(NamedTuple):
    """Operations of a family on logits after the head's matrix and bias: softcap(scale * logits).

    Attributes:
        scale: Multiplies them.
        softcap: c in c * tanh(logits / c), which comes after the scale; None caps nothing.
    """

    scale: float = 1.0
    softcap: float | None = None


def after_head(config: PreTrainedConfig) -> AfterHead:
    """Scale and soft cap of the logits, from a model's config.

    Families differ in which names they have and heed. Whether what was read here is what the model does is for the
    probe to see, which holds it against the model's own logits.
    """
    text = config.get_text_config()
    scale = 1.0
    for name in (*FACTORS, *DIVISORS):
        value = getattr(text, name, None)
        if isinstance(value, int | float):
            multiplies = name in FACTORS or text.model_type in MULTIPLIED_ALL_THE_SAME
            scale = scale * value if multiplies else scale / value
    caps = [value for name in SOFT_CAPS if (value := getattr(text, name, None))]
    return AfterHead(scale, caps[0] if caps else None)


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The decoder of a causal language model, which gives the last hidden states: all but its head.

    `get_decoder` goes by the names of attributes, and families exist whose names mislead it (Llama 4 gives itself).
    """
    decoder, embedding = model.get_decoder(), model.get_input_embeddings()
    if decoder is model or embedding not in decoder.modules():
        decoder = next(child for child in model.children() if embedding in child.modules())
    return decoder


def beside_the_text(model: PreTrainedModel) -> list[nn.Parameter]:
    """Parameters that no text reaches: those of what sees or hears, which Gemma 3 has from 4B on."""
    reached = {*decoder_of(model).parameters(), *model.get_output_embeddings().parameters()}
    return [parameter for parameter in model.parameters() if parameter not in reached]


def takes_keywords(decoder: nn.Module) -> bool:
    """Whether a decoder hands its layers more than its own arguments."""
    return any(parameter.kind == parameter.VAR_KEYWORD for parameter in signature(decoder.forward).parameters.values())

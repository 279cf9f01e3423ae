"""The causal language model: load it or make a random one, and score tokens with it.

The scored forward gives log-probabilities (and entropies) of the supervised tokens only; vocabulary logits of a whole
batch never exist. It is one module, so that a sharding strategy that wraps it gathers the head once per call.
"""

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedModel

from datamodules.chat.tokenizer import resolve_model_folder
from datamodules.packing import IGNORED
from lightning_modules.objectives import linear_scores
from lightning_modules.policy.attention import BY_DOCUMENT, decoder_options, flash_options
from lightning_modules.policy.freed_memory import return_freed_before_embedding
from lightning_modules.policy.generation_config import generation_config
from lightning_modules.policy.gradient_checkpointing import (
    GradientCheckpointing,
    enable,
    resolve_gradient_checkpointing,
)
from lightning_modules.policy.head import after_head, beside_the_text, decoder_of, takes_keywords
from lightning_modules.policy.lora import LoRA, add_adapters
from lightning_modules.policy.recompute import keep_inputs_alone
from lightning_modules.policy.weights import kernel_of, load_weights

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)


class ScoredTokens(NamedTuple):
    """Log-probabilities and entropies of scored targets; float32 or wider.

    Attributes:
        logprobs: Log-probability of each target that is not -100, [N], in row-major order of the batch.
        entropy: Entropy in nats of the distribution that target was scored under, [N]; None unless asked for.
        hits: Whether that target is the most likely token, [N], bool.
    """

    logprobs: Tensor
    entropy: Tensor | None
    hits: Tensor


class ScoredCausalLM(nn.Module):
    """A Hugging Face causal LM, with or without peft adapters, whose forward scores targets.

    Attributes:
        model: What was given: a `PreTrainedModel` or a `PeftModel` around one.
        packed: Whether its rows may hold several documents, as `policy.probe` finds out.
        shares_prefixes: Whether a document may continue the beginning of another one in its row; from the probe, too.
    """

    def __init__(self, model: "PreTrainedModel | PeftModel") -> None:
        """Wrap a model.

        Args:
            model: The model; its head must be a matrix, with what `policy.head` knows of after it.

        Raises:
            ValueError: If the model's head has an adapter, or is no linear layer.
        """
        super().__init__()
        self.model = model
        self.packed = True
        self.shares_prefixes = False
        self.after_head = after_head(self.causal_lm.config)
        if type(self.causal_lm.get_output_embeddings()) is not nn.Linear:
            raise ValueError(
                f"{type(self.causal_lm).__name__} cannot be scored in tiles: its head must be one linear layer, "
                "without an adapter."
            )

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The Hugging Face model itself; adapters, where there are any, sit inside its layers and take part."""
        return self.model.get_base_model() if self.has_adapters else self.model

    @property
    def has_adapters(self) -> bool:
        """Whether the model is a `PeftModel`; asked without peft, whose import a run without adapters is spared."""
        return hasattr(self.model, "get_base_model")

    @property
    def by_document(self) -> bool:
        """Whether documents of a row attend each by itself, and not under a mask of the row."""
        return bool(self.causal_lm.config._attn_implementation == BY_DOCUMENT)

    @by_document.setter
    def by_document(self, on: bool) -> None:  # of a model whose attention is sdpa otherwise
        self.causal_lm.config._attn_implementation = BY_DOCUMENT if on else "sdpa"

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        targets: Tensor,
        temperature: float = 1.0,
        entropy: bool = False,
    ) -> ScoredTokens:
        """Log-probabilities, entropies and hits of the targets in rows of documents.

        Positions that restart at 0 begin a new document, and attention stays inside documents, in models that `packed`
        may be true of. transformers keeps to that only without a cache and without a 2-D mask, so there is neither.

        Args:
            input_ids: [R, T], long.
            position_ids: [R, T], long; from 0 in each document.
            targets: The id that follows each position, -100 where none is scored, [R, T], long.
            temperature: Divides the logits.
            entropy: Whether to return entropies as well.

        Returns:
            Scores of the N targets that are not -100; N = 0 gives empty tensors that are still in the graph.
        """
        decoder, options = decoder_of(self.causal_lm), dict[str, Any]()
        flash = self.packed and "flash" in self.causal_lm.config._attn_implementation
        if self.by_document:
            options = decoder_options(position_ids)
        elif flash and takes_keywords(decoder):
            options = flash_options(position_ids)
        if self.by_document or flash:
            # Flash's variable-length kernel recognises restarting positions in a single row only, and silently not in
            # more. And compiled layers would be compiled again for one row, and for a view of one.
            input_ids, position_ids, targets = (x.reshape(1, -1).clone() for x in (input_ids, position_ids, targets))
        hidden = decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False, **options).last_hidden_state
        scored = targets != IGNORED
        head = self.causal_lm.get_output_embeddings()
        arguments = (hidden[scored], head.weight, targets[scored], temperature)
        return ScoredTokens(*linear_scores(*arguments, entropy=entropy, bias=head.bias, **self.after_head._asdict()))


def build_policy(
    init_from: str,
    lora: LoRA | None = None,
    gradient_checkpointing: bool | GradientCheckpointing = False,
    attn_implementation: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    empty: bool = False,
    in_files: bool = False,
) -> ScoredCausalLM:
    """Load a causal LM, or make a random one, ready to train. What no text reaches, such as a vision tower, is frozen.

    A folder that holds a config.json and no weights gives random weights, drawn from torch's global generator. A folder
    that a LoRA run exported holds merged weights, so a new adapter starts on top of what that run learnt.

    Args:
        init_from: Run folder (its `hf/`), Hugging Face folder, or hub id.
        lora: Train adapters of these settings instead of all weights.
        gradient_checkpointing: Recompute activations in the backward pass, of all layers or by settings.
        attn_implementation: Attention kernel by its name in transformers: "sdpa", "eager", "flash_attention_2". Where
            there is no "sdpa" for an architecture it is "eager".
        dtype: Of the weights, whatever dtype they were saved in.
        empty: Leave all parameters on the meta device, where they have no values, for a strategy to fill.
        in_files: See `load_weights`; for a strategy to read them. Adapters begin as on weights that are loaded.

    Returns:
        The model in train mode.

    Raises:
        FileNotFoundError: See `load_weights`.
        ValueError: See `load_weights`; also if the head cannot be scored in tiles, adapters would sit on other than
            linear layers, or transformers knows no such settings of gradient checkpointing.
    """
    with init_empty_weights(include_buffers=False) if empty else nullcontext():
        kernel = kernel_of(attn_implementation)
        experts = "eager" if dtype == torch.float64 else None  # the fused products of experts know no float64
        options = {"dtype": dtype, "attn_implementation": kernel, "experts_implementation": experts}
        model = load_weights(init_from, empty, in_files, **options)
        for config in (model.config, model.config.get_text_config()):  # some ask for what every layer gives
            config.return_dict, config.output_hidden_states, config.output_attentions = True, False, False
        model.generation_config, mended = generation_config(resolve_model_folder(init_from), model)
        if mended and not empty:
            log.warning(mended)
        if (used := model.config._attn_implementation) != attn_implementation and not empty:
            log.warning("%s has no attention of the kind %s: taking %s.", init_from, attn_implementation, used)
        if settings := resolve_gradient_checkpointing(gradient_checkpointing):
            enable(model, settings)
        if lora is not None:
            model = add_adapters(model, lora)
    policy = ScoredCausalLM(model).train()
    for parameter in beside_the_text(policy.causal_lm):  # DDP waits for a gradient of all that learns
        parameter.requires_grad_(False)
    if empty:
        policy.causal_lm.tie_weights()  # emptying has untied shared weights
    keep_inputs_alone(policy.causal_lm)
    return_freed_before_embedding(policy.causal_lm.get_input_embeddings())
    return policy

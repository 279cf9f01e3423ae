"""The generation config of a model in a form that can be saved again, and the tokens that end a completion."""

from copy import deepcopy
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from datamodules.chat.templates import end_of_turn_id


def generation_config(source: str, model: PreTrainedModel) -> tuple[GenerationConfig, str]:
    """Read the generation config of a model, and mend what transformers would refuse to save with the trained weights.

    It is read from the source itself: a model that was made from its config.json alone does not know it.

    Args:
        source: Hugging Face folder or hub id.
        model: What was made from it; its own is taken where the source has none.

    Returns:
        The config, with the end tokens of the model's config where it names none itself, and a sentence on what was
        mended, or "".

    Raises:
        ValueError: If transformers cannot read it, or an end token is no number.
    """
    try:
        config = GenerationConfig.from_pretrained(source)
    except OSError as error:
        if (Path(source) / "generation_config.json").exists():
            raise ValueError(f"init_from: generation_config.json of {source} cannot be read: {_line(error)}") from error
        config = deepcopy(model.generation_config)  # there is none
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"init_from: {source} has an impossible generation config: {_line(error)}") from error
    if config.pad_token_id is not None and config.pad_token_id < 0:  # "none" in early Llama checkpoints
        config.pad_token_id = None
    named = [*ids_of(config.eos_token_id), *ids_of(getattr(model.config.get_text_config(), "eos_token_id", None))]
    if odd := [i for i in named if not isinstance(i, int)]:
        raise ValueError(f"init_from: {source} has an impossible generation config: eos_token_id {odd[0]!r} is no id")
    config.eos_token_id, note = _of_the_model(config, model)
    if config.temperature == 0:  # greedy to servers; transformers refuses to sample at it
        config.do_sample, config.temperature, config.top_p, config.top_k = False, None, None, None
        note += f"The generation config of {source} has a temperature of 0: hf/ will have do_sample false instead. "
    fault = _fault(config)
    if not fault:
        return config, note
    mended = deepcopy(config)
    mended.do_sample = True  # what a temperature means; checkpoints of Llama 2 have one and do not say so
    if not _fault(mended):
        note += f"The generation config of {source} samples without saying so: hf/ will have do_sample true."
        return mended, note
    special = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return GenerationConfig(**special), (
        f"{note}The generation config of {source} is faulty, so hf/ will have but its special tokens: {fault}"
    )


def stop_ids(tokenizer: PreTrainedTokenizerFast, config: GenerationConfig) -> list[int]:
    """The tokens that end a completion, in training as where the exported model is served.

    Args:
        tokenizer: Its chat template tells which token the model is taught to end a turn with.
        config: See `generation_config`.

    Returns:
        The token that is taught first, then those of the config and of the tokenizer.
    """
    ids = [end_of_turn_id(tokenizer), *ids_of(config.eos_token_id), *ids_of(tokenizer.eos_token_id)]
    return list(dict.fromkeys(ids))


def ids_of(value: int | list[int] | None) -> list[int]:
    """Token ids as a list, whether a config gives one, several or none."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _of_the_model(config: GenerationConfig, model: PreTrainedModel) -> tuple[int | list[int] | None, str]:
    """The end tokens that a model has, and a sentence on those that it has not: none of them could end anything."""
    tokens, missing = model.get_input_embeddings().num_embeddings, []
    for ends in (config.eos_token_id, getattr(model.config.get_text_config(), "eos_token_id", None)):
        kept = [i for i in ids_of(ends) if 0 <= i < tokens]
        missing += [i for i in ids_of(ends) if i not in (*kept, *missing)]
        if kept:
            break
    note = f"eos_token_id {', '.join(map(str, missing))} is none of the {tokens:,} tokens and is left out. "
    return (kept if isinstance(ends, list) else kept[0]) if kept else None, note if missing else ""


def _fault(config: GenerationConfig) -> str:
    """Why transformers would not save a config, in a line; "" if it would."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        return _line(error)
    return ""


def _line(error: Exception) -> str:
    return " ".join(str(error).removeprefix("GenerationConfig is invalid:").split("\nIf you're")[0].split())

"""Export to a Hugging Face folder: at the end of a run, or of any checkpoint by `funreason export`."""

import os
import tempfile
from collections import deque
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import torch
import yaml
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerFast

from datamodules.chat.form import AnswerForm, ChatForm, Prompt
from datamodules.chat.serving import served_tokenizer
from datamodules.chat.tokenizer import load_tokenizer
from datamodules.system.files import atomic_write, check_writable
from lightning_modules.checkpointing.exported_weights import plan_files, weights_to_write, write_files
from lightning_modules.checkpointing.find import resolve_checkpoint
from lightning_modules.checkpointing.formats import load
from lightning_modules.checkpointing.identity import check_same_model
from lightning_modules.policy.generation_config import ids_of, stop_ids
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import ScoredCausalLM, build_policy
from lightning_modules.policy.unshard import merged_weights, named_state, unshard

DTYPES = {"bf16-true": torch.bfloat16, "64-true": torch.float64}
"""Of weights, by `trainer.precision`; float32 for others."""
EVERYWHERE = "eager"  # the attention that every family has, on any machine; an export computes none


def export_hf(
    policy: ScoredCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: str | Path,
    write: bool = True,
    form: ChatForm | None = None,
) -> None:
    """Write a Hugging Face folder: merged safetensors, tokenizer, chat template; with LoRA also `adapter/`.

    Merged weights have the dtype of the policy's: under bf16-true they are rounded to bfloat16, and much of what the
    adapters have learnt may be gone in them; `adapter/` on top of `init_from` is the policy that was trained.

    Where the policy is sharded one weight is gathered at a time. The rank that writes holds those of one file, up to
    5 GB, and of one decoder layer in the memory of its host.

    The folder is written beside its place and then renamed, so that it is never seen half-written, by whomever else it
    is written too; an earlier one of that name is replaced. The live model is not changed.

    Args:
        policy: The model; where it is sharded, every rank has to take part.
        tokenizer: Its tokenizer.
        folder: Where to write.
        write: Whether this rank writes; the others only help to gather.
        form: How requests were put and answered in training; the chat template then puts them so.

    Raises:
        OSError: Naming the folder, if it cannot be written.
    """
    adapter = {name: unshard(weight) for name, weight in named_state(policy).items() if ".lora_" in name}
    empty, weights = weights_to_write(policy), merged_weights(policy)
    if not write:
        deque(weights, maxlen=0)
        return
    try:
        with atomic_write(folder) as unfinished:
            unfinished.mkdir()
            write_files(policy, empty, weights, unfinished)
            write_settings(policy, tokenizer, unfinished, form)
            if policy.has_adapters:
                state = {f"base_model.model.{name}": weight for name, weight in adapter.items()}
                policy.model.save_pretrained(unfinished / "adapter", state_dict=state, save_embedding_layers=False)
            for file in unfinished.rglob("*.safetensors"):
                file.chmod(0o644)  # safetensors writes them for their owner alone
    except (OSError, SafetensorError) as error:
        deque(weights, maxlen=0)  # the others wait until all are gathered
        raise OSError(f"the export to {folder} cannot be written: {error}") from error


def write_settings(
    policy: ScoredCausalLM, tokenizer: PreTrainedTokenizerFast, folder: str | Path, form: ChatForm | None = None
) -> None:
    """Write all of a Hugging Face folder but its weights: configs, tokenizer, chat template.

    They name the token that was taught to end a turn, and every other that ended a completion in training: vLLM stops
    at the tokenizer's EOS and at those of the generation config, transformers at the latter. The live model keeps its
    own.
    """
    model, ids = policy.causal_lm, stop_ids(tokenizer, policy.causal_lm.generation_config)
    config, generation = deepcopy(model.config), deepcopy(model.generation_config)
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    vars(config).pop("auto_map", None)  # names code that the export does not hold, for the class is transformers' own
    generation.eos_token_id = ids if len(ids) > 1 else ids[0]
    text = config.get_text_config()
    if ids[0] not in ids_of(getattr(text, "eos_token_id", None)):
        text.eos_token_id = ids[0]
    config.save_pretrained(folder)
    generation.save_pretrained(folder)
    served_tokenizer(tokenizer, form).save_pretrained(folder)


def rehearse_export(
    init_from: str,
    lora: LoRA | None = None,
    folder: Path | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    form: ChatForm | None = None,
) -> None:
    """Try all of an export but writing weights, which takes no memory, so that none fails after a training.

    Args:
        init_from: See `build_policy`.
        lora: See `build_policy`.
        folder: Where the export will lie, if this rank is to write it.
        tokenizer: The tokenizer of the run; that of `init_from` when None.
        form: See `export_hf`.

    Raises:
        FileNotFoundError: See `build_policy` and `load_tokenizer`.
        OSError: If nothing can be written there.
        ValueError: Saying what cannot be exported; also as `build_policy` and `load_tokenizer` do.
    """
    tokenizer = tokenizer or load_tokenizer(init_from)
    with torch.device("meta"):  # names and shapes, and no values
        plain, policy = (
            build_policy(init_from, adapters, attn_implementation=EVERYWHERE, empty=True) for adapters in (None, lora)
        )
    try:
        merged = {name: tuple(weight.shape) for name, weight in merged_weights(policy)}
        plan_files(policy, weights_to_write(policy))
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".rehearsal-", dir=folder) as place:
            write_settings(policy, tokenizer, place, form)
    except OSError as error:
        raise OSError(f"trainer.default_root_dir: the run could not be exported to {folder}: {error}") from error
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        words = " ".join(str(error).split())
        raise ValueError(f"init_from: {init_from} could be trained and not exported: {words}") from error
    wanted = {name: tuple(weight.shape) for name, weight in plain.causal_lm.state_dict().items()}
    if odd := [name for name in wanted | merged if merged.get(name) != wanted.get(name)]:
        here, there = (shapes.get(odd[0], "absent") for shapes in (merged, wanted))
        raise ValueError(
            f"init_from: {init_from} could be trained and not exported: {odd[0]} would be {here} and must be {there}."
        )


def export_checkpoint(ckpt_path: str, output_dir: str | None = None, init_from: str | None = None) -> Path:
    """Export a checkpoint to a Hugging Face folder.

    Args:
        ckpt_path: A `.ckpt` file, a sharded folder, or a run folder: its newest checkpoint. It lies where its run has
            put it, beside the run's `config.yaml`.
        output_dir: Where to; `hf-` and the checkpoint's name in the run folder when None.
        init_from: Where the run's model came from, if that is not where its `config.yaml` says.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: If there is no checkpoint, no config.yaml beside it, or a shard is missing.
        ValueError: If the checkpoint is not one of that model, config.yaml is damaged, or nothing can be written there;
            also see `check_replaceable` and `load`.
    """
    checkpoint = Path(resolve_checkpoint(ckpt_path))
    run = checkpoint.parents[1] if len(checkpoint.parents) > 1 else checkpoint.absolute().parents[1]
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(
            f"--ckpt_path {checkpoint}: {run} holds no config.yaml, which says what model it is of."
        )
    folder = run / f"hf-{checkpoint.stem}" if output_dir is None else check_writable("--output_dir", output_dir)
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        model, dtype = config["model"]["init_args"], DTYPES.get(str(config["trainer"]["precision"]), torch.float32)
        source, lora = init_from or model["init_from"], LoRA(**model["lora"]) if model.get("lora") else None
        chat_template = config["data"]["init_args"].get("chat_template")
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{run / 'config.yaml'} does not say what model the checkpoint is of ({type(error).__name__}: {error}): "
            "put back the config.yaml that the run has written."
        ) from error
    check_replaceable(folder, source)
    saved = load(checkpoint)
    state, form = saved["state_dict"], form_of(saved, checkpoint)
    weights = {name.removeprefix("policy."): w for name, w in state.items() if name.startswith("policy.")}
    policy = build_policy(source, lora, attn_implementation=EVERYWHERE, dtype=dtype)
    kept = {name: w for name, w in policy.state_dict().items() if lora is None or ".lora_" in name}
    ours, theirs = ({name: tuple(w.shape) for name, w in s.items()} for s in (kept, weights))
    check_same_model(theirs, ours, source)
    policy.load_state_dict(weights, strict=lora is None)  # what adapters sit on is as `init_from` has it
    tokenizer = load_tokenizer(source, chat_template)
    export_hf(policy, tokenizer, folder, form=form)
    return folder


def form_of(saved: dict[str, Any], checkpoint: Path) -> ChatForm | None:
    """The chat form of a checkpoint's run; None where it does not say.

    Raises:
        ValueError: It is none that is known here.
    """
    try:
        form = ChatForm(**saved["form"]) if saved.get("form") else None
        known = form is None or (form.prompt in get_args(Prompt) and form.answer_form in get_args(AnswerForm))
    except TypeError:
        known = False
    if not known:
        raise ValueError(f"--ckpt_path {checkpoint} is damaged or of a later version: its form is {saved['form']}")
    return form


def check_replaceable(folder: Path, source: str) -> None:
    """Raise if an export would replace anything but an earlier export.

    Args:
        folder: Where the export is to lie.
        source: What the run started from.

    Raises:
        ValueError: If there is something else.
    """
    start = Path(os.path.expanduser(source)).resolve()
    if folder.resolve() in (start, start / "hf"):  # of a run its `hf/` is meant
        raise ValueError(f"--output_dir {folder} is the model that the run started from: give another folder.")
    files = [file.name for file in folder.iterdir()] if folder.is_dir() else [folder.name] * folder.exists()
    if files and "config.json" not in files:
        raise ValueError(f"--output_dir {folder} holds {min(files)} and no exported model: give a new or empty folder.")

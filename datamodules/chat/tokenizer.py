"""The tokenizer of a model: found, loaded, and with a chat template that works."""

import re
from copy import copy
from functools import lru_cache
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from datamodules.chat.model_files import adapter_in, check_settings, merging, models_in, unread_in
from datamodules.chat.serving import own_template
from datamodules.chat.templates import first_token, one_template, turns_text, without_present_date
from datamodules.system.files import is_pointer, shipped
from datamodules.system.hub import refuse_unreachable

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LONGEST_FRAME = 1 << 20  # characters that a template may put around a question
OF_PROCESSOR = "chat_template.json"
ANOTHER_TEMPLATE = "set data.chat_template to chatml or to a file with one"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def resolve_model_folder(init_from: str) -> str:
    """Find the Hugging Face folder meant by `model.init_args.init_from`.

    Args:
        init_from: A run folder (its `hf/` is meant), an `hf/` folder, any Hugging Face folder, or a hub id.

    Returns:
        The folder; a hub id is returned unchanged.

    Raises:
        FileNotFoundError: There is no such folder, or it holds no exported model.
        ValueError: Its config.json is no JSON object.
    """
    if not init_from or "\0" in str(init_from):
        raise FileNotFoundError(
            f"init_from: {init_from!r} names nothing; give a run folder, a model folder or a hub id"
        )
    try:
        folder = Path(shipped(str(init_from))).expanduser()
    except RuntimeError as error:  # of a user that there is not
        raise FileNotFoundError(f"init_from: no folder {init_from}: {error}") from error
    if folder.is_dir():
        for candidate in (folder, folder / "hf"):
            if (candidate / "config.json").is_file():
                check_settings(candidate / "config.json")
                return str(candidate)
        raise FileNotFoundError(f"init_from: {init_from} {_without_model(folder, init_from)}")
    if folder.is_file():
        raise FileNotFoundError(
            f"init_from: {init_from} is a file: give a folder with a config.json, safetensors and a tokenizer, or a run"
        )
    if init_from.startswith((".", "~")) or not _HUB_ID.fullmatch(init_from):
        raise FileNotFoundError(f"init_from: no folder {init_from}; give a run folder, a model folder or a hub id")
    return init_from


def _without_model(folder: Path, init_from: str) -> str:
    """What a folder without a config.json holds, and what to do."""
    if checkpoints := sorted(folder.glob("checkpoints/*.ckpt")):
        settings = folder / "config.yaml"
        if settings.is_file() and "init_from:" in settings.read_text(encoding="utf-8", errors="replace"):
            return (
                "is a run that was interrupted, and has no hf/ folder yet: write one by "
                f"funreason export --ckpt_path {init_from} --output_dir {folder / 'hf'}"
            )
        return (
            f"holds a checkpoint that no run of this project wrote (checkpoints/{checkpoints[-1].name}): load it where "
            "it comes from, write its model by save_pretrained, with its tokenizer, and give that folder"
        )
    if any(folder.glob("*.ckpt")) and (folder.parent / "hf" / "config.json").is_file():
        return f"holds the checkpoints of a run: give the run, {folder.parent}"
    inside = models_in(folder)
    if (adapter := adapter_in(folder)) and (adapter.parent == folder or not inside):
        where = "" if adapter.parent == folder else f" in {adapter.parent.name}"
        return f"holds an adapter{where} and no model: {merging(adapter)}"
    advice = ""
    if inside:
        advice = f"; give one of the folders in it, as {inside[-1]}"
    elif unread := unread_in(folder):
        advice = f"; {unread[0]} is not read: give the Hugging Face folder of that model, with its safetensors"
    return f"holds neither a config.json nor an hf/ folder that has one{advice}"


def load_tokenizer(init_from: str, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model, with the two things this project needs of it: offsets and a chat template.

    Args:
        init_from: See `resolve_model_folder`.
        chat_template: A file with the template to use, or "chatml"; the tokenizer's own when None.

    Returns:
        The fast tokenizer, which decodes to what its tokens say. Of a model that this project exported, its template is
        the one that was trained with.

    Raises:
        FileNotFoundError: The folder has no tokenizer, or the name is neither a folder nor a model of the hub.
        ValueError: The tokenizer cannot be read, has no fast (Rust) version, needs code of its own, knows no words, or
            has no chat template that works.
    """
    folder = resolve_model_folder(init_from)
    if Path(folder).is_dir() and not any((Path(folder) / name).is_file() for name in _TOKENIZER_FILES):
        raise FileNotFoundError(
            f"init_from: {folder} has no tokenizer (none of {', '.join(_TOKENIZER_FILES)}): add that of the model it "
            "was made from"
        )
    if not Path(folder).is_dir():
        refuse_unreachable(folder)
    try:
        tokenizer = _read_tokenizer(folder)
    except Exception as error:  # of a damaged file: tokenizers raises Exception itself, and transformers any kind
        if isinstance(error, OSError) and not Path(folder).is_dir():
            message = f"init_from: {folder} is neither a folder here nor a model the hub gives us"
            raise FileNotFoundError(message) from error
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"init_from: the tokenizer of {folder} needs code of its own (auto_map in its tokenizer_config.json), "
                "and none but transformers' is run here: give a model whose tokenizer transformers knows"
            ) from error
        words = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if pointers := [name for name in _TOKENIZER_FILES if is_pointer(Path(folder) / name)]:
            words = f"{pointers[0]} is a pointer of Git LFS: fetch it by git lfs pull"
        raise ValueError(f"init_from: the tokenizer of {folder} cannot be read ({words})") from error
    if not tokenizer.is_fast:
        raise ValueError(
            f"init_from: the tokenizer of {folder} is not a fast one, so gives no character offsets: give a model with "
            "a tokenizer.json"
        )
    if set(tokenizer("a question", add_special_tokens=False)["input_ids"]) <= {tokenizer.unk_token_id}:
        raise ValueError(  # transformers makes an empty one where there is but a tokenizer_config.json
            f"init_from: the tokenizer of {folder} knows no words: add the file of its vocabulary (tokenizer.json)"
        )
    tokenizer.init_kwargs.pop("auto_map", None)  # code that this tokenizer does without, and an export does not hold
    _settle_template(tokenizer, folder, chat_template)
    tokenizer.clean_up_tokenization_spaces = False  # where it is on, decoding loses the blank of "Oslo ,"
    return tokenizer


def _settle_template(tokenizer: PreTrainedTokenizerFast, folder: str, chat_template: str | None) -> None:
    """Give a tokenizer the one template that renders prompts, and try it on a question; see `load_tokenizer`."""
    if chat_template is not None:
        chatml = chat_template == "chatml"
        begin = "{{ bos_token }}" if chatml and first_token(tokenizer) else ""
        tokenizer.chat_template = begin + (CHATML if chatml else _read_template(chat_template))
    if not tokenizer.chat_template:
        raise ValueError(f"init_from: the tokenizer of {folder} has no chat template{_template_to_take(folder)}")
    question = "a question"
    try:
        tokenizer.chat_template = without_present_date(own_template(one_template(tokenizer.chat_template)))
        text = turns_text(tokenizer, [{"role": "user", "content": question}])
    except ValueError as error:
        raise ValueError(f"init_from: {error}") from error
    if len(text) > LONGEST_FRAME:
        raise ValueError(
            f"init_from: the chat template of {tokenizer.name_or_path} makes {len(text):,} characters of one question: "
            f"{ANOTHER_TEMPLATE}"
        )
    if question not in text:
        raise ValueError(
            f"init_from: the chat template of {tokenizer.name_or_path} leaves out what a user says: {ANOTHER_TEMPLATE}"
        )


def _read_tokenizer(folder: str) -> PreTrainedTokenizerFast:
    """A tokenizer as its folder has it, whose files are read once for a process: some take seconds, a command has four.

    Callers share what encodes; template and settings are each one's own.
    """
    if not Path(folder).is_dir():
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    files = sorted(file for file in Path(folder).iterdir() if file.is_file() and file.suffix != ".safetensors")
    tokenizer = copy(
        _read_once(folder, tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files))
    )
    tokenizer.init_kwargs = dict(tokenizer.init_kwargs)
    return tokenizer


@lru_cache(maxsize=4)
def _read_once(folder: str, stamps: tuple[tuple[str, int, int], ...]) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _template_to_take(folder: str) -> str:
    """What to do where a tokenizer has no chat template."""
    if (Path(folder) / OF_PROCESSOR).is_file():
        return (
            f", only {OF_PROCESSOR}, which is for a processor of pictures: put the text that it holds into a file "
            "chat_template.jinja beside it, without the JSON around it"
        )
    return f", as those of base models: {ANOTHER_TEMPLATE}"


def _read_template(file: str) -> str:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8-sig")  # its mark would be in every prompt
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data.chat_template: {file} cannot be read ({error}); give a file, or chatml") from error

"""Options of a command line before it is parsed: their values, the settings in YAML files, the class of the model."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from datamodules.system.command_line import fault_of_yaml
from datamodules.system.files import shipped
from lightning_modules.commands.yaml_nodes import entries, scalar_in, written_out

CONFIGS, CLASSES = ("--config", "-c"), ("--model", "--model.class_path")
MEANT = {"--model": "a model is given by --model.init_from", "--data": "rows are given by --data.path"}
IN_GROUP = re.compile(r"(--model\.(?:init_args\.)?\w+)\.(\w+)")
ATTACHED = re.compile("^-c(?=[^=])")


def apart(words: Sequence[str]) -> list[str]:
    """A command line with each `-cFILE` as `-c=FILE`, which is the same to argparse."""
    return [ATTACHED.sub("-c=", word) for word in words]


def options_in(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """The options of a command line and their values; a word on its own is an option without one."""
    rest = list(reversed(words))
    while rest:
        option, equals, value = rest.pop().partition("=")
        takes = option.startswith("-") and not equals and bool(rest) and not rest[-1].startswith(("--", "-c"))
        yield option, rest.pop() if takes else value if equals else None


def as_word(option: str, value: str | None) -> str:
    """An option and its value as one word of a command line."""
    return option if value is None else f"{option}={value}"


def settings_in(option: str, value: str | None) -> yaml.Node | None:
    """The settings of the YAML that an option names as they stand there; None of any other option.

    None, too, where the parser will say what is wrong with it.
    """
    file = shipped(value) if value and option in CONFIGS else ""
    if not os.path.isfile(file) or fault_of_yaml(file):
        return None
    return written_out(Path(file).read_text("utf-8"))


def class_named(root: yaml.Node, group: str = "model") -> str:
    """The class that a YAML names for the model, or the data, by name or path; empty where it names none."""
    return scalar_in(entries(root).get(group)) or scalar_in(entries(root, group).get("class_path"))


def overlay_alone(words: Sequence[str], group: str) -> str | None:
    """The YAML of a command line that has settings for the model, or the data, before its class is named."""
    for option, value in options_in(words):
        root = settings_in(option, value)
        if option in (f"--{group}", f"--{group}.class_path") or (root and class_named(root, group)):
            return None
        if root and entries(root, group):
            return value
    return None


def names_nothing(words: Sequence[str]) -> bool:
    """Whether a command line, with its YAMLs, names no class, of a model or of data."""
    for option, value in options_in(words):
        root = settings_in(option, value)
        if option in (*CLASSES, "--data", "--data.class_path"):
            return False
        if root and (class_named(root) or class_named(root, "data")):
            return False
    return True


def no_settings(words: Sequence[str]) -> str:
    """What is wrong with a file of another kind in the place of settings or a class; nothing where there is none."""
    for option, value in options_in(words):
        if not value or value.startswith(("{", "[")):
            continue
        if value.endswith(".py") and os.path.isfile(value):
            return (
                f"{option} {value}: Python code is not read as settings; what is in it is named by its import path, as "
                f"{Path(value).stem}.NAME, with its folder in PYTHONPATH"
            )
        if option in MEANT and not value.endswith((".yaml", ".yml")):  # others may name rows, of any size
            if fault_of_yaml(value) if os.path.isfile(value) else "/" in value:
                return f"{option} takes a class or a YAML with its settings, and got {value}: {MEANT[option]}"
    return ""


def nested_nulls(words: Sequence[str]) -> list[str]:
    """A command line with each `--model.loss.clip_high=null` as `--model.loss={clip_high: null}`.

    Of the former jsonargparse makes the text None, once it has found out that there is nothing, and refuses it.
    """
    options = [(*option, option[1] in ("null", "~") and IN_GROUP.fullmatch(option[0])) for option in options_in(words)]
    if not any(key for *_, key in options):
        return list(words)
    return [as_word(key[1], f"{{{key[2]}: null}}") if key else as_word(option, value) for option, value, key in options]

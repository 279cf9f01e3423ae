"""A command line before it is parsed: its options, their values, and the settings and classes that its YAMLs name."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from datamodules.readers.data_sets import SUFFIXES
from datamodules.system.command_line import configs_first, fault_of_yaml
from datamodules.system.files import shipped
from lightning_modules.commands.yaml_nodes import part, scalar_in, written_out

CONFIGS, GROUPS = ("--config", "-c"), ("model", "data")
MEANT = {"--model": "a model is given by --model.init_from", "--data": "rows are given by --data.path"}
IN_GROUP = re.compile(r"(--model\.(?:init_args\.)?\w+)\.(\w+)")
ATTACHED = re.compile("^-c(?=[^=])")  # `-cFILE`, which is `-c=FILE` to argparse


class Given(NamedTuple):
    """An option of a command line.

    Attributes:
        option: Its name; a word on its own is an option without a value.
        value: Its value, or None.
        settings: Those of the YAML that it names, as they stand there; None of any other option, and where the parser
            will say what is wrong with it.
    """

    option: str
    value: str | None = None
    settings: yaml.Node | None = None

    @property
    def word(self) -> str:
        """It as one word of a command line."""
        return self.option if self.value is None else f"{self.option}={self.value}"

    def kind(self, group: str = "model") -> str:
        """The class that it names for the model, or the data, by name or path; empty where it names none."""
        if not self.settings and self.option in (f"--{group}", f"--{group}.class_path"):
            return self.value or ""
        return scalar_in(part(self.settings, group)) or scalar_in(part(self.settings, group, "class_path"))

    def rewritten(self, settings: yaml.Node | None) -> "Given":
        """It with these settings in the place of its value."""
        return self._replace(value=yaml.serialize(settings, Dumper=yaml.SafeDumper, allow_unicode=True))


def read(words: Sequence[str]) -> list[Given]:
    """The options of a command line, its YAMLs first."""
    given, rest = list[Given](), configs_first([ATTACHED.sub("-c=", word) for word in words])[::-1]
    while rest:
        option, equals, text = rest.pop().partition("=")
        takes = option.startswith("-") and not equals and rest and not rest[-1].startswith(("--", "-c", "-h"))
        value = rest.pop() if takes else text if equals else None
        given.append(Given(option, value, settings_of(value) if value and option in CONFIGS else None))
    return given


def settings_of(name: str) -> yaml.Node | None:
    """The settings in a YAML; None where the parser will say what is wrong with it."""
    file = shipped(name)
    return written_out(Path(file).read_text("utf-8")) if os.path.isfile(file) and not fault_of_yaml(file) else None


def arguments_in(root: yaml.Node | None) -> Iterator[yaml.Node | None]:
    """The places in settings where arguments of the model may lie."""
    yield part(root, "model")
    yield part(root, "model", "init_args")


def no_settings(given: Sequence[Given]) -> str:
    """What is wrong with a file of another kind in the place of settings or a class; nothing where there is none."""
    for option, value, _ in given:
        if not value or value.startswith(("{", "[")):
            continue
        if value.endswith(".py") and os.path.isfile(value):
            return (
                f"{option} {value}: Python code is not read as settings; what is in it is named by its import path, as "
                f"{Path(value).stem}.NAME, with its folder in PYTHONPATH"
            )
        if option in MEANT and not value.endswith((".yaml", ".yml")):
            rows = Path(value).suffix.lower() in SUFFIXES  # of any size, and YAML is slow
            if rows or (fault_of_yaml(value) if os.path.isfile(value) else "/" in value):
                return f"{option} takes a class or a YAML with its settings, and got {value}: {MEANT[option]}"
    return ""


def nested_nulls(given: Sequence[Given]) -> list[Given]:
    """A command line with each `--model.loss.clip_high=null` as `--model.loss={clip_high: null}`.

    Of the former jsonargparse makes the text None, once it has found out that there is nothing, and refuses it.
    """
    nulls = [one.value in ("null", "~") and IN_GROUP.fullmatch(one.option) for one in given]
    return [Given(key[1], f"{{{key[2]}: null}}") if key else one for one, key in zip(given, nulls, strict=True)]

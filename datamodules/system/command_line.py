"""The parser of every command: settings from YAML and options, and what is wrong with them in one sentence."""

import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import IO, Any, NoReturn

import yaml
from jsonargparse import ArgumentParser

from datamodules.system.errors import DEBUG
from datamodules.system.files import ROOT, shipped
from datamodules.system.sentences import sentence

OF_JSONARGPARSE = "JSONARGPARSE_DEPRECATION_WARNINGS"
"""Whether it warns of what we and Lightning call and later releases drop: `python -W error` makes an end of that."""
NULL = "tag:yaml.org,2002:null"
CONFIG = re.compile("(--config|-c)(=|$)")
CLASS = re.compile(r"--(model|data)(\.class_path)?(=|$)")


class SentenceParser(ArgumentParser):
    """Ends bad options with one sentence on the last line, not two screens of usage and of all that was tried."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        os.environ.setdefault(OF_JSONARGPARSE, "off")
        epilog = f"{DEBUG}, anywhere on the command line, prints the traceback of an error above its sentence."
        whole = {"allow_abbrev": False}  # what looks for options before they are parsed knows their names alone
        super().__init__(*args, **{"epilog": epilog} | whole | kwargs)

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Parse as jsonargparse does, once every YAML is known to be one."""
        words = _shipped_configs(configs_first(sys.argv[1:] if args is None else args))
        named = [
            (word.partition("=")[2] if "=" in word else after)
            for word, after in pairwise([*words, "-"])
            if CONFIG.match(word)
        ]
        if "" in named:
            self.error("--config names no file: give one, or look whether a variable of the shell is empty")
        for file in named if not (ROOT / "configs").is_dir() else ():
            if file.startswith("configs/") and not os.path.exists(file):
                self.error(
                    f"--config {file} lies in the checkout, and this installation was made without it: install by "
                    "pip install -e CHECKOUT, or give the path of the YAML there"
                )
        for file in filter(os.path.isfile, named):
            if fault := fault_of_yaml(file):
                self.error(fault)
        return super().parse_args(words, *more, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report as jsonargparse does, with exit code 2, in one sentence."""
        super().error(sentence(message), ex)

    def print_usage(self, file: IO[str] | None = None) -> None:
        """Print nothing: an error message already names the command that shows the options."""


def configs_first(args: Sequence[str]) -> list[str]:
    """The words of a command line with its YAMLs before the other options, which win over them wherever they stand.

    A class whose settings a YAML may hold stays before it.
    """
    options = list[list[str]]()  # each with its values; the first words may be a command
    for word in args:
        if options and not word.startswith("-"):
            options[-1].append(word)
        else:
            options.append([word])
    last = max((place for place, (word, *_) in enumerate(options) if CONFIG.match(word)), default=-1)
    first = [CONFIG.match(word) or CLASS.match(word) or not word.startswith("-") for word, *_ in options[: last + 1]]
    ordered = sorted(range(last + 1), key=lambda place: not first[place])
    return [word for place in (*ordered, *range(last + 1, len(options))) for word in options[place]]


def _shipped_configs(args: Sequence[str]) -> list[str]:
    """The words of a command line, with shipped YAMLs found from any directory."""
    words: list[str] = []
    for word in args:
        option, equals, value = word.partition("=")
        if words and CONFIG.fullmatch(words[-1]):
            words.append(shipped(word))
        else:
            words.append(f"{option}={shipped(value)}" if equals and CONFIG.match(word) else word)
    return words


def fault_of_yaml(file: str) -> str:
    """Why a file is no YAML of settings; nothing where it is one."""
    try:
        with open(file, encoding="utf-8") as text:
            node = yaml.compose(text, yaml.SafeLoader)
    except UnicodeDecodeError as error:
        return f"{file} is not UTF-8 text: {error}"
    except yaml.YAMLError as error:
        return f"{file} is not YAML: {error}"
    except OSError as error:
        return f"{file}: {error.strerror}"
    except RecursionError:
        return f"{file} is not YAML of settings: it is nested too deeply"
    if not isinstance(node, yaml.MappingNode):
        return f"{file} holds no settings: give lines of the form `key: value`"
    fault = _fault_of_entries(node)
    return fault and f"{file}, line {fault}"


def _fault_of_entries(root: yaml.Node) -> str:
    """What is found wrong with an entry of a mapping, behind its line: of two values one would silently win."""
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.ScalarNode) or id(node) in seen:  # an alias stands for the same node again
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            for key, value in reversed(node.value):
                if fault := _fault_of_entry(key, value, counts):
                    return f"{key.start_mark.line + 1}: {fault}"
        nodes += [child for _, child in node.value] if isinstance(node, yaml.MappingNode) else node.value
    return ""


def _fault_of_entry(key: yaml.Node, value: yaml.Node, counts: Mapping[str, int]) -> str:
    if not isinstance(key, yaml.ScalarNode):
        return "a mapping or a list is no key; a value with {{ }} is put in quotes"
    if counts[key.value] > 1:
        return f"{key.value} is set twice in one place: leave one of them"
    if key.value == "init_args" and isinstance(value, yaml.SequenceNode):
        return "init_args is a list: give settings of the class, key: value, without dashes"
    if key.value == "class_path" and (not isinstance(value, yaml.ScalarNode) or value.tag == NULL):
        return "class_path names no class: give one by its import path"
    return ""

"""Overlays of hardware before a model that is only evaluated: what they set for training is left out."""

from collections.abc import Sequence

import yaml

from lightning_modules.base import FunctionCallingModule
from lightning_modules.commands.given import CLASSES, as_word, class_named, options_in, settings_in
from lightning_modules.commands.options import named, parameters
from lightning_modules.commands.yaml_nodes import entries
from lightning_modules.evaluation import EvaluationModule


def without_training(words: Sequence[str]) -> list[str]:
    """A command line whose overlays set nothing of training for a model that takes none of it, as BFCL's.

    So `configs/trainer/fsdp2.yaml`, which turns on `gradient_checkpointing`, also goes after `configs/bfcl.yaml`.

    Args:
        words: The command line. The last class that it or a YAML names is the model's; an overlay names none.
    """
    kind, changed = "", list[str]()
    options = list(options_in(words))
    roots = [settings_in(option, value) for option, value in options]
    for (option, value), root in zip(options, roots, strict=True):
        kind = (value if option in CLASSES else class_named(root) if root else "") or kind
    idle = idle_keys(kind)
    for (option, value), root in zip(options, roots, strict=True):
        if root and not class_named(root) and drop(root, idle):
            value = yaml.serialize(root, Dumper=yaml.SafeDumper, allow_unicode=True)
        changed.append(as_word(option, value))
    return changed if idle else list(words)


def idle_keys(kind: str) -> set[str]:
    """Arguments of modules that train which a module that only evaluates does not take; none of one that trains."""
    try:
        chosen = named(kind, EvaluationModule)
    except ValueError:  # the parser says so
        return set()
    trains = not isinstance(chosen, type) or issubclass(chosen, FunctionCallingModule)
    return set() if trains else parameters(FunctionCallingModule).keys() - parameters(chosen).keys()


def drop(root: yaml.Node, keys: set[str]) -> bool:
    """Take arguments of the model out of settings; whether there were any."""
    dropped = False
    for way in (("model",), ("model", "init_args")):
        if entries(root, *way).keys() & keys:
            node = entries(root, *way[:-1])[way[-1]]
            node.value = [(key, value) for key, value in node.value if key.value not in keys]
            dropped = True
    return dropped

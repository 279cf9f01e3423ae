"""Overlays of hardware before a model that is only evaluated: what they set for training is left out."""

from collections.abc import Sequence

from lightning_modules.base import FunctionCallingModule
from lightning_modules.commands.given import Given, arguments_in
from lightning_modules.commands.options import named, parameters
from lightning_modules.commands.yaml_nodes import take
from lightning_modules.evaluation import EvaluationModule


def without_training(given: Sequence[Given]) -> list[Given]:
    """A command line whose overlays set nothing of training for a model that takes none of it, as BFCL's.

    So `configs/trainer/fsdp2.yaml`, which turns on `gradient_checkpointing`, also goes after `configs/bfcl.yaml`.

    Args:
        given: The command line. The last class that it or a YAML names is the model's; an overlay names none.
    """
    idle = idle_keys(next(filter(None, (one.kind() for one in reversed(given))), ""))
    cut = [not one.kind() and any([take(node, idle) for node in arguments_in(one.settings)]) for one in given]
    return [one.rewritten(one.settings) if less else one for one, less in zip(given, cut, strict=True)]


def idle_keys(kind: str) -> set[str]:
    """Arguments of modules that train which a module that only evaluates does not take; none of one that trains."""
    try:
        chosen = named(kind, EvaluationModule)
    except ValueError:  # the parser says so
        return set()
    trains = not isinstance(chosen, type) or issubclass(chosen, FunctionCallingModule)
    return set() if trains else parameters(FunctionCallingModule).keys() - parameters(chosen).keys()

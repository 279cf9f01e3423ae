"""Help on any setting of a run: `--model.lora.help`, `--model.generator.help`, `--trainer.callbacks.help=CLASS`."""

import inspect
import pkgutil
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from jsonargparse import ArgumentParser

from lightning_modules.commands.given import GROUPS, Given

HELP = re.compile(r"--((?:\w+\.)+)help")


def help_on(given: Sequence[Given], roots: Mapping[str, type]) -> str | None:
    """The help that a command line asks for with a word like `--model.lora.help`.

    Args:
        given: The command line; `--model` and `--data` choose the classes.
        roots: The classes of the groups of settings by their names.

    Returns:
        The text; None where nothing is asked for that is known here.
    """
    asked = [(found[1], one.value) for one in given if (found := HELP.fullmatch(one.option))]
    if not asked:
        return None
    path, wanted = asked[0]
    names = [name for name in path.split(".") if name and name != "init_args"]
    if names[0] not in roots:
        return None
    chosen = [one.kind(names[0]) for one in given if names[0] in GROUPS and not one.settings]
    kinds = [named(name, roots[names[0]]) for name in list(filter(None, chosen))[-1:]] or [roots[names[0]]]
    for name in names[1:]:
        owners = [owner for kind in kinds for owner in (kind, *subclasses(kind)) if name in parameters(owner)]
        if not owners:
            return None
        kinds = classes(parameters(owners[0])[name])
        if not kinds:  # a number, a text: the setting itself
            return described(owners[0], ".".join(names[:-1]), only=name)
    if wanted:
        kinds = [named(wanted, *kinds)]
    shown = [described(kind, ".".join(names)) for kind in kinds]
    below = [name_in_settings(other, kind) for kind in kinds for other in subclasses(kind)]
    if below and not wanted:
        shown.append(f"also: --{'.'.join(names)}.help=CLASS, of {', '.join(sorted(set(below)))}")
    return "\n".join(shown)


def parameters(kind: type) -> dict[str, Any]:
    """Types of the constructor arguments of a class and, through `**kwargs`, of its parents."""
    found: dict[str, Any] = {}
    for parent in kind.__mro__:
        if init := vars(parent).get("__init__"):
            found = {k: v for k, v in inspect.get_annotations(init).items() if k != "return"} | found
            if not any(one.kind == one.VAR_KEYWORD for one in inspect.signature(init).parameters.values()):
                break
    return found


def classes(annotation: Any) -> list[type]:
    """The classes with settings of their own in a type."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if annotation.__module__ not in ("builtins", "pathlib", "datetime", "typing") else []
    return list(dict.fromkeys(kind for part in get_args(annotation) for kind in classes(part)))


def subclasses(kind: type) -> list[type]:
    """All classes below one that are loaded, or that do what a protocol asks for in its own package."""
    if getattr(kind, "_is_protocol", False):
        around = vars(sys.modules[kind.__module__.rpartition(".")[0] or kind.__module__]).values()
        return [
            one for one in around if inspect.isclass(one) and one is not kind and one.__name__.endswith(kind.__name__)
        ]
    return [below for child in kind.__subclasses__() for below in (child, *subclasses(child))]


def name_in_settings(one: type, kind: type) -> str:
    """How a setting names a class: by its import path where a protocol is asked for, else its name is enough."""
    package = f"{kind.__module__.rpartition('.')[0]}." if getattr(kind, "_is_protocol", False) else ""
    return f"{package}{one.__name__}"


def named(name: str, *kinds: type) -> type:
    """A class by its import path, or by its name among those below.

    Raises:
        ValueError: There is none.
    """
    for below in (one for kind in kinds for one in (kind, *subclasses(kind))):
        if below.__name__ == name:
            return below
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"there is no class {name} ({error}): give one by its name or import path") from error
    return found


def described(kind: type, path: str, only: str | None = None) -> str:
    """Help on the settings of a class, or on one of them."""
    parser = ArgumentParser(prog="funreason", usage="", add_help=False)
    left_out = set(parameters(kind)) - {only} if only else set()
    parser.add_class_arguments(kind, path, skip=left_out, fail_untyped=False, sub_configs=False)
    text = parser.format_help().strip().removeprefix("usage:").strip()
    return text or f"{path}: {kind.__name__} has no settings"

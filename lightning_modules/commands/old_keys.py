"""Settings under names that they once had, in a YAML or on the command line, read under those of now."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from lightning.pytorch.utilities import rank_zero_only

from datamodules.system.command_line import fault_of_yaml
from datamodules.system.files import shipped
from lightning_modules.commands.options import classes, named, parameters
from lightning_modules.grpo import GRPOModule

OF_GRPO = {
    "group_size": "sampling.group_size",
    "temperature": "sampling.temperature",
    "top_p": "sampling.top_p",
    "entropy_scale": "entropy_bonus.scale",
    "clip_divisor": "entropy_bonus.divisor",
    "entropy_level": "entropy_bonus.level",
    "clip_low": "loss.clip_low",
    "clip_high": "loss.clip_high",
    "dual_clip": "loss.dual_clip",
    "aggregation": "loss.aggregation",
    "ratio_level": "loss.ratio_level",
    "kl_coef": "loss.kl_coef",
    "dynamic_sampling": "dynamic_sampling.max_draws",
    "max_resample": "dynamic_sampling.max_resample",
    "overlong": "overlong.treatment",
    "overlong_buffer": "overlong.buffer",
    "importance_cap": "importance_sampling.cap",
    "importance_above": "importance_sampling.above",
}
"""Arguments that `GRPOModule` had, and the group of settings and key where each is now."""
ALONE = re.compile(r"-?\d+|none|mask|penalty")
"""Values of those whose name is that of a group now."""
MOVED = {
    "lightning_modules.rollout.hf_generator.HFGenerator": "lightning_modules.generators.HFGenerator",
    "lightning_modules.rollout.vllm_generator.VLLMGenerator": "lightning_modules.generators.VLLMGenerator",
    "lightning_modules.bfcl.BFCLModule": "lightning_modules.BFCLModule",
    "lightning_modules.resume.ExactResume": "lightning_modules.checkpointing.resume.ExactResume",
    "lightning_modules.summary.RunSummary": "lightning_modules.callbacks.summary.RunSummary",
    "datamodules.bfcl.BFCLDataModule": "datamodules.BFCLDataModule",
    "datamodules.pretraining.PretrainingDataModule": "datamodules.PretrainingDataModule",
}
"""Classes that a `class_path` may name by where they were, and where they are."""
CONFIGS, CLASSES = ("--config", "-c"), ("--model", "--model.class_path")
OF_MODEL = re.compile(r"--model\.(init_args\.)?(\w+)")


def read_old_keys(words: Sequence[str]) -> list[str]:
    """A command line in the names of now; one line on stderr says which were others.

    A YAML that holds such names is replaced by its text.

    Args:
        words: The command line. A class that it or a YAML names is that of all that follows, until another is named.
    """
    new, told, kind = list[str](), dict[str, str](), ""
    for option, value in options_in(words):
        if option in CONFIGS and value and (root := settings_in(value)):
            kind = class_named(root) or kind
            if renamed := rename_moved(root) | rename_keys(root, kind):
                told |= renamed
                value = yaml.serialize(root, Dumper=yaml.SafeDumper, allow_unicode=True)
        elif value in MOVED:
            told[value] = value = MOVED[value]
        elif (key := OF_MODEL.fullmatch(option)) and (name := new_name(kind, key[2], value or "")):
            option = f"--model.{key[1] or ''}{name}"
            told[f"model.{key[2]}"] = f"model.{name}"
        if option in CLASSES:
            kind = value or ""
        new.append(option if value is None else f"{option}={value}")
    tell(told)
    return new if told else list(words)


def overlay_alone(words: Sequence[str]) -> str | None:
    """The first YAML of a command line, if no class of a model is named anywhere on it."""
    options = [*options_in(words)]
    roots = {value: root for option, value in options if option in CONFIGS and value and (root := settings_in(value))}
    if any(option in CLASSES for option, _ in options) or any(map(class_named, roots.values())):
        return None
    return next(iter(roots), None)


def options_in(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """The options of a command line and their values; a word on its own is an option without one."""
    rest = list(reversed(words))
    while rest:
        option, equals, value = rest.pop().partition("=")
        takes = option.startswith("-") and not equals and bool(rest) and not rest[-1].startswith("--")
        yield option, rest.pop() if takes else value if equals else None


def settings_in(file: str) -> yaml.Node | None:
    """The settings of a YAML as they stand there; None where the parser will say what is wrong with it."""
    file = shipped(file)
    if not os.path.isfile(file) or fault_of_yaml(file):
        return None
    return yaml.compose(Path(file).read_text("utf-8"), yaml.SafeLoader)


def entries(node: yaml.Node | None, *way: str) -> dict[str, yaml.Node]:
    """What a mapping holds by key, or the one that lies under these keys in it; nothing where there is none."""
    if not isinstance(node, yaml.MappingNode):
        return {}
    held = {key.value: value for key, value in node.value if isinstance(key, yaml.ScalarNode)}
    return entries(held.get(way[0]), *way[1:]) if way else held


def scalar_in(node: yaml.Node | None) -> str:
    """The text of a value; empty where it is a mapping, a list or nothing."""
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def class_named(root: yaml.Node) -> str:
    """The class that a YAML names for the model, by name or path; empty where it names none."""
    return scalar_in(entries(root).get("model")) or scalar_in(entries(root, "model").get("class_path"))


def new_name(kind: str, name: str, value: str) -> str | None:
    """What an argument of a model is called now, if that class had it once and has it no more.

    Args:
        kind: The model's class. One of a user's own that has such an argument keeps it.
        name: The argument.
        value: Its value; empty for one that is no scalar.
    """
    if name not in OF_GRPO:
        return None
    try:
        chosen = named(kind, GRPOModule)
    except ValueError:  # the parser says so
        return None
    if not (isinstance(chosen, type) and issubclass(chosen, GRPOModule)):
        return None
    arguments = parameters(chosen)
    gone = name not in arguments or (classes(arguments[name]) and ALONE.fullmatch(value))
    return OF_GRPO[name] if gone else None


def rename_keys(root: yaml.Node, kind: str) -> dict[str, str]:
    """Put the model's arguments of before into the groups of now; their names by those of before."""
    arguments = entries(root, "model", "init_args")
    names = {key: new_name(kind, key, scalar_in(value)) for key, value in arguments.items()}
    new = {key: name for key, name in names.items() if name}
    if not new:
        return {}
    node = entries(root, "model")["init_args"]
    node.value = [(key, value) for key, value in node.value if key.value not in new]
    for key, name in new.items():
        group, _, field = name.partition(".")
        groups = entries(node)
        if group not in groups:
            groups[group] = yaml.MappingNode("tag:yaml.org,2002:map", [])
            node.value.append((scalar(group), groups[group]))
        settings = entries(groups[group]).get("init_args", groups[group])  # of a class of one's own
        if isinstance(settings, yaml.MappingNode) and field not in entries(settings):
            settings.value.append((scalar(field), arguments[key]))
    return {f"model.{key}": f"model.{name}" for key, name in new.items()}


def scalar(text: str) -> yaml.ScalarNode:
    """A text in YAML."""
    return yaml.ScalarNode("tag:yaml.org,2002:str", text)


def rename_moved(root: yaml.Node) -> dict[str, str]:
    """Put the paths of now where classes are named by those of before; the former by the latter."""
    renamed, nodes, seen = dict[str, str](), [root], set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # an alias stands for the same node again
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif node.value in MOVED:
            renamed[node.value] = node.value = MOVED[node.value]
    return renamed


@rank_zero_only
def tell(renamed: dict[str, str]) -> None:
    """Say which names were read as others, so that they are changed one day."""
    if renamed:
        pairs = ", ".join(f"{old} as {new}" for old, new in renamed.items())
        print(f"Names of an earlier version are read as those of this one: {pairs}.", file=sys.stderr)

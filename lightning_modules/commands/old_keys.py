"""Settings and class paths of earlier versions, in a YAML or on the command line, read under their present names."""

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
ALONE = re.compile(r"(?!null$)-?\w+|\$\{oc\.env:.*\}")
"""Values of those whose name is that of a group now."""
MOVED = {
    "lightning_modules.rollout.hf_generator.HFGenerator": "lightning_modules.generators.HFGenerator",
    "lightning_modules.rollout.vllm_generator.VLLMGenerator": "lightning_modules.generators.VLLMGenerator",
    "lightning_modules.bfcl.BFCLModule": "lightning_modules.BFCLModule",
    "lightning_modules.resume.ExactResume": "lightning_modules.checkpointing.resume.ExactResume",
    "lightning_modules.resume.LastCheckpoint": "lightning_modules.checkpointing.resume.LastCheckpoint",
    "lightning_modules.board.RunLogger": "lightning_modules.callbacks.board.RunLogger",
    "lightning_modules.models.LoRA": "lightning_modules.policy.lora.LoRA",
    "lightning_modules.summary.RunSummary": "lightning_modules.callbacks.summary.RunSummary",
    "datamodules.bfcl.BFCLDataModule": "datamodules.BFCLDataModule",
    "datamodules.pretraining.PretrainingDataModule": "datamodules.PretrainingDataModule",
}
"""Classes that a `class_path` may name by where they were, and where they are."""
CONFIGS, CLASSES = ("--config", "-c"), ("--model", "--model.class_path")
OF_MODEL = re.compile(r"--model\.(init_args\.)?(\w+)")
IN_GROUP = re.compile(r"(--model\.(?:init_args\.)?\w+)\.(\w+)")
IN_BRACES = {"--model": ("model",), "--model.init_args": ("model", "init_args")}
"""Options whose value may be several settings in braces, and the keys that these lie under."""
REFERENCE = re.compile(r"(?<=\$\{model\.init_args\.)\w+(?=\})")
MAP, MERGE, NULL = (f"tag:yaml.org,2002:{kind}" for kind in ("map", "merge", "null"))


def read_old_keys(words: Sequence[str]) -> list[str]:
    """The command line with present names for old ones; a line on stderr says which.

    A YAML that holds such names is replaced by its text.

    Args:
        words: The command line. A class that it or a YAML names is that of all that follows, until another is named.

    Raises:
        ValueError: A setting is given in one place under both its names.
    """
    new, told, kind = list[str](), dict[str, str](), ""
    for option, value in options_in(words):
        way = IN_BRACES.get(option, ()) if value and value.startswith("{") else ()
        root = settings_in(value) if value and option in CONFIGS else written_out(value or "", *way) if way else None
        if root:
            kind = class_named(root) or kind
            if renamed := rename_moved(root) | rename_keys(root, kind, option if way else f"{value}"):
                told |= renamed
                root = entries(root, *way[:-1])[way[-1]] if way else root
                value = yaml.serialize(root, Dumper=yaml.SafeDumper, allow_unicode=True)
        elif value in MOVED:
            told[value] = value = MOVED[value]
        elif (key := OF_MODEL.fullmatch(option)) and (name := new_name(kind, key[2], value or "")):
            option = f"--model.{key[1] or ''}{name}"
            told[f"model.{key[2]}"] = f"model.{name}"
        if option in CLASSES and not way:
            kind = value or ""
        new.append(option if value is None else f"{option}={value}")
    tell(told)
    return new if told else list(words)


def nested_nulls(words: Sequence[str]) -> list[str]:
    """A command line with each `--model.loss.clip_high=null` as `--model.loss={clip_high: null}`.

    Of the former jsonargparse makes the text None, once it has found out that there is nothing, and refuses it.
    """
    options = [(*option, option[1] in ("null", "~") and IN_GROUP.fullmatch(option[0])) for option in options_in(words)]
    if not any(key for *_, key in options):
        return list(words)
    return [
        f"{key[1]}={{{key[2]}: null}}" if key else option if value is None else f"{option}={value}"
        for option, value, key in options
    ]


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
    return written_out(Path(file).read_text("utf-8"))


def written_out(text: str, *way: str) -> yaml.Node | None:
    """Settings as they stand in a text, with what `<<` brings into a mapping written there; None where it is no YAML.

    Args:
        text: The YAML.
        way: Keys that it is put under.
    """
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        for node in nodes_in(root):
            if isinstance(node, yaml.MappingNode) and any(key.tag == MERGE for key, _ in node.value):
                yaml.constructor.SafeConstructor().flatten_mapping(node)
                node.value = [*{str(key.value): (key, value) for key, value in node.value}.values()]  # its own ones win
    except (yaml.YAMLError, RecursionError):
        return None
    for key in reversed(way):
        root = yaml.MappingNode(MAP, [(scalar(key), root)])
    return root


def nodes_in(root: yaml.Node | None) -> Iterator[yaml.Node]:
    """All parts of a YAML, each once, those that hold others before these."""
    nodes, seen = [root] if root else [], set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # an alias stands for the same node again
            continue
        seen.add(id(node))
        yield node
        if isinstance(node, yaml.MappingNode):
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value


def entries(node: yaml.Node | None, *way: str) -> dict[str, yaml.Node]:
    """The entries by key of a mapping, or of the one under these keys in it; empty where there is none."""
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
    """The present name of an argument of a model, if an earlier version of that class had it.

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


def rename_keys(root: yaml.Node, kind: str, place: str) -> dict[str, str]:
    """Put the model's arguments of before into the groups of now; their names by those of before.

    Args:
        root: The settings.
        kind: The model's class.
        place: Where they are given, for what may be said of them.

    Raises:
        ValueError: One is given under both its names.
    """
    renamed: dict[str, str] = {}
    for way in (("model",), ("model", "init_args")):
        arguments = entries(root, *way)
        names = {key: new_name(kind, key, scalar_in(value)) for key, value in arguments.items()}
        new = {key: name for key, name in names.items() if name}
        if not new:
            continue
        node = entries(root, *way[:-1])[way[-1]]
        node.value = [(key, value) for key, value in node.value if key.value not in new]
        for key, name in new.items():
            name, _, field = name.partition(".")
            settings = group(node, name)
            if field in entries(settings):
                raise ValueError(
                    f"{place}: model.{key} is model.{name}.{field} now, which is given, too: leave one out"
                )
            if isinstance(settings, yaml.MappingNode):  # anything else is refused by what follows
                settings.value.append((scalar(field), arguments[key]))
        renamed |= new
    for part in nodes_in(root) if renamed else ():
        if isinstance(part, yaml.ScalarNode):
            part.value = REFERENCE.sub(lambda found: renamed.get(found[0], found[0]), part.value)
    return {f"model.{key}": f"model.{name}" for key, name in renamed.items()}


def group(arguments: yaml.Node, name: str) -> yaml.Node:
    """The settings of a group among the arguments of a model, which is made where there is none."""
    found = entries(arguments).get(name, yaml.MappingNode(MAP, []))
    if isinstance(found, yaml.ScalarNode) and found.tag != NULL:  # a class of one's own, by its path
        found = yaml.MappingNode(MAP, [(scalar("class_path"), found)])
    put(arguments, name, found)
    held = entries(found)
    if "class_path" not in held or isinstance(held.get("init_args"), yaml.MappingNode):
        return held.get("init_args", found)
    settings = yaml.MappingNode(MAP, [])
    put(found, "init_args", settings)
    return settings


def put(mapping: yaml.Node, name: str, value: yaml.Node) -> None:
    """Let a key of a mapping have this value, in the place of another or of none."""
    mapping.value = [(key, held) for key, held in mapping.value if key.value != name] + [(scalar(name), value)]


def scalar(text: str) -> yaml.ScalarNode:
    """A text in YAML."""
    return yaml.ScalarNode("tag:yaml.org,2002:str", text)


def rename_moved(root: yaml.Node) -> dict[str, str]:
    """Put the paths of now where classes are named by those of before; the former by the latter."""
    renamed = dict[str, str]()
    for node in nodes_in(root):
        if isinstance(node, yaml.ScalarNode) and node.value in MOVED:
            renamed[node.value] = node.value = MOVED[node.value]
    return renamed


@rank_zero_only
def tell(renamed: dict[str, str]) -> None:
    """Print which old names were read as which present ones, so that they can be changed."""
    if renamed:
        pairs = ", ".join(f"{old} as {new}" for old, new in renamed.items())
        print(f"Names of an earlier version are read as those of this one: {pairs}.", file=sys.stderr)

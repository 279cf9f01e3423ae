"""Settings and class paths of earlier versions, in a YAML or on the command line, read under their present names."""

import re
import sys
from collections.abc import Sequence

import yaml
from lightning.pytorch.utilities import rank_zero_only

from datamodules.system.command_line import NULL
from lightning_modules.commands.given import Given, arguments_in
from lightning_modules.commands.options import classes, named, parameters
from lightning_modules.commands.yaml_nodes import entries, mapping, nodes_in, part, put, scalar_in, take, written_out
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
    "lightning_modules.resume.LastCheckpoint": "lightning_modules.checkpointing.last.LastCheckpoint",
    "lightning_modules.checkpointing.resume.LastCheckpoint": "lightning_modules.checkpointing.last.LastCheckpoint",
    "lightning_modules.board.RunLogger": "lightning_modules.callbacks.board.RunLogger",
    "lightning_modules.models.LoRA": "lightning_modules.policy.lora.LoRA",
    "lightning_modules.summary.RunSummary": "lightning_modules.callbacks.summary.RunSummary",
    "datamodules.bfcl.BFCLDataModule": "datamodules.BFCLDataModule",
    "datamodules.pretraining.PretrainingDataModule": "datamodules.PretrainingDataModule",
}
"""Classes that a `class_path` may name by where they were, and where they are."""
OF_MODEL = re.compile(r"--model\.(init_args\.)?(\w+)")
IN_BRACES = {"--model": ("model",), "--model.init_args": ("model", "init_args")}
"""Options whose value may be several settings in braces, and the keys that these lie under."""
REFERENCE = re.compile(r"(?<=\$\{model\.init_args\.)\w+(?=\})")


def read_old_keys(given: Sequence[Given]) -> list[Given]:
    """The command line with present names for old ones; a line on stderr says which.

    A YAML that holds such names is replaced by its text.

    Args:
        given: The command line. A class that it or a YAML names is that of all that follows, until another is named.

    Raises:
        ValueError: A setting is given in one place under both its names.
    """
    new, told, kind = list[Given](), dict[str, str](), ""
    for one in given:
        value = one.value or ""
        way = IN_BRACES.get(one.option, ()) if value.startswith("{") else ()
        held = one._replace(settings=written_out(value, *way)) if way else one
        kind = held.kind() or kind
        if root := held.settings:
            if renamed := rename_moved(root) | rename_keys(root, kind, one.option if way else value):
                told |= renamed
                one = one.rewritten(part(root, *way))
        elif value in MOVED:
            told[value] = MOVED[value]
            one = one._replace(value=MOVED[value])
        elif (key := OF_MODEL.fullmatch(one.option)) and (name := new_name(kind, key[2], value)):
            told[f"model.{key[2]}"] = f"model.{name}"
            one = one._replace(option=f"--model.{key[1] or ''}{name}")
        new.append(one)
    tell(told)
    return new


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
    renamed = dict[str, str]()
    for node in arguments_in(root):
        names = {key: new_name(kind, key, scalar_in(value)) for key, value in entries(node).items()}
        new = {key: name for key, name in names.items() if name}
        for key, value in take(node, new).items():
            name, _, field = new[key].partition(".")
            settings = group(node, name)
            if field in entries(settings):
                raise ValueError(
                    f"{place}: model.{key} is model.{name}.{field} now, which is given, too: leave one out"
                )
            if isinstance(settings, yaml.MappingNode):  # anything else is refused by what follows
                put(settings, field, value)
        renamed |= new
    for node in nodes_in(root) if renamed else ():
        if isinstance(node, yaml.ScalarNode):
            node.value = REFERENCE.sub(lambda found: renamed.get(found[0], found[0]), node.value)
    return {f"model.{key}": f"model.{name}" for key, name in renamed.items()}


def group(arguments: yaml.Node, name: str) -> yaml.Node:
    """The settings of a group among the arguments of a model, which is made where there is none."""
    found = entries(arguments).get(name, mapping())
    if isinstance(found, yaml.ScalarNode) and found.tag != NULL:  # a class of one's own, by its path
        found = put(mapping(), "class_path", found)
    put(arguments, name, found)
    held = entries(found)
    if "class_path" not in held or isinstance(held.get("init_args"), yaml.MappingNode):
        return held.get("init_args", found)
    put(found, "init_args", settings := mapping())
    return settings


def rename_moved(root: yaml.Node) -> dict[str, str]:
    """Put the paths of now where classes are named by those of before; the former by the latter."""
    renamed = dict[str, str]()
    for node in nodes_in(root):
        if isinstance(node, yaml.ScalarNode) and node.value in MOVED:
            renamed[node.value] = MOVED[node.value]
            node.value = MOVED[node.value]
    return renamed


@rank_zero_only
def tell(renamed: dict[str, str]) -> None:
    """Print which old names were read as which present ones, so that they can be changed."""
    if renamed:
        pairs = ", ".join(f"{old} as {new}" for old, new in renamed.items())
        print(f"Names of an earlier version are read as those of this one: {pairs}.", file=sys.stderr)

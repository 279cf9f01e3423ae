"""The functions of the shipped corpus as objects: their tools as rows offer them, and arguments drawn for them."""

import random
import re
from dataclasses import dataclass
from typing import Any

from datamodules.toolbox.functions import CATALOGUE
from datamodules.toolbox.values import sample_value


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function: its kind and options, the phrase that carries it, its default if it is optional."""

    name: str
    kind: str
    options: str
    default: str | None
    phrase: str

    @property
    def type(self) -> str:
        """The type in xLAM's words, such as `int, optional`."""
        base = {"int": "int", "year": "int", "float": "float", "flag": "bool", "ilist": "List[int]", "dict": "Dict"}
        text = base.get(self.kind, "List[str]" if self.kind == "list" else "str")
        return text if self.default is None else f"{text}, optional"

    def schema(self) -> dict[str, Any]:
        """The parameter as xLAM describes it."""
        schema: dict[str, Any] = {"description": self._description(), "type": self.type}
        if self.default not in (None, "none", "any"):
            casts = {"int": int, "float": float, "bool": lambda text: text == "True"}
            schema["default"] = casts.get(self.type.split(",")[0], str)(self.default)
        return schema

    def _description(self) -> str:
        name = self.name.replace("_", " ")
        if self.kind == "flag":
            return f"Whether {self.phrase}."
        if self.kind == "enum":
            return f"The {name}: {self.options.replace(',', ', ')}."
        if self.kind in ("int", "float"):
            return f"The {name}, {self.options.replace(',', ' to ')}."
        if self.kind == "dict":
            return "With " + " and ".join(field.split(":")[0] for field in self.options.split(",")) + "."
        if self.kind in ("list", "ilist"):
            return f"The {name}, several of them."
        return f"The {name}." if name == self.kind else f"The {name}, a {self.kind}."


@dataclass(frozen=True)
class Function:
    """A function of the catalogue."""

    name: str
    action: str
    domain: str
    parameters: tuple[Parameter, ...]
    unseen: bool

    def tool(self) -> dict[str, Any]:
        """The function as one entry of an xLAM row's `tools`."""
        parameters = {parameter.name: parameter.schema() for parameter in self.parameters}
        return {"name": self.name, "description": self.action.capitalize() + ".", "parameters": parameters}


def parse_catalogue(text: str) -> list[Function]:
    """Read the catalogue's lines; every tenth function of a domain is an unseen one."""
    functions: list[Function] = []
    domain, place = "", 0
    for line in text.splitlines():
        if line.startswith("#"):
            domain, place = line[2:], 0
            continue
        name, action, *rest = (part.strip() for part in line.split(" | "))
        place += 1
        functions.append(Function(name, action, domain, tuple(map(_parse_parameter, rest)), place == 10))
    return functions


def _parse_parameter(text: str) -> Parameter:
    match = re.fullmatch(r"(\w+):(\w+)(?:\(([^)]*)\))?(?:=(\S+))? (.*)", text)
    if match is None:
        raise ValueError(f"The catalogue's parameter {text!r} does not read name:kind(options)=default phrase.")
    name, kind, options, default, phrase = match.groups()
    return Parameter(name, kind, options or "", default, phrase)


FUNCTIONS = parse_catalogue(CATALOGUE)


def sample_arguments(function: Function, rng: random.Random, held_out: bool) -> dict[str, Any]:
    """Draw the arguments of one call: all required ones, and each optional one with probability 0.4."""
    chosen = (p for p in function.parameters if p.default is None or rng.random() < 0.4)
    return {p.name: sample_value(p.kind, p.options, rng, held_out) for p in chosen}

"""More pre-training text for the tiny base model in the study: the same calls of the same functions, as code or prose.

A document shows functions and which values some were used with, and goes on with what each value was for. Both forms
come from the same draws, so that the arms that go on from them have read the same and differ in how it was written. No
document holds a request, a list of tools or `<think>`.
"""

import random
from typing import Any

from datamodules.toolbox.catalogue import Function
from datamodules.toolbox.pretraining import Message, PretrainingDataModule, invented_function
from datamodules.toolbox.values import sample_value

Use = tuple[Function, dict[str, Any]]


def form_document(index: int, seed: int, code: bool) -> list[Message]:
    """One document, a chat of two messages; the same numbers give the same uses in either form."""
    rng = random.Random(f"form-{seed}-{index}")
    functions = [invented_function(rng) for _ in range(rng.randint(1, 3))]
    uses = [  # each with a value for all parameters, so that the order tells which is whose
        (function, {p.name: sample_value(p.kind, p.options, rng, held_out=False) for p in function.parameters})
        for function in rng.choices(functions, k=rng.randint(1, 4))
    ]
    lines = _code if code else _prose
    shown, said = zip(*(lines(use) for use in uses), strict=True)
    texts = [*(_definition(function) if code else _sentence(function) for function in functions), *shown], said
    return [{"role": role, "content": "\n".join(text)} for role, text in zip(("user", "assistant"), texts, strict=True)]


def _definition(function: Function) -> str:
    return f"def {function.name}({', '.join(p.name for p in function.parameters)}):  # {function.action}"


def _sentence(function: Function) -> str:
    return f"There is {function.name} to {function.action}: it takes {', '.join(p.name for p in function.parameters)}."


def _code(use: Use) -> tuple[str, str]:
    """A call by position, and the same call by keyword."""
    function, values = use
    given = ", ".join(map(repr, values.values()))
    named = ", ".join(f"{name}={value!r}" for name, value in values.items())
    return f"{function.name}({given})", f"{function.name}({named})"


def _prose(use: Use) -> tuple[str, str]:
    """What a function was used with, and what each value was for."""
    function, values = use
    given = ", ".join(map(str, values.values()))
    named = " ".join(f"The {name} was {value}." for name, value in values.items())
    return f"{function.name} was used with {given}.", f"To {function.action} there was {function.name}. {named}"


class CodeDataModule(PretrainingDataModule):
    """Documents of code."""

    def document(self, index: int) -> list[Message]:
        """The chat of an index of the epoch."""
        return form_document(index, self.hparams.seed, code=True)


class ProseDataModule(PretrainingDataModule):
    """The same documents as prose."""

    def document(self, index: int) -> list[Message]:
        """The chat of an index of the epoch."""
        return form_document(index, self.hparams.seed, code=False)

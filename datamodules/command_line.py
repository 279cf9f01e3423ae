"""What the commands share: whatever is wrong with the input, they end with one sentence that says so."""

import re
import sys
from typing import IO, NoReturn

from jsonargparse import ArgumentParser

from datamodules.escaping import visible
from datamodules.redaction import redact

SAYS_NOTHING = re.compile(
    "Does not validate against|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value type:"
    r"|Given value: (NestedArg|Namespace|{)|Problem with given class_path"
)
"""Lines in which jsonargparse tells what it tried and what it was given as a whole."""
LACKS = re.compile(r'Parser key "(\w+)": the following arguments are required: (.+)')
"""What jsonargparse says of a class whose argument has no default and no value."""


class SentenceParser(ArgumentParser):
    """Ends bad options with one sentence on the last line, not two screens of usage and of all that was tried."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report as jsonargparse does, with exit code 2, in one sentence."""
        super().error(sentence(message), ex)

    def print_usage(self, file: IO[str] | None = None) -> None:
        """Print nothing: an error message already names the command that shows the options."""


def refuse(error: Exception) -> NoReturn:
    """End the command with an error's message as one sentence and exit code 1."""
    sys.exit(f"error: {sentence(str(error))}")


def sentence(message: str) -> str:
    """One line of an error message of several, without what says nothing about the cause."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    kept = [line for line in lines if line and not SAYS_NOTHING.match(line)]
    return visible(redact(LACKS.sub(_ask, " ".join(kept) or message)))


def _ask(lacks: re.Match[str]) -> str:
    names = " and ".join(f"--{lacks[1]}.{name}" for name in lacks[2].split(", "))
    return f"{names} must be given, on the command line or in a YAML: there is no default."

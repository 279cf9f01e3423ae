"""The `bfcl-eval` package as a source: its folder and version, its system prompt, its parsers of Java and JavaScript.

The package is used by path and never imported, because importing it makes folders and asks for a dozen vendors' SDKs.
"""

import json
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rewards import decode_bfcl
from rewards.bfcl.decode import with_brackets
from rewards.parser import MAX_ANSWER

INSTALLED = "bfcl_eval"
RELEASES = {"2025.8.6.2": 3, "2026.3.23": 4}
"""The releases whose scores are known to be reproduced, and the version of BFCL in each."""
PARSERS = {
    "java": ("java_parser.py", "parse_java_function_call", "tree_sitter_java"),
    "javascript": ("js_parser.py", "parse_javascript_function_call", "tree_sitter_javascript"),
}
"""File, function and grammar of the official parsers."""

Decoder = Callable[[str], tuple[Any, str | None]]


@dataclass(frozen=True)
class BFCLPackage:
    """A release of `bfcl-eval`.

    Attributes:
        folder: Its `bfcl_eval` folder.
        release: Release of the package, such as 2025.8.6.2.
    """

    folder: Path
    release: str

    @property
    def version(self) -> int:
        """Version of BFCL: 3 or 4."""
        return RELEASES[self.release]

    @property
    def prefix(self) -> str:
        """Prefix of the names of its data and result files."""
        return f"BFCL_v{self.version}_"


def find_package(path: str) -> BFCLPackage:
    """Find a release of `bfcl-eval`.

    Args:
        path: `bfcl_eval` for the installed one, or a folder that one was unpacked into (`pip install --no-deps
            --target`).

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is of another release than those whose scores are reproduced.
    """
    spec = find_spec(INSTALLED) if path == INSTALLED else None
    folder = Path(str(spec.origin)).parent if spec else Path(path).expanduser() / INSTALLED
    v3, v4 = RELEASES
    if not (folder / "data").is_dir():
        raise FileNotFoundError(
            f"the package bfcl-eval is not installed here: pip install --no-deps bfcl-eval=={v3}"
            if path == INSTALLED
            else f"data.path: {path} holds no package bfcl_eval: pip install --no-deps --target {path} bfcl-eval=={v4}"
        )
    found = [distribution.version for distribution in distributions(name="bfcl-eval", path=[str(folder.parent)])]
    release = found[0] if found else "of an unknown release"
    if release not in RELEASES:
        raise ValueError(
            f"data.path: the bfcl-eval in {folder.parent} is {release}; the official scores are reproduced for {v3} "
            f"(BFCL v3) and {v4} (BFCL v4) only: install one of these"
        )
    return BFCLPackage(folder, release)


def system_prompt(package: BFCLPackage, functions: list[dict[str, Any]]) -> str:
    """The official system prompt of models that are prompted, with the descriptions of the functions in it."""
    texts = _prompt_texts(package)
    if package.version == 3:  # the functions are written as Python prints them
        return texts["DEFAULT_SYSTEM_PROMPT"].format(functions=functions)
    style = texts["PROMPT_STYLE_TEMPLATES"]["classic"]
    form, types = texts["OUTPUT_FORMAT_MAPPING"]["python"], texts["PARAM_TYPE_MAPPING"]["python"]
    return texts["PROMPT_TEMPLATE_MAPPING"]["plaintext"].format(
        persona=style["persona"],
        task=style["task"],
        tool_call_format=style["tool_call_no_tag"].format(output_format=form, param_types=types),
        multiturn_behavior=style["multiturn_behavior"],
        available_tools=style["available_tools"].format(format="json", functions=json.dumps(functions, indent=4)),
    )


def instructions(package: BFCLPackage) -> str:
    """The official system prompt up to where the functions stand, as `data.system_prompt` takes it.

    With `sources.tools.bfcl_tools` below it a model is asked as it will be on BFCL v3.
    """
    return system_prompt(package, []).rstrip().removesuffix("[]")


@lru_cache(maxsize=8)
def _prompt_texts(package: BFCLPackage) -> dict[str, Any]:
    return runpy.run_path(str(package.folder / "constants" / "default_prompts.py"))


def registered(package: BFCLPackage, model_name: str) -> bool:
    """Whether the official scorer knows a model of that name."""
    table = (package.folder / "constants" / "model_config.py").read_text(encoding="utf-8")
    return f'"{model_name}": ModelConfig(' in table


@lru_cache(maxsize=8)
def decoder(package: BFCLPackage, language: str) -> Decoder:
    """The function that decodes answers in a language as the official decoders do.

    Args:
        package: Gives the parsers of Java and JavaScript, which evaluate nothing; Python is decoded by `decode_bfcl`.
        language: "python", "java" or "javascript".

    Returns:
        A function from the text of an answer to `(calls, None)` or `(None, what is wrong)`, which never raises.

    Raises:
        ValueError: The parser needs a package that is not installed.
    """
    if language == "python":
        return partial(decode_bfcl, version=package.version)
    file, function, grammar = PARSERS[language]
    if find_spec(grammar) is None or find_spec("tree_sitter") is None:
        raise ValueError(
            f"data.categories: {language} needs tree-sitter==0.21.3, tree-sitter-java==0.21.0 and "
            "tree-sitter-javascript==0.21.4: install these, or leave that category out"
        )
    parse = runpy.run_path(str(package.folder / "model_handler" / "parser" / file))[function]

    def decode(text: str) -> tuple[Any, str | None]:
        if len(text) > MAX_ANSWER:
            return None, f"the answer is longer than {MAX_ANSWER} characters"
        try:
            return parse(with_brackets(text)[1:-1]), None
        except Exception as error:  # the parsers raise Exception itself, and the official scorer catches it
            return None, f"the answer cannot be read as a call: {error}"

    return decode

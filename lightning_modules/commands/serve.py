"""`funreason serve`: vLLM's OpenAI server on a model, with the parsers that read the form it was trained in."""

import argparse
import importlib.util
import json
import os
import sys
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewards import CallFrame

PLUGIN = "lightning_modules.generators.vllm_parsers"
"""The module that vLLM imports for what its own parsers do not read."""
OURS = "funreason"  # the name of the parsers in it
SERVER = "vllm.entrypoints.openai.api_server"  # `vllm serve` does not start in builds for the CPU


def server_arguments(model: str) -> list[str]:
    """The arguments of vLLM's server under which it answers as the model was trained and evaluated.

    Hermes blocks are read by the parser that vLLM has for them; the other forms, and the chain of thought, by ours.
    Sampling is the model's own distribution without what its generation config may add, greedy unless a request says
    otherwise.

    Args:
        model: A run folder (its `hf/`) or a folder that `funreason export` has written.

    Returns:
        Words of the command line. Later ones of the same name win.

    Raises:
        FileNotFoundError: There is no model of that name, or one of its files is missing.
        ValueError: The model does not say in which form it was trained, or its folder holds no safetensors of a model.
    """
    from datamodules.chat.form import frame_of, recorded_form
    from datamodules.chat.tokenizer import load_tokenizer, resolve_model_folder
    from lightning_modules.policy.weight_files import has_weights
    from rewards import FRAMES

    folder, tokenizer = resolve_model_folder(model), load_tokenizer(model)
    form = recorded_form(tokenizer)
    if form is None:
        raise ValueError(
            f"{model} does not say in which form it was trained: serve what `funreason fit` or `funreason export` has "
            "written, and any other model with vLLM itself"
        )
    if Path(folder).is_dir():
        has_weights(Path(folder))  # or none, for the server to draw; what is not whole is refused
    frame = frame_of(form, tokenizer)
    hermes = frame is not None and _marks(frame) == _marks(FRAMES["hermes"])
    arguments = ["--model", folder, "--served-model-name", model, "--host", "127.0.0.1"]
    arguments += ["--generation-config", "vllm", "--override-generation-config", json.dumps({"temperature": 0.0})]
    arguments += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes" if hermes else OURS]
    arguments += [] if hermes else ["--tool-parser-plugin", PLUGIN]
    if form.think:
        arguments += ["--reasoning-parser", OURS, "--reasoning-parser-plugin", PLUGIN]
    return arguments


def _marks(frame: "CallFrame") -> list[list[str]]:
    """The parts of a frame without their white space, which no reader minds."""
    return [part.split() for part in astuple(frame)]


def main(args: list[str] | None = None) -> None:
    """Run `funreason serve`: this process becomes the server."""
    parser = argparse.ArgumentParser(
        prog="funreason serve",
        usage="funreason serve MODEL [--port N] [any option of vLLM's server]",
        description="vLLM's OpenAI server on a run folder or its hf/, on 127.0.0.1:8000 unless said otherwise.",
        allow_abbrev=False,
    )
    parser.add_argument("model", help="a run folder (its hf/ is meant) or an exported folder")
    options, others = parser.parse_known_args(args)
    arguments = server_arguments(options.model)
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "vLLM is not installed beside this command: `make serve MODEL=...` makes an environment with it for the "
            "CPU, and `pip install -e '.[vllm]' -c constraints-gpu.txt` in this project's folder brings it for GPUs"
        )
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", SERVER, *arguments, *others])

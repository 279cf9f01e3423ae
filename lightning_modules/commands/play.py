"""`funreason play`: a local page to type a request, sample answers from one or two models, and look into them."""

import argparse
import importlib.util
import json
import os
import socket
import sys
from pathlib import Path

from datamodules.system.command_line import SentenceParser

PAGE = Path(__file__).resolve().parents[1] / "play" / "page.py"
DEMO_QUERY = "What will the weather be like in Oslo over the next 3 days?"
DEMO_TOOLS = json.dumps(
    [
        {
            "name": "get_weather",
            "description": "Forecast of the weather in a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        }
    ],
    indent=2,
)


def streamlit_arguments(runs: list[str], data: str | None, address: str, port: int) -> list[str]:
    """The arguments of Python that serve the page: no telemetry, no browser opened, no watch over files."""
    options = {
        "server.address": address,
        "server.port": port,
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "logger.hideWelcomeMessage": "true",  # which asks a server outside for this machine's address
    }
    given = [*(["--data", data] if data else []), *runs]
    flags = [f"--{name}={value}" for name, value in options.items()]
    return ["-m", "streamlit", "run", *flags, str(PAGE), "--", *given]


def page_options(args: list[str]) -> tuple[list[str], str | None]:
    """The options that the command passes to the page: the models, and the rows to open or None."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--data")
    parser.add_argument("runs", nargs="+")
    options = parser.parse_args(args)
    return list(dict.fromkeys(options.runs)), options.data


def main(args: list[str] | None = None) -> None:
    """Run `funreason play`: this process becomes the page's server."""
    parser = SentenceParser(prog="funreason play", description="A local page to sample from models and look into it.")
    parser.add_argument("runs", nargs="+", help="run folders (their hf/ is meant), Hugging Face folders or hub ids")
    parser.add_argument("--data", help="rows to open in the page, in any form")
    parser.add_argument("--address", default="127.0.0.1", help="where it listens; 0.0.0.0 is open to the network")
    parser.add_argument("--port", type=int, default=8501, help="where it listens")
    options = parser.parse_args(args)
    if importlib.util.find_spec("streamlit") is None:
        raise ValueError("Streamlit is not installed: `pip install -e '.[play]'` in this project's folder brings it")

    from datamodules.chat.tokenizer import load_tokenizer
    from datamodules.readers import read_rows
    from lightning_modules.policy.weights import check_model

    for run in options.runs:
        load_tokenizer(run)
        check_model(run)
    if options.data:
        next(read_rows(options.data))
    check_free(options.address, options.port)
    print(f"The page: http://{options.address}:{options.port} (Ctrl-C ends it)", flush=True)
    arguments = streamlit_arguments(options.runs, options.data, options.address, options.port)
    os.execv(sys.executable, [sys.executable, *arguments])


def check_free(address: str, port: int) -> None:
    """Refuse a place where nothing can listen.

    Raises:
        ValueError: Naming the option.
    """
    try:
        socket.create_server((address, port)).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"--address {address} --port {port}: nothing can listen there ({error}): give another port"
        ) from error

"""The `funreason` command: lists its commands, and imports the module of one when it is called."""

import difflib
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from datamodules.system.errors import one_sentence

TRAINER = "lightning_modules.cli"
COMMANDS = {
    "show": ("what will be trained: the rows, one of them decoded, rewards, memory, time", "show"),
    "data": ("rows of any form to the project's schema, with a report", "data"),
    "fit": ("train: --config configs/finetune.yaml (SRML) or configs/rl.yaml (EGPO)", TRAINER),
    "validate": ("validate a run on its validation rows", TRAINER),
    "test": ("score a model on rows, or on BFCL (--config configs/bfcl.yaml)", TRAINER),
    "predict": ("sample answers to rows and write them as JSON lines", TRAINER),
    "ask": ("put one request to a model", "ask"),
    "play": ("try models in the browser: groups, entropy, rewards, advantages", "play"),
    "serve": ("serve a model behind an OpenAI-compatible server", "serve"),
    "export": ("write the Hugging Face folder of a checkpoint", "export"),
}
"""A line about each command, and its module, in this package unless it has a dot."""
REPORTS = "said why the run ends"
PATIENCE = 5.0  # seconds that rank 0 waits for ranks that end as well, and may be a little behind


def overview() -> str:
    """The text of `funreason --help`."""
    lines = [f"  {name:<10}{line}" for name, (line, _) in COMMANDS.items()]
    more = "funreason COMMAND --help shows the options of a command; of a class: funreason fit --model.help=SRMLModule,"
    return "\n".join(
        [
            "usage: funreason COMMAND [options]",
            "",
            *lines,
            "",
            more,
            "of a setting of its: funreason fit --model.lora.help. funreason --version prints the version.",
            "Beside it: funreason-refine (refine rows before training), funreason-self-refine (rounds of both).",
        ]
    )


def main(args: Sequence[str] | None = None) -> None:
    """Run one command. Whatever goes wrong is one sentence and exit code 1; SIGTERM a checkpoint and 143."""
    try:
        with one_sentence(args) as words:
            run(words)
    except KeyboardInterrupt:  # a training has said by now how to resume it
        sys.exit(130)
    except SystemExit as end:
        if isinstance(end.code, str) and not first_to_report():
            sys.exit(1)
        raise


def first_to_report() -> bool:
    """Whether this rank is the first to report why the run ends; True if it cannot ask the others.

    They are counted by rank 0, and nowhere any more once it has ended, so that it waits for those that come to ask.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_initialized():
        return True
    try:
        store = dist.distributed_c10d._get_default_store()
        place, until = store.add(REPORTS, 1), time.monotonic() + PATIENCE
        while dist.get_rank() == 0 and store.add(REPORTS, 0) < dist.get_world_size() and time.monotonic() < until:
            time.sleep(0.05)
    except RuntimeError:  # rank 0 has ended
        return True
    return bool(place == 1)


def run(words: list[str]) -> None:
    """Run the command that the first word names."""
    name = words[0] if words else "--help"
    if name in ("-h", "--help", "help"):
        print(overview())
    elif name == "--version":
        print(f"funreason-lightning {version('funreason-lightning')}")
    elif name in COMMANDS:
        module = COMMANDS[name][1]
        if module == TRAINER:
            import_module(TRAINER).run(words)
        else:
            import_module(f"lightning_modules.commands.{module}").main(words[1:])
    else:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"is {near[0]} meant? " if near else ""
        print(f"error: there is no command {name}: {meant}funreason --help lists them.", file=sys.stderr)
        sys.exit(2)

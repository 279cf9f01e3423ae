"""Errors of a command as one sentence and an exit code; the traceback goes to a file, or with `--debug` to stderr."""

import argparse
import io
import os
import re
import shutil
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import jsonargparse

from datamodules.system.files import ROOT, write_text
from datamodules.system.redaction import redact
from datamodules.system.sentences import sentence

DEBUG = "--debug"
HULLS = ("arguments.py", "cli.py", "command_line.py", "errors.py", "main.py", "__main__.py")
"""What every command, and every constructor, runs inside."""
NO_SPACE = re.compile(r"PytorchStreamWriter|unexpected pos \d+ vs|iostream error|err(no|or) 28\b|No space left")
"""What torch, safetensors, Arrow and Python say of a full disk."""
NEARLY_NOTHING = 1 << 16  # bytes
OURS = (ROOT / "lightning_modules", ROOT / "datamodules", ROOT / "rewards")
JSONARGPARSE = Path(jsonargparse.__file__).parent
SPEAK = (*OURS, JSONARGPARSE)
"""Code whose ValueErrors, OSErrors and RuntimeErrors are sentences for the user."""
MAY_END = (*SPEAK, Path(argparse.__file__), *map(Path, find_spec("lightning").submodule_search_locations))
"""Code that ends a command on purpose: the parsers' and Lightning's, never a module that a setting names."""
EXIT = "<frozen _sitebuiltins>"  # where the built-in `exit` lies
LIBRARIES, STANDARD = ("site-packages", "dist-packages"), Path(sysconfig.get_path("stdlib"))  # where libraries lie
OF_PYTHON = (LookupError, AssertionError, AttributeError, TypeError, NameError, ArithmeticError, NotImplementedError)
"""Errors that are slips of code rather than of its input."""

run_folder: ContextVar[Path | None] = ContextVar("run_folder", default=None)
"""Where the run of this command writes; None until it is known."""


@contextmanager
def one_sentence(args: Sequence[str] | None = None) -> Iterator[list[str]]:
    """Turn every error of a command into one sentence and exit code 1.

    Args:
        args: Command line; `sys.argv` when None.

    Yields:
        The words of the command line but for `--debug`, which prints the traceback above the sentence.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug, outer = DEBUG in words, run_folder.set(None)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # rows may hold what a terminal's encoding has not
    try:
        yield [word for word in words if word != DEBUG]
    except SystemExit as end:
        if debug and end.__context__:  # what a parser, or a command within this one, has said in its own sentence
            traceback.print_exception(end.__context__)
        if stranger := _stranger(end):
            refuse(
                ValueError(f"{stranger} ends the process with sys.exit({end.code!r}); let it raise an error instead")
            )
        raise
    except BrokenPipeError as error:
        if error.filename or run_folder.get():
            refuse(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to print has no reader
        sys.exit(141)  # as the shell says of a command that `head` has ended
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        refuse(error)
    finally:
        run_folder.reset(outer)


def refuse(error: Exception) -> NoReturn:
    """End the command with an error as one sentence and exit code 1, and name the file that holds its traceback."""
    while isinstance(error, ExceptionGroup):  # "unhandled errors in a TaskGroup"
        error = error.exceptions[0]
    error = _of_user(error)
    if is_sentence := _is_sentence(error):
        text = sentence(str(error))
    else:
        text = _explained(error)
    file = _write_traceback(error, is_sentence)
    sys.exit(f"error: {text}{f' (traceback: {file})' if file else ''}")


def _stranger(end: SystemExit) -> str:
    """The file and line of foreign code that has ended the process; nothing where it may."""
    frames = traceback.extract_tb(end.__traceback__)
    last = next((frame for frame in reversed(frames) if frame.filename != EXIT), None)
    if last is None or any(place in (Path(last.filename), *Path(last.filename).parents) for place in MAY_END):
        return ""
    return f"{last.filename}, line {last.lineno},"


def _of_user(error: Exception) -> Exception:
    """What a class of the user's has raised while jsonargparse made it, which passes its words on; else the error."""
    cause: BaseException | None = error
    while isinstance(cause, Exception) and _is_said_in(cause, JSONARGPARSE):
        cause = cause.__cause__
    place = cause and _place(cause)
    return cause if isinstance(cause, Exception) and place and _is_foreign(place) else error


def _is_said_in(error: Exception, *folders: Path) -> bool:
    """Whether an error was raised in one of these folders."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and any(folder in Path(frames[-1].filename).parents for folder in folders)


def _place(error: BaseException) -> traceback.FrameSummary | None:
    """Where an error was raised, in this project or in a module of the user's; None if in libraries alone."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        ours = any(folder in file.parents for folder in OURS)
        if file.name not in HULLS if ours else _is_foreign(frame):
            return frame
    return None


def _is_foreign(frame: traceback.FrameSummary) -> bool:
    """Whether a frame is of a module of the user's: of no library, nor of this project."""
    file = Path(frame.filename)
    libraries = any(name in file.parts for name in LIBRARIES) or STANDARD in file.parents
    return not (frame.filename.startswith("<") or libraries or any(folder in file.parents for folder in OURS))


def _is_sentence(error: Exception) -> bool:
    """Whether an error was raised to tell the user something, by this project or by the parser."""
    if isinstance(error, OSError) and error.strerror:
        return False
    telling = isinstance(error, ValueError | OSError | RuntimeError) and not isinstance(error, OF_PYTHON)
    spoken = not error.__traceback__ or _is_said_in(error, *SPEAK)
    return telling and spoken and len(error.args) == 1 and bool(str(error).strip())


def _explained(error: Exception) -> str:
    """A sentence about an error that was raised for whoever writes code: what failed, and where that is no library."""
    kind, words, folder = type(error).__name__, sentence(str(error)), run_folder.get()
    text = f"{kind}: {words}" if words.strip() else kind
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name]
        text = f"{' and '.join(names)}: {error.strerror}" if names else sentence(error.strerror)
    place = _place(error)
    foreign = place is not None and _is_foreign(place)
    if place and not getattr(error, "filename", None):
        file = f"{place.filename}, line {place.lineno}" if foreign else Path(place.filename).relative_to(ROOT)
        text += f" (in {file})"
    if folder and folder.is_dir() and (NO_SPACE.search(text) or shutil.disk_usage(folder).free < NEARLY_NOTHING):
        text = f"{folder}: its disk is full, or another that is written ({text})"
    return f"{text}; this is likely a bug of the program" if isinstance(error, OF_PYTHON) and not foreign else text


def _write_traceback(error: Exception, is_sentence: bool) -> Path | None:
    """Write the traceback into the run's folder, or of what says too little elsewhere; None if it is nowhere."""
    text, folder = redact("".join(traceback.format_exception(error))), run_folder.get()
    text = text.encode("utf-8", "backslashreplace").decode()
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK", "0")
    if folder and folder.is_dir():
        file = folder / ("traceback.txt" if rank == "0" else f"traceback-{rank}.txt")
        try:
            write_text(file, text, fsync=False)
            return file
        except OSError:  # the folder may be what has failed
            pass
    if is_sentence or (isinstance(error, OSError) and error.filename):
        return None
    try:
        handle, name = tempfile.mkstemp(prefix="funreason-", suffix=".traceback.txt")
    except OSError:
        return None
    try:
        with open(handle, "w", encoding="utf-8") as out:
            out.write(text)
    except OSError:
        os.unlink(name)  # of a full disk it would be empty
        return None
    return Path(name)

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
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import jsonargparse

from datamodules.system.escaping import visible
from datamodules.system.files import ROOT, write_text
from datamodules.system.redaction import redact

SAYS_NOTHING = re.compile(
    "Does not validate against|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value type:"
    r"|Given value: (NestedArg|\[?Namespace|{)|Problem with given class_path|Expected 'typing\.Any' to be a class"
)
"""Lines in which jsonargparse tells what it tried and what it was given as a whole."""
NO_FUNCTION = re.compile(
    r"Type collections\.abc\.Callable\[.*?\] expects a function or a callable class: "
    r"(.*?)(\. Got value: Namespace\(.*)?$"
)
"""What it says of a function that it cannot make of a name or a class: the reason is in it."""
NO_GROUP = re.compile(r"""(Parser key "[\w.]+": )Unable to load config (['"])(.*?)\2( \1Unable to load config .*)?""")
"""What jsonargparse says of a value in the place of several settings, which it takes for the name of a YAML."""
MANY_PATHS = re.compile(r"""(Parser key "(?:val_)?path": )Expected a <class 'str'>\.? (?:Got|Given) value: \[.*""")
"""What it says of several files in the place of one."""
LACKS = re.compile(r'Parser key "(\w+)": the following arguments are required: (.+)')
"""What jsonargparse says of a class whose argument has no default and no value."""
NOT_MADE = re.compile(r"^( *)- Problem with given class_path .*\n((?:\1 +.*(?:\n|$))+)", re.MULTILINE)
"""What it says of a class that was found and cannot be made, among other kinds that the value could have been of."""
NO_CLASS = re.compile(
    r"Expected an instantiatable class, but [\w.]+ is (a protocol|abstract)|Option 'class_path' is not accepted"
    r"|(Not a valid subclass of|Does not implement protocol) \w+\.?( Got value: .*?)? Subclass types expect one of: .*"
    r"\(implicit class_path\)"
)
"""What jsonargparse says of settings that it cannot give to a class."""
NO_NAME = re.compile(
    r"Expected a dot import path string: (.+?)"
    r"( Expected a .*| Not a valid subclass of .*| Does not implement protocol .*| Given value: .*|$)"
)
"""What it says of a name that no class has."""
NO_PATH = re.compile(r"Expected a path but .+? either not accessible or invalid ")
"""What it says before the reason, of a value that could have been the name of a YAML."""
NO_MODULE = re.compile(r"No module named '([^']+)'(?: Given value: \S+)?")
NO_KIND = re.compile(
    r"Import path (?:(\S+) )?does not (implement protocol|correspond to a subclass of) (\w+)(?: Given value: (\S+))?"
)
"""What it says of a class that is none of those wanted."""
EXPECTED = r"Expected an? (?:<class '\w+'>|typing\.Literal\[[^\]]*\])\.? "
ONE_OF = re.compile(rf"((?:{EXPECTED})+)(?:Got|Given) value: ")
"""What it says of a value that is none of those wanted, kind by kind."""
ONE_PATH = "takes one file or folder, and got a list: put its files into a folder, and give that"
LIST = re.compile(r"Subtypes: (?!.*\blist\[)[^\n]*\n(?s:.*)Given value type: <class 'list'>")
"""What it says where a list is given and none is taken."""
DEBUG = "--debug"
HULLS = ("arguments.py", "cli.py", "command_line.py", "errors.py", "main.py", "__main__.py")
"""What every command, and every constructor, runs inside."""
NO_SPACE = re.compile(r"PytorchStreamWriter|unexpected pos \d+ vs|iostream error|err(no|or) 28\b|No space left")
"""What torch, safetensors, Arrow and Python say of a full disk."""
NEARLY_NOTHING = 1 << 16  # bytes
LONGEST = 900  # characters of a sentence
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


def sentence(message: str) -> str:
    """One line of an error message of several, without what says nothing about the cause, and not a whole screen."""
    if message.startswith("Does not validate") and (found := NOT_MADE.search(message)):
        message = found[2]
    kept = list[str]()
    for line in (line.strip().removeprefix("- ") for line in message.splitlines()):
        reason = NO_FUNCTION.sub(r"\1", line)
        if reason and not SAYS_NOTHING.match(reason) and (reason == line or reason not in kept):
            kept.append(reason)
    text = NO_GROUP.sub(
        r"\1takes several settings, key: value, or a YAML with them, and got \3", " ".join(kept) or message
    )
    text = ONE_OF.sub(_one_of, NO_PATH.sub("", MANY_PATHS.sub(rf"\1{ONE_PATH}", text)))
    text = NO_MODULE.sub(
        r"there is no module \1: install it, or name its folder, as PYTHONPATH=. before the command", text
    )
    if text.endswith('":') and any(map(NO_FUNCTION.search, message.splitlines())):
        text += " takes the name of a function, or class_path and init_args in a YAML"
    text = visible(redact(LACKS.sub(_ask, _on_classes(text, message))))
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


def _no_kind(key: str, found: re.Match[str]) -> str:
    """That a class is of another kind, and what makes one of its own."""
    before, how, kind, after = found.groups("")
    alike = f", with methods annotated as those of {kind} are, down to what they return" if "protocol" in how else ""
    return f"{before}{after} is no {kind}: give the import path of one{alike}; --{key}.help shows some"


def _on_classes(text: str, message: str) -> str:
    """What jsonargparse says of classes in a sentence, in words for who writes settings."""
    keys = re.findall(r'Parser key "([\w.]+)"', text) or [""]
    key = ".".join(keys)
    text = re.sub(rf"--{keys[-1]}(=CLASS|\.help)", rf"--{key}\1", text)  # of a parser within this one
    text = NO_NAME.sub(
        rf"\1 names no class that is known here: give one by its import path, or its settings; --{key}.help shows them",
        text,
    )
    text = NO_KIND.sub(partial(_no_kind, key), text)
    if not (found := NO_CLASS.search(text)):
        return text
    head, value = text[: found.start()], text[found.end() :].partition("Given value: ")[2]
    if head and not head.endswith('": '):  # there is a reason of a class that was found
        return head.rstrip()
    if LIST.search(message):
        return f"{head}takes class_path and init_args, and got a list: leave out the dash before them"
    if "'class_path'" in message:
        return f"{head}beside class_path stands a setting of the class: put all of them below init_args"
    if value:
        return f"{head}takes several settings, key: value, and got {value}"
    return (
        f"{head}has settings and no class: name one before them, by --{key}=CLASS or class_path in a YAML, with its "
        f"import path; --{key}.help shows them"
    )


def _one_of(found: re.Match[str]) -> str:
    """The kinds of values that are wanted, as "takes int, 'a' or 'b', and got "."""
    kinds = re.findall(r"<class '(\w+)'>|Literal\[([^\]]*)\]", found[1])
    *others, last = ", ".join(name or words for name, words in kinds).split(", ")
    return f"takes {', '.join(others)} or {last}, and got " if others else f"takes {last}, and got "


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


def _ask(lacks: re.Match[str]) -> str:
    names = " and ".join(f"--{lacks[1]}.{name}" for name in lacks[2].split(", "))
    return f"{names} must be given, on the command line or in a YAML: there is no default."

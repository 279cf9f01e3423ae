"""What parsers say of settings, in one sentence of few words for who writes them."""

import re
from functools import partial

from datamodules.system.escaping import visible
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
LONGEST = 900  # characters of a sentence


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


def _ask(lacks: re.Match[str]) -> str:
    names = " and ".join(f"--{lacks[1]}.{name}" for name in lacks[2].split(", "))
    return f"{names} must be given, on the command line or in a YAML: there is no default."

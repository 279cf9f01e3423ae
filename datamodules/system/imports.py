"""Imports of the project's modules, read from their source without running it."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from datamodules.system.files import ROOT

PACKAGES = ("rewards", "datamodules", "lightning_modules")


def imports_of(module: str, late: bool = False, root: Path = ROOT) -> set[str]:
    """The names of the modules that a module imports.

    Args:
        module: Dotted name of a module or package of `PACKAGES`.
        late: Whether to also give imports inside functions and those for type checkers only.
        root: The folder that holds the packages.

    Returns:
        Dotted names. A name taken from a package of ours stands for the module that its `__init__` takes it from
        (`from rewards import render_calls` gives `rewards.render`); modules of others are named as in the import.
    """
    found = set()
    for node in _imports(ast.parse(_file(module, root).read_bytes()).body, late):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            found |= {_home(node.module or "", alias.name, root) for alias in node.names}
    return found


def sources_of(modules: Iterable[str], root: Path = ROOT) -> list[Path]:
    """The files of our packages that modules reach by what they import at once, their own included.

    Args:
        modules: Dotted names.
        root: The folder that holds the packages.

    Returns:
        The files in the order of their paths; late imports are not followed.
    """
    reached, to_read = set(), set(modules)
    while to_read:
        reached |= to_read
        named = set().union(*(imports_of(module, root=root) for module in to_read))
        to_read = {name for name in named if name.split(".")[0] in PACKAGES} - reached
    return sorted(_file(module, root) for module in reached)


def _imports(nodes: Iterable[ast.AST], late: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            types_only = isinstance(node, ast.If) and not late and "TYPE_CHECKING" in ast.unparse(node.test)
            yield from _imports(node.orelse if types_only else ast.iter_child_nodes(node), late)


def _home(module: str, name: str, root: Path) -> str:
    """The module that `from module import name` is about."""
    if module.split(".")[0] not in PACKAGES:
        return module
    if _file(f"{module}.{name}", root).is_file():
        return f"{module}.{name}"
    file = _file(module, root)
    if file.name == "__init__.py":
        for node in ast.parse(file.read_bytes()).body:
            for alias in node.names if isinstance(node, ast.ImportFrom) else []:
                if name == (alias.asname or alias.name):
                    return _home(node.module or "", alias.name, root)
    return module


def _file(module: str, root: Path) -> Path:
    path = root.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

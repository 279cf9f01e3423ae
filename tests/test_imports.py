"""The packages are those of this checkout, importing them stays light, and imports point one way (`ORDER`)."""

import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from datamodules.system.imports import imports_of

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("rewards", "datamodules", "lightning_modules")
ORDER = """
rewards
datamodules.example  datamodules.system
datamodules.bfcl.package  datamodules.packing  datamodules.holdout  datamodules.sources  datamodules.toolbox
datamodules.chat  datamodules.loading  datamodules.readers  datamodules.rows  datamodules.reports
datamodules.xlam
datamodules.encoding
datamodules.cache  datamodules.gold
datamodules.base
datamodules.sft  datamodules.prompts
datamodules.bfcl  datamodules.refinement  datamodules.toolbox.pretraining  datamodules.toolbox.__main__
lightning_modules.objectives  lightning_modules.ranks  lightning_modules.mesh
lightning_modules.policy
lightning_modules.generators  lightning_modules.checkpointing
lightning_modules.rollout.rollout  lightning_modules.strategies
lightning_modules.metrics  lightning_modules.optimization
lightning_modules.rollout
lightning_modules.evaluation
lightning_modules.base
lightning_modules.srml  lightning_modules.grpo  lightning_modules.bfcl
lightning_modules.callbacks
lightning_modules.commands
lightning_modules.cli
lightning_modules.commands.preview
lightning_modules.commands.show  lightning_modules.play  lightning_modules.demo  lightning_modules.__main__
"""
"""Rooms and files, from the ground up: each imports from lines above its own, and from itself.

A file that stands here by itself is not part of the room that it lies in.
"""
LEVELS = {name: level for level, line in enumerate(ORDER.strip().splitlines()) for name in line.split()}


def name_of(file):
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = sorted(name_of(file) for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
imports = cache(lambda module: sorted(imports_of(module, late=True)))  # those inside functions and for types too


def of_ours(module):
    """The modules of this project that a module imports."""
    return [name for name in imports(module) if name.partition(".")[0] in PACKAGES]


def room_of(module):
    """The longest beginning of a module's name that stands in `ORDER`."""
    parts = module.split(".")
    return next((room for n in range(len(parts), 0, -1) if (room := ".".join(parts[:n])) in LEVELS), None)


@pytest.mark.parametrize("name", PACKAGES)
def test_package_comes_from_this_checkout(name):
    module = __import__(name)
    assert Path(module.__file__) == ROOT / name / "__init__.py"
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.slow
def test_imports_bring_in_nothing_that_only_some_runs_need():
    code = "import sys, lightning_modules.cli; print(sorted({'vllm', 'openai', 'peft'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "room, others", [("rewards", set()), ("lightning_modules.objectives", {"torch"})], ids=["rewards", "objectives"]
)
def test_pure_rooms_import_the_standard_library_and_each_other(room, others):
    for module in MODULES:
        if room_of(module) == room:
            for name in imports(module):
                known = name.partition(".")[0] in {*sys.stdlib_module_names, *others}
                assert known or room_of(name) == room, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    for name in of_ours(module):
        room, other = room_of(module), room_of(name)
        assert room, f"say in {Path(__file__).name}: ORDER where {module} stands"
        assert other, f"{module} imports {name}: take it from the file that it is written in"
        assert room == other or LEVELS[other] < LEVELS[room], f"{module} imports {name}, which stands above it"


def test_no_circle_of_files():
    try:
        TopologicalSorter({module: of_ours(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))

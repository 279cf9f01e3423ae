"""The packages are those of this checkout, and importing them stays light."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["rewards", "datamodules", "lightning_modules"])
def test_package_comes_from_this_checkout(name):
    module = __import__(name)
    assert Path(module.__file__) == ROOT / name / "__init__.py"
    assert set(module.__all__) <= set(dir(module))


def test_imports_bring_in_no_optional_package():
    code = "import sys, lightning_modules.cli; print(sorted({'vllm', 'openai'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_rewards_need_the_standard_library_alone():
    code = "import sys, rewards; print(sorted({'torch', 'numpy', 'lightning', 'datamodules'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_objectives_import_torch_and_each_other():
    for file in (ROOT / "lightning_modules" / "objectives").glob("*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith(("import ", "from ")):
                package = line.split()[1]
                ours = package.startswith("lightning_modules.objectives")
                assert ours or package.split(".")[0] in {"torch", *sys.stdlib_module_names}, f"{file.name}: {line}"

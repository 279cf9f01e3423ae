"""Imports read from sources: whose name it is, what is late, and how far files reach."""

import pytest

from datamodules.system.imports import imports_of, sources_of

FILES = {
    "rewards/__init__.py": "from rewards.right import good\nfrom rewards.deep import far as near\n",
    "rewards/right.py": "def good(): ...\n",
    "rewards/deep/__init__.py": "from rewards.deep.bottom import far\n",
    "rewards/deep/bottom.py": "import json\n",
    "datamodules/__init__.py": "",
    "datamodules/plain.py": "from rewards import good\nimport os.path\nfrom torch import nn\n",
    "datamodules/renamed.py": "from rewards import near\nfrom datamodules import plain\n",
    "datamodules/whole.py": "import rewards\n",
    "datamodules/late.py": """from typing import TYPE_CHECKING
try:
    import fcntl
except ImportError:
    fcntl = None
if TYPE_CHECKING:
    import datasets
else:
    import array
class Reader:
    import csv
    def read(self):
        from rewards.right import good
        async def more():
            import asyncio
""",
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_name_is_that_of_the_module_which_the_package_takes_it_from(root):
    assert imports_of("datamodules.plain", root=root) == {"rewards.right", "os.path", "torch"}
    assert imports_of("datamodules.renamed", root=root) == {"rewards.deep.bottom", "datamodules.plain"}
    assert imports_of("datamodules.whole", root=root) == {"rewards"}
    assert imports_of("rewards", root=root) == {"rewards.right", "rewards.deep.bottom"}


def test_late_imports_are_told_when_asked_for(root):
    at_once = {"typing", "fcntl", "array", "csv"}
    assert imports_of("datamodules.late", root=root) == at_once
    late = imports_of("datamodules.late", late=True, root=root) - at_once
    assert late == {"datasets", "rewards.right", "asyncio"}


@pytest.mark.parametrize(
    ("modules", "reached"),
    [
        (["datamodules.plain"], ["datamodules/plain.py", "rewards/right.py"]),
        (["datamodules.late"], ["datamodules/late.py"]),
        (
            ["datamodules.late", "datamodules.renamed"],
            [
                "datamodules/late.py",
                "datamodules/plain.py",
                "datamodules/renamed.py",
                "rewards/deep/bottom.py",
                "rewards/right.py",
            ],
        ),
        (
            ["datamodules.whole"],
            ["datamodules/whole.py", "rewards/__init__.py", "rewards/deep/bottom.py", "rewards/right.py"],
        ),
    ],
)
def test_files_are_reached_through_files(root, modules, reached):
    assert [str(file.relative_to(root)) for file in sources_of(modules, root)] == reached

"""Everything that reads or makes data. Here: the data modules, and the steps from rows to their batches."""

from importlib import import_module
from typing import Any

_WHERE = {
    "BFCLDataModule": "datamodules.bfcl.prompts",
    "Example": "datamodules.example",
    "PretrainingDataModule": "datamodules.toolbox.pretraining",
    "PromptBatch": "datamodules.loading",
    "XLAMPromptDataModule": "datamodules.prompts",
    "XLAMSFTDataModule": "datamodules.sft",
    "read_examples": "datamodules.xlam",
    "write_jsonl": "datamodules.xlam",
}
__all__ = [
    "BFCLDataModule",
    "Example",
    "PretrainingDataModule",
    "PromptBatch",
    "XLAMPromptDataModule",
    "XLAMSFTDataModule",
    "read_examples",
    "write_jsonl",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: torch and Lightning take seconds, which not every command needs."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

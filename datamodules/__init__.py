"""Everything that reads or makes data."""

from datamodules.bfcl import BFCLDataModule
from datamodules.pretraining import PretrainingDataModule
from datamodules.prompts import PromptBatch, XLAMPromptDataModule
from datamodules.sft import XLAMSFTDataModule
from datamodules.xlam import Example, read_examples, write_jsonl

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

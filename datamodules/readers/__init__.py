"""Readers of rows in files and data sets; they give each row with its number, and look at nothing inside a row."""

from datamodules.readers.source import TOOLBOX, fingerprint, read_rows

__all__ = ["TOOLBOX", "fingerprint", "read_rows"]

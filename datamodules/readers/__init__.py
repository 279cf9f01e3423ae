"""Readers of rows in files and data sets; they give each row with its number, and look at nothing inside a row."""

from datamodules.readers.source import fingerprint, is_toolbox, read_rows

__all__ = ["fingerprint", "is_toolbox", "read_rows"]

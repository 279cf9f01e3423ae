"""Readers of rows in files and data sets; they give each row with its number, and look at nothing inside a row."""

from datamodules.readers.source import fingerprint, is_toolbox, place_of_row, read_rows

__all__ = ["fingerprint", "is_toolbox", "place_of_row", "read_rows"]

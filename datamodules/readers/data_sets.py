"""Data sets of Hugging Face: folders of files, folders that `datasets` has saved, data sets of the hub."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from datamodules.readers.json_files import JSON, READ
from datamodules.system.hub import refuse_unreachable_rows

if TYPE_CHECKING:
    import datasets

SUFFIXES = (*JSON, ".parquet")
_SAVED = ("state.json", "dataset_dict.json")  # of a saved `datasets` folder
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def name_and_split(path: str) -> tuple[str, str]:
    """The name of a folder or data set, and the split that a path asks of it; a folder's name may hold colons."""
    if Path(path).expanduser().is_dir() or ":" not in path:
        return path, ""
    name, _, split = path.rpartition(":")
    return name, split


def data_set_rows(path: str) -> Iterator[tuple[int, Any]]:
    """Read the rows of a data set with their 1-based numbers; see `load_data_set`.

    Raises:
        FileNotFoundError: There is nothing of that name.
        ValueError: There is no such split, the folder is damaged, or a value cannot be read.
    """
    data, number = load_data_set(path), 0
    try:
        for number, row in enumerate(data, start=1):
            yield number, row
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path}, row {number + 1}: a value cannot be read, or the data set is damaged: {error}"
        ) from error


def load_data_set(path: str) -> "datasets.Dataset":
    """Load a saved `datasets` folder or a data set of the hub; one split of it.

    Raises:
        FileNotFoundError: There is nothing of that name.
        ValueError: There is no such split, or the folder is damaged.
    """
    import datasets  # slow to import, and most runs read a file

    name, split = name_and_split(path)
    folder = Path(name).expanduser()
    if folder.is_dir():
        try:
            data = datasets.load_from_disk(str(folder))
        except (pa.ArrowException, FileNotFoundError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"the saved data set {folder} is damaged: {error}") from error
    elif _HUB_ID.fullmatch(name) and folder.suffix not in SUFFIXES:
        refuse_unreachable_rows(name)
        try:
            data = datasets.load_dataset(name)
        except (FileNotFoundError, ConnectionError) as error:  # DatasetNotFoundError is a FileNotFoundError
            raise FileNotFoundError(f"{name} is neither data here nor a data set the hub gives us: {error}") from error
    elif folder.exists():
        raise FileNotFoundError(f"{path} is neither a file nor a folder: write its rows to a file, and give that")
    else:
        where = "" if folder.is_absolute() or "://" in path else " (a relative path begins where the command runs)"
        raise FileNotFoundError(f"there is no file, folder or data set {path}{where}")
    return _one_split(name, data, split) if isinstance(data, dict) else data


def data_files(path: str) -> list[Path]:
    """The files of rows in a folder, of one split where their names say which they are of; none for other sources.

    Raises:
        ValueError: The folder has no such split, or no files of rows.
    """
    name, split = name_and_split(path)
    folder = Path(name).expanduser()
    if not folder.is_dir() or any((folder / f).is_file() for f in _SAVED):
        return []
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

    try:
        splits = DataFilesDict.from_patterns(get_data_patterns(str(folder)), base_path=str(folder))
    except (EmptyDatasetError, FileNotFoundError):
        splits = {}
    found = {str(k): [Path(f) for f in files if Path(f).suffix.lower() in SUFFIXES] for k, files in splits.items()}
    found = {k: files for k, files in found.items() if files}
    if not found:
        raise ValueError(f"the folder {name} holds no file of rows; {READ}")
    return _one_split(name, found, split)


def _one_split(name: str, splits: Mapping[str, Any], wanted: str) -> Any:
    """The split that is wanted of a data set; `train` if none is named.

    Raises:
        ValueError: There is no such split.
    """
    wanted = wanted or "train"
    if wanted not in splits:
        raise ValueError(f"{name} has no split '{wanted}'; name one of its splits, as {name}:{next(iter(splits))}")
    return splits[wanted]

"""Safe loading of checkpoints: tensors and plain values alone; whatever else a file asks for is refused and not run.

A folder of shards is read by torch with pickle itself in two places: its table of contents `.metadata`, and every entry
of the shards that is no tensor. Both are read here by unpicklers that know a few harmless names.
"""

import pickle
import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict
from torch.futures import Future

State = dict[str, Any]
CONTENTS = ".metadata"
"""Name of the table of contents of a folder of shards."""
METADATA_CLASSES = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "StorageMeta", "MetadataIndex", "BytesStorageMetadata", "TensorStorageMetadata"),
        *("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
    },
}
"""What a table of contents is made of, by module, beside dtypes and the path that it was written to."""
DAMAGED = (
    *(pickle.UnpicklingError, struct.error, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError),
    *(ArithmeticError, AssertionError, MemoryError),
)
"""What torch and pickle raise for bytes that are none of theirs, beside errors of the system that name no file."""


class WrittenPath(PurePosixPath):
    """Where a table of contents was written; a file may set attributes of the classes that it is given, not of ours."""


class ContentsUnpickler(pickle.Unpickler):
    """Unpickles a sharded checkpoint's table of contents, and no class that it is not made of."""

    def find_class(self, module: str, name: str) -> Any:
        """Find one of the names that it is made of.

        Raises:
            UnpicklingError: For any other.
        """
        if module.startswith("pathlib") and name.endswith("Path"):
            return WrittenPath
        known = name in METADATA_CLASSES.get(module, ())
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed")


class ShardReader(dcp.FileSystemReader):
    """Storage reader for a sharded checkpoint that runs nothing of it."""

    def read_metadata(self) -> Metadata:  # type: ignore[override]  # torch's would also look for one of this rank alone
        """Read the table of contents.

        Raises:
            ValueError: If it holds anything else.
        """
        file = Path(self.path) / CONTENTS
        with refusing(file), file.open("rb") as opened:
            contents = ContentsUnpickler(opened).load()
            if not isinstance(contents, Metadata):
                raise TypeError(f"a {type(contents).__name__}")
            if odd := [p.relative_path for p in contents.storage_data.values() if not _is_name(p.relative_path)]:
                raise ValueError(f"it names {odd[0]}, which is outside")
        return contents

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what is asked for, file by file, so that an error names its file."""
        by_file: dict[str, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            by_file[self.storage_data[item.storage_index].relative_path].append(item)
        done: Future[None] = Future()
        done.set_result(None)
        for name, items in by_file.items():
            with refusing(Path(self.path) / name):
                done = super().read_data(replace(plan, items=items), planner)
        return done


class PlainValues(dcp.DefaultLoadPlanner):
    """Load planner that reads entries that are no tensors as plain values."""

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        """Put one entry in its place."""
        entry = torch.load(value, map_location="cpu", weights_only=True)
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], entry)


class Everything(PlainValues, _EmptyStateDictLoadPlanner):
    """Load planner for all that shards hold."""


def load_file(path: Path) -> State:
    """Load a checkpoint of one file on the CPU.

    Raises:
        ValueError: If it holds anything but tensors and plain values, or is damaged.
    """
    with refusing(path):
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"a {type(state).__name__}")
    return state


def load_shards(folder: Path, into: State | None = None) -> State:
    """Load a sharded checkpoint but for its `meta.pt`, which `load_file` reads.

    Args:
        folder: The checkpoint.
        into: Tensors, sharded or not, and values that are filled with theirs, a collective; when None all that lies in
            the folder is read on the CPU of this rank alone.

    Returns:
        `into`, or a new one.

    Raises:
        ValueError: If it holds anything but tensors and plain values, or is damaged.
    """
    state: State = {} if into is None else into
    planner, alone = (Everything(), True) if into is None else (PlainValues(), not torch.distributed.is_initialized())
    reader = ShardReader(folder)
    reader.read_metadata()  # by itself, for torch hides what it raises
    try:
        _load_state_dict(state, reader, planner=planner, no_dist=alone)
    except CheckpointException as error:
        cause = first_cause(error)
        if isinstance(cause, OSError) or (isinstance(cause, ValueError) and str(folder) in str(cause)):
            raise cause from error
        raise _damaged(folder, cause) from error
    return state


def first_cause(error: CheckpointException) -> BaseException:
    """The exception of the first rank that failed; torch shows the tracebacks of all."""
    return next(iter(error.failures.values()))[0]


@contextmanager
def refusing(file: Path) -> Iterator[None]:
    """Turn what is raised while a file is read into one sentence that names it.

    Raises:
        ValueError: If the file asks for more than a checkpoint is made of, or is damaged.
    """
    try:
        yield
    except (OSError, *DAMAGED) as error:
        if isinstance(error, OSError) and error.filename:  # not there, or not to be read
            raise
        if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"{file} asks for {asked[1]}, which is no part of a checkpoint and may be an attack: nothing of it was "
                "run; do not use this checkpoint."
            ) from error
        raise _damaged(file, error) from error


def _damaged(path: Path, error: BaseException) -> ValueError:
    words = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{path} is cut, damaged or no checkpoint of this project ({words[:200]}): copy it again.")


def _is_name(path: object) -> bool:
    return type(path) is str and PurePath(path).name == path

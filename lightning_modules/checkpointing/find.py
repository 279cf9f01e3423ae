"""The checkpoint that a path means, and the optimizer step of a model by the names of its checkpoints."""

import os
from pathlib import Path

from datamodules.system.files import clear_unfinished


def resolve_checkpoint(path: str) -> str:
    """Find the checkpoint meant by `--ckpt_path`.

    Args:
        path: A `.ckpt` file, a sharded checkpoint folder, or a run folder: its newest checkpoint.

    Returns:
        The file or sharded folder.

    Raises:
        ValueError: For Lightning's words "last", "best" and "hpc", which look into the new run's empty folder.
        FileNotFoundError: If there is no checkpoint at `path`.
    """
    if path in ("last", "best", "hpc"):
        raise ValueError(f"--ckpt_path {path}: give a path, to a .ckpt or to the folder of the run to resume.")
    found = Path(os.path.expanduser(path))
    for folder in (found.parent, found, found / "checkpoints"):
        clear_unfinished(folder)
    if found.is_file() or (found / ".metadata").is_file():
        return str(found)
    checkpoints = [*found.glob("checkpoints/*.ckpt"), *found.glob("*.ckpt")]
    if not checkpoints:
        raise FileNotFoundError(f"--ckpt_path {path}: no such checkpoint, and no run folder with checkpoints in it.")
    # of one step the last: the best may be of a validation after the epoch was cut short and counted as done
    return str(max(checkpoints, key=lambda file: (_step(file), file.name.startswith("last-"), file.stat().st_mtime)))


def step_of(model: str) -> int:
    """Optimizer step of a model, by the names of its checkpoints.

    Args:
        model: A checkpoint, its exported `hf-NAME/`, a run folder or its `hf/`, or any other model.

    Returns:
        The step of the checkpoint, or of the run's newest; 0 where no name tells.
    """
    path = Path(os.path.expanduser(model))
    run = path.parent if path.name == "hf" else path
    alone = path.suffix == ".ckpt" or (path.name.startswith("hf-") and path.is_dir())
    named = [path] if alone else run.glob("checkpoints/*.ckpt")
    return max([0, *map(_step, named)])


def _step(checkpoint: Path) -> int:
    """The step in a name like `last-000120.ckpt`; -1 for other names."""
    digits = checkpoint.stem.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1

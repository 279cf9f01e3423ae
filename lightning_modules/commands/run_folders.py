"""The folder of a run under `trainer.default_root_dir`: `srml-fit-0`, and the trainer that writes there."""

from pathlib import Path

from lightning.pytorch.trainer import Trainer

from datamodules.system.errors import run_folder
from datamodules.system.files import clear_unfinished
from lightning_modules.callbacks.board import RunLogger


class RunTrainer(Trainer):
    """Lightning's trainer, whose `log_dir` is the run's folder, whichever loggers it has."""

    step_of_model = 0  # of what a validation or test is of, which is where its scores belong
    fit_anyway = False  # whether to start what is estimated to need more memory than a GPU has
    place: RunLogger | None = None  # knows the folder; of loggers it is one only where no other is set

    @property
    def log_dir(self) -> str | None:
        """The run's folder; a collective, so that every rank has to ask."""
        if self.place is None or self.fast_dev_run:
            return super().log_dir
        folder = self.strategy.broadcast(self.place.log_dir)
        run_folder.set(Path(folder))  # where the traceback of what may go wrong is written
        return folder

    @property
    def global_step(self) -> int:
        """Optimizer steps taken; in a validation or test those of the run that trained the model."""
        return super().global_step or self.step_of_model


def new_folder(root: Path, kind: str, claim: bool) -> str:
    """Name the folder of a run: `srml-fit-0`, or what number follows those that there are.

    Args:
        root: Where the folders of runs are.
        kind: What is done, and by which command.
        claim: Whether to make it, so that of runs that start at once each has its own, and to clear from the earlier
            ones what a kill has left half-written.
    """
    if claim:
        root.mkdir(parents=True, exist_ok=True)
        for run in (*root.glob("*-*"), *root.glob("version_*")):  # so they were called once
            clear_unfinished(run)
            clear_unfinished(run / "checkpoints")
    numbers = [run.name.removeprefix(f"{kind}-") for run in root.glob(f"{kind}-*")]
    number = max((int(n) + 1 for n in numbers if n.isdecimal()), default=0)
    while claim and not make_folder(root / f"{kind}-{number}"):
        number += 1
    return f"{kind}-{number}"


def make_folder(folder: Path) -> bool:
    """Make a folder; False if another run has made it first."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True

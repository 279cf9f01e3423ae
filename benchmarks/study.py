"""The papers' claims, run: what is missing of the study's runs, several at a time, one line in a file for each.

Command: python -m benchmarks.study --model FOLDER --rows FILE [--quick] [--scale real|small] [--arms A,B] [--seeds 0,1,2]
    [--jobs N] [--runs FILE] [--minutes M] [--data FOLDER] [--work FOLDER] [--prepare]

Arms, rows and metrics are those of `study_real` and `study_small`. A run that has its line is not run again, and a kill
loses only the runs in progress. `--prepare` writes the rows into `--data` and stops: a machine that has that folder and
the model needs nothing else.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """One run of the study.

    Attributes:
        scale: "real" or "small".
        arm: What sets it apart; with scale and seed the key of its line.
        seed: Of everything random in it.
        settings: What its line says about it, as JSON can hold it.
        after: The arm whose run of the same seed it starts from.
    """

    scale: str
    arm: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    after: str | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """Scale, arm and seed."""
        return self.scale, self.arm, self.seed


@dataclass(frozen=True)
class Place:
    """Where runs find what they need, and leave what others start from.

    Attributes:
        model: The base model's folder.
        data: The folder of prepared rows.
        work: The folder of logs and weights.
        quick: Whether this is the smallest whole study.
    """

    model: str
    data: Path
    work: Path
    quick: bool = False

    def folder(self, arm: str, seed: int) -> Path:
        """The folder of a run."""
        return self.work / f"{arm}-{seed}"

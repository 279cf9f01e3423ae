"""A judge that the processes of a Ray cluster import: rules, with a note of each row that they are asked about."""

import os
import signal
from pathlib import Path

from datamodules.refinement import RuleJudge
from datamodules.refinement.judging import JudgesLost, Question


class NotingJudge(RuleJudge):
    """Notes the id of each question's row in a file.

    Asked about the row `kill_at` it kills its process, the first time; about `refuse_at` it is lost, until there is a
    file `well` beside its notes.

    Args:
        always: It kills its process every time.
        trips: It trips over every row.
    """

    def __init__(
        self, notes: str, kill_at: str = "", refuse_at: str = "", always: bool = False, trips: bool = False
    ) -> None:
        self.notes, self.kill_at, self.refuse_at, self.always = Path(notes), kill_at, refuse_at, always
        self.trips = trips

    async def __call__(self, question: Question) -> str:
        row = question.example.id
        with self.notes.open("a") as notes:
            notes.write(f"{row}\n")
        killed = self.notes.with_name("killed")
        if row == self.kill_at and (self.always or not killed.exists()):
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trips:
            raise KeyError("no such thing")
        if row == self.refuse_at and not self.notes.with_name("well").exists():
            raise JudgesLost("the judge has gone home")
        return await super().__call__(question)

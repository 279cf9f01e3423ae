"""Journal of a refinement: the outcome of each row in a SQLite file, committed at once, from which a run resumes.

SQLite gives what a refinement needs of it: a decision is there or not, whenever the process dies; the run that writes
holds a lock of the operating system, which its death releases; rows come out in order without being held in memory. No
file of it may be opened beside SQLite: closing it again would give that lock away.
"""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.example import Example
from datamodules.refinement.judging import Outcome, Verdict

NAME = "journal.sqlite"


class Journal:
    """The journal of one output folder, or of rows that are worth no file.

    Args:
        folder: An existing folder; None for a journal in memory, which ends with the process.

    Raises:
        OSError: Another run is writing to the folder, or nobody can.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = (folder or Path()) / NAME
        self._db = sqlite3.connect(self.path if folder else ":memory:", timeout=0, isolation_level=None)
        self._execute("PRAGMA locking_mode = EXCLUSIVE")
        self._execute("PRAGMA journal_mode = WAL")  # takes the lock, which is kept until the end
        self._execute("PRAGMA synchronous = NORMAL")  # survives the death of the process; `sync` waits for the disk
        self._execute("CREATE TABLE IF NOT EXISTS rows (number INTEGER PRIMARY KEY, id UNIQUE, outcome)")

    def claim(self, number: int, row_id: str) -> int:
        """Note the id of a row; gives the number of the row that had it first."""
        self._execute("INSERT OR IGNORE INTO rows (number, id) VALUES (?, ?)", (number, row_id))
        return int(self._execute("SELECT number FROM rows WHERE id = ?", (row_id,)).fetchone()[0])

    def write(self, number: int, outcome: Outcome) -> None:
        """Keep the outcome of a row."""
        verdicts = [vars(verdict) for verdict in outcome.verdicts]
        values = {"example": vars(outcome.example), "verdicts": verdicts, "content": outcome.content}
        self._execute(
            "INSERT INTO rows (number, outcome) VALUES (?, ?) ON CONFLICT DO UPDATE SET outcome = excluded.outcome",
            (number, json.dumps(values, ensure_ascii=False)),
        )

    def has(self, number: int) -> bool:
        """Whether a row is decided."""
        found = self._execute("SELECT 1 FROM rows WHERE number = ? AND outcome IS NOT NULL", (number,))
        return found.fetchone() is not None

    def __len__(self) -> int:
        """Rows decided."""
        return int(self._execute("SELECT count(outcome) FROM rows").fetchone()[0])

    def outcomes(self) -> Iterator[tuple[int, Outcome]]:
        """The outcomes of all decided rows, in the order of the rows."""
        for number, text in self._execute("SELECT number, outcome FROM rows WHERE outcome IS NOT NULL ORDER BY 1"):
            values = json.loads(text)
            verdicts = tuple(Verdict(**verdict) for verdict in values["verdicts"])
            yield number, Outcome(Example(**values["example"]), verdicts, values["content"])

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                sentence = f"another run is writing to {self.path.parent}: wait for it, or choose another output_dir"
                raise BlockingIOError(sentence) from error
            raise OSError(f"{self.path} cannot be read or written: {error}") from error

    def sync(self) -> None:
        """Wait until all that was written is on the disk, so that it also outlives a power cut."""
        self._execute("PRAGMA wal_checkpoint")

    def close(self) -> None:
        """Release the lock."""
        self._db.close()

    def delete(self) -> None:
        """Release the lock and remove the file and its write-ahead log, which SQLite cannot empty on a full disk."""
        self.close()
        for path in self.path.parent.glob(f"{NAME}*"):
            path.unlink(missing_ok=True)

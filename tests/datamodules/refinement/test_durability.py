"""What a refinement leaves on the disk: results before the journal goes, nothing half-written, nothing of two runs."""

import json
import os

import pytest

from datamodules.refinement import refinement
from datamodules.refinement.cli import main
from datamodules.refinement.journal import NAME, Journal
from datamodules.toolbox.rows import make_corpus

RESULTS = {"config.yaml", "refined.jsonl", "rejected.jsonl", "report.json", "report.md"}


@pytest.fixture
def rows_file(write_rows):
    return write_rows(make_corpus("train", 12, 9))


@pytest.fixture
def refine(rows_file, tmp_path):
    def run():
        main(["--config", "configs/refine.yaml", f"--data.path={rows_file}", f"--output_dir={tmp_path / 'run'}"])

    return run


def names(folder):
    return {path.name for path in folder.iterdir() if "tfevents" not in path.name}


def test_results_and_their_names_are_on_the_disk_before_the_journal_goes(refine, tmp_path, monkeypatch):
    done, fsync, delete = [], os.fsync, Journal.delete

    def note(descriptor):
        fsync(descriptor)
        done.append(os.stat(descriptor).st_ino)

    def gone(journal):
        done.append("journal gone")
        delete(journal)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Journal, "delete", gone)
    refine()
    folder = tmp_path / "run"
    assert done[-1] == "journal gone" and names(folder) == RESULTS
    for name in RESULTS:
        assert (folder / name).stat().st_ino in done
    assert done[-2] == folder.stat().st_ino  # the last name that was given


def test_a_decision_is_on_the_disk_once_the_journal_is_synced(tmp_path):
    """Until then it is in the log beside it, which is not waited for at each row."""
    journal = Journal(tmp_path)
    journal.claim(1, "an id that is easily found")
    assert b"easily found" not in (tmp_path / NAME).read_bytes()
    journal.sync()
    assert b"easily found" in (tmp_path / NAME).read_bytes()
    journal.close()


def test_what_a_killed_run_left_half_written_is_cleared(refine, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    Journal(folder).close()
    for suffix in ("lock", "partial"):
        (folder / f".refined.jsonl.{'0' * 32}.{suffix}").write_text('{"id"')
    refine()
    assert names(folder) == RESULTS


def test_a_kill_between_the_last_result_and_the_journal(refine, tmp_path, capsys):
    refine()
    before = {name: (tmp_path / "run" / name).read_bytes() for name in RESULTS}
    Journal(tmp_path / "run").close()
    refine()
    assert "is finished" in capsys.readouterr().out and names(tmp_path / "run") == RESULTS
    assert {name: (tmp_path / "run" / name).read_bytes() for name in RESULTS} == before


def test_a_run_that_waited_at_the_door_does_not_refine_again(refine, tmp_path, monkeypatch, capsys):
    """The other run holds the lock when this one looks for results, and has written them when this one has the lock."""
    original, looked = refinement.Refinement._is_finished, []

    def late(self, settings):
        looked.append(1)
        return len(looked) > 1 and original(self, settings)

    refine()
    before = (tmp_path / "run" / "report.json").stat().st_ino
    monkeypatch.setattr(refinement.Refinement, "_is_finished", late)
    refine()
    assert len(looked) == 2 and (tmp_path / "run" / "report.json").stat().st_ino == before
    assert names(tmp_path / "run") == RESULTS


def test_rows_that_change_while_they_are_refined(refine, rows_file, tmp_path, monkeypatch):
    original = refinement.refine_rows

    def and_meanwhile(*arguments):
        original(*arguments)
        with open(rows_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(make_corpus("train", 13, 9)[-1]) + "\n")

    monkeypatch.setattr(refinement, "refine_rows", and_meanwhile)
    with pytest.raises(SystemExit, match=rf"error: {rows_file} changed while it was refined"):
        refine()
    assert names(tmp_path / "run") == {"config.yaml", NAME, "traceback.txt"}

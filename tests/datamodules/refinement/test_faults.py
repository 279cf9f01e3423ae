"""Whatever goes wrong, the command says so in one sentence, keeps what was decided, and goes on from there."""

import errno
import json

import pytest
from stub_server import YES, Stub, completion

from datamodules.refinement import run as running
from datamodules.refinement.cli import main
from datamodules.refinement.journal import Journal
from datamodules.toolbox.rows import make_corpus

ROWS = 60
WELL = 30  # questions that are answered before something goes wrong


@pytest.fixture
def refine(tmp_path, write_rows):
    """Run the command on the rows against a server; gives its exit code."""
    rows = write_rows(make_corpus("train", ROWS, 9))

    def run(url):
        settings = {"model": "m", "servers": [url], "patience": 0.5, "timeout": 1.0, "retries": 1}
        judge = {"class_path": "datamodules.refinement.OpenAIJudge", "init_args": settings}
        options = {"judges": json.dumps([judge]), "data.path": rows, "output_dir": tmp_path / "run", "in_flight": 4}
        try:
            main(["--config", "configs/refine.yaml", *(f"--{key}={value}" for key, value in options.items())])
        except SystemExit as end:
            return end.code
        return 0

    return run


def decided(folder):
    journal = Journal(folder)
    count = len(journal)
    journal.close()
    return count


FAULTS = {
    "401": ((401, [], b'{"error": {"message": "bad"}}'), "refuses the key (401): put one into the environment"),
    "429": ((429, ["Retry-After: 5"], b"{}"), "no judge answers any more (", "is asked too often (429)"),
    "400": ((400, [], b'{"error": {"message": "unloaded"}}'), "(400)", "unloaded", "it refuses every question"),
    "500": ((500, [], b"{}"), "no judge answers any more (", "fails (500)"),
    "slow": ("slow", "no judge answers any more (", "does not answer (no whole answer within 1 s)"),
    "cut": (None, "no judge answers any more (", "does not answer (Server disconnected)"),
    "no HTTP": ([b"SSH-2.0-OpenSSH_9.6\r\n"], "no judge answers any more (", "does not answer ("),
    "garbage": ((200, [], b"{not json"), "no judge answers any more (", "does not answer (Expecting property name"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_goes_wrong(fault, refine, tmp_path, capsys):
    reply, *sentences = FAULTS[fault]

    def behave(number, body):
        if number <= WELL:
            stub.delay = 3.0 if reply == "slow" and number == WELL else 0.0
            return YES
        return YES if reply == "slow" else reply

    with Stub(behave) as stub:
        said = refine(stub.url)
    assert said.startswith("error: ") and "\n" not in said and all(text in said for text in sentences)
    kept = decided(tmp_path / "run")
    assert 5 <= kept <= WELL  # three questions to a row that calls, none to one that does not
    assert f"{kept} of {ROWS} rows are decided and kept; the same command resumes there" in capsys.readouterr().out
    with Stub() as stub:
        assert refine(stub.url) == 0
    assert json.loads((tmp_path / "run" / "report.json").read_text())["rows"] == ROWS


def test_a_server_that_was_never_there(refine, tmp_path, capsys):
    with Stub() as stub:
        pass
    said = refine(stub.url)
    assert said.startswith("error: no judge answers any more (") and stub.url in said
    assert f" of {ROWS} rows are decided and kept" in capsys.readouterr().out


def test_a_huge_reply_costs_its_row_alone(refine, tmp_path):
    query = next(row["query"] for row in make_corpus("train", ROWS, 9) if row["answers"] != "[]")

    def behave(number, body):
        asked = query in body["messages"][0]["content"]
        return (200, [], completion("x" * 2_000_000 + YES)) if asked else YES

    with Stub(behave) as stub:
        assert refine(stub.url) == 0
    (line,) = (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert (row["query"], row["verdict"]) == (query, "undecided")
    assert row["judge"].startswith("a reply of 2,0") and len(row["judge"]) < 300


def test_replies_that_are_cut_decide_no_row(refine, tmp_path):
    with Stub(lambda number, body: (200, [], completion(YES, "length"))) as stub:
        assert refine(stub.url) == 0
    calling = sum(row["answers"] != "[]" for row in make_corpus("train", ROWS, 9))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["undecided"], report["kept"]) == (calling, ROWS - calling)  # rows without a call are not asked about
    rows = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert all("did not end by itself (finish_reason 'length')" in row["judge"] for row in rows)


def test_a_disk_that_is_full_at_the_end(refine, tmp_path, monkeypatch, capsys):
    def full(path, rows):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Stub() as stub, monkeypatch.context() as patch:
        patch.setattr(running, "write_jsonl", full)
        failed = f"error: {tmp_path / 'run'} cannot be written: No space left on device"
        assert refine(stub.url) == f"{failed} (traceback: {tmp_path / 'run' / 'traceback.txt'})"
        assert f"{ROWS} of {ROWS} rows are decided and kept" in capsys.readouterr().out
        asked = len(stub.asked)
        patch.undo()
        assert refine(stub.url) == 0 and len(stub.asked) == asked
    names = {path.name for path in (tmp_path / "run").iterdir() if "tfevents" not in path.name}
    assert names - {"traceback.txt"} == {"config.yaml", "refined.jsonl", "rejected.jsonl", "report.json", "report.md"}


def test_a_folder_that_another_run_is_writing(refine, tmp_path):
    (tmp_path / "run").mkdir()
    journal = Journal(tmp_path / "run")
    with Stub() as stub:
        said = refine(stub.url)
    journal.close()
    assert said.startswith(
        f"error: another run is writing to {tmp_path / 'run'}: wait for it, or choose another output"
    )
    assert not stub.asked and not (tmp_path / "run" / "config.yaml").exists()


def test_no_log_of_the_journal_is_left(tmp_path):
    """SQLite leaves its log where a full disk keeps it from bringing it into the journal."""
    journal = Journal(tmp_path)
    journal.claim(1, "a")
    assert (tmp_path / "journal.sqlite-wal").is_file()
    journal.close()
    (tmp_path / "journal.sqlite-wal").write_bytes(b"left")
    journal.delete()
    assert not list(tmp_path.iterdir())

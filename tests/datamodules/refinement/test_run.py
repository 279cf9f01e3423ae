import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import weakref
from functools import partial
from pathlib import Path

import pytest
from stub_server import NO, YES, Stub, by_prompt

from datamodules import Example, read_examples
from datamodules.holdout import hold_out, query_places
from datamodules.refinement import Outcome, Panel, RuleJudge, Verdict, fcdr
from datamodules.refinement.cli import main
from datamodules.refinement.journal import Journal
from datamodules.refinement.run import refine_rows, write_results
from datamodules.rows import unchecked_example
from datamodules.toolbox.rows import make_corpus

WRITTEN = ("refined.jsonl", "rejected.jsonl", "report.json", "report.md")


def passed(number, kept=True):
    example = unchecked_example(make_corpus("train", number, 0)[-1])
    return Outcome(example, (Verdict("response", True), Verdict("row", kept, "" if kept else "cot", "r", "w", "", 3)))


def files(folder):
    return {name: (folder / name).read_bytes() for name in WRITTEN}


def test_the_journal_gives_back_what_it_was_given_in_the_order_of_the_rows(tmp_path):
    journal = Journal(tmp_path)
    for number in (3, 1, 2):
        assert not journal.has(number)
        journal.write(number, passed(number, kept=number != 2))
        assert journal.has(number)
    assert list(journal.outcomes()) == [(n, passed(n, kept=n != 2)) for n in (1, 2, 3)] and len(journal) == 3
    journal.delete()
    assert not list(tmp_path.iterdir())


def test_an_id_belongs_to_the_row_that_had_it_first(tmp_path):
    journal = Journal(tmp_path)
    assert [journal.claim(1, "a"), journal.claim(2, "b"), journal.claim(5, "a"), journal.claim(1, "a")] == [1, 2, 1, 1]
    assert len(journal) == 0
    journal.close()


def test_a_second_run_cannot_write_the_same_folder(tmp_path):
    journal = Journal(tmp_path)
    with pytest.raises(BlockingIOError, match=f"another run is writing to {tmp_path}"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def hold(folder, held):
    Journal(folder)
    held.set()
    time.sleep(60)


@pytest.mark.kills
def test_the_lock_does_not_outlive_a_kill(tmp_path):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    other = context.Process(target=hold, args=(tmp_path, held))
    other.start()
    assert held.wait(30)
    with pytest.raises(BlockingIOError):
        Journal(tmp_path)
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    Journal(tmp_path).close()


def test_a_full_disk_keeps_what_was_decided(tmp_path):
    journal = Journal(tmp_path)
    journal.write(1, passed(1))
    journal._db.execute(f"PRAGMA max_page_count = {journal._db.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(OSError, match=r"journal.sqlite cannot be read or written: database or disk is full"):
        for number in range(2, 100):
            journal.write(number, passed(2))
    journal.close()
    assert next(Journal(tmp_path).outcomes()) == (1, passed(1))


def test_a_journal_that_is_none_is_one_sentence(tmp_path):
    (tmp_path / "journal.sqlite").write_bytes(b"something else " * 100)
    with pytest.raises(OSError, match="cannot be read or written: file is not a database"):
        Journal(tmp_path)


class Row(dict):
    """A row that can be watched."""


def test_only_the_rows_in_flight_are_in_memory(tmp_path, scripted):
    alive, most = weakref.WeakSet(), 0

    def rows():
        nonlocal most
        for number, row in enumerate(make_corpus("train", 300, 1), start=1):
            row = Row(row)
            row.__class__.__hash__ = object.__hash__
            alive.add(row)
            most = max(most, len(alive))
            yield number, row
            del row

    journal = Journal(tmp_path)
    refine_rows(rows(), 300, fcdr, Panel([scripted()]), journal, in_flight=5)
    assert most <= 5 + 1 and len(journal) == 300
    journal.close()


async def trips(example, judge):
    """A recipe that trips over every tenth row."""
    if int(example.id) % 10 == 0:
        raise KeyError("no such thing")
    return Outcome(example, (Verdict("response", True),))


def test_an_unexpected_exception_costs_its_row_alone(tmp_path, make_row, scripted):
    rows = [make_row(n) | {"id": str(n)} for n in range(1, 31)]
    journal = Journal(tmp_path)
    refine_rows(enumerate(rows, start=1), 30, trips, Panel([scripted()]), journal, in_flight=4, max_row_errors=0.1)
    report = write_results(tmp_path, journal)  # 3 of 30 rows are a tenth, and no more
    journal.close()
    assert (report["kept"], report["rejected"], report["errors"]) == (27, 3, 3)
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [(line["id"], line["fault"], line["verdict"]) for line in lines] == [
        (row_id, "error", "rejected") for row_id in ("10", "20", "30")
    ]
    assert "unexpected KeyError: 'no such thing' (test_run.py, line " in lines[0]["reason"]
    assert "| errors | 3 |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("share, errors", [(0.09, 3), (0.05, 2), (0.0, 1)])
def test_too_many_of_them_stop_the_run(tmp_path, make_row, scripted, share, errors):
    """Of 30 rows 0.09 are 2.7 and 0.05 are 1.5."""
    rows = [make_row(n) | {"id": str(n)} for n in range(1, 31)]
    journal = Journal(tmp_path)
    with pytest.raises(
        RuntimeError, match=f"^{errors} rows? ended in an unexpected KeyError.*more than max_row_errors.*; raise it"
    ):
        refine_rows(enumerate(rows, start=1), 30, trips, Panel([scripted()]), journal, 1, max_row_errors=share)
    assert len(journal) == errors * 10
    journal.close()


def test_a_row_whose_reading_fails_is_rejected_too(tmp_path, make_row, scripted, monkeypatch):
    def fails(raw):
        raise RecursionError("too deep")

    monkeypatch.setattr("datamodules.refinement.run.unchecked_example", fails)
    journal = Journal(tmp_path)
    refine_rows(iter([(1, make_row(1))]), 1, trips, Panel([scripted()]), journal, in_flight=1)
    ((_, outcome),) = journal.outcomes()
    journal.close()
    assert (
        not outcome.kept and outcome.content == make_row(1) and "RecursionError: too deep" in outcome.verdicts[0].reason
    )


def test_a_row_that_cannot_be_written_is_rejected_too(tmp_path, make_row, scripted):
    rows = [make_row(n) for n in range(3)] + [make_row(3, query="half a pair: \ud83d")]
    journal = Journal(tmp_path)
    refine_rows(enumerate(rows, start=1), 4, fcdr, Panel([scripted()]), journal, in_flight=2)
    report = write_results(tmp_path, journal)
    journal.close()
    assert (report["kept"], report["errors"]) == (3, 1)
    assert "\\\\ud83d" in (tmp_path / "rejected.jsonl").read_text()


def test_bad_rows_are_rejected_and_keep_their_content(tmp_path, make_row, scripted):
    rows = [
        make_row(1),
        "{not json",
        make_row(2, tools="[{"),
        make_row(3, query=None),
        make_row(1),
        make_row(4, cot="a <think> b"),
        make_row(5, answers="", response=None),
        {name: value for name, value in make_row(6).items() if name != "id"},
    ]
    journal = Journal(tmp_path)
    judge = Panel([scripted(response=NO)])
    refine_rows(enumerate(rows, start=1), len(rows), fcdr, judge, journal, in_flight=3)
    report = write_results(tmp_path, journal)
    journal.delete()
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [(line["row"], line["fault"]) for line in rejected[:5]] == [
        (2, "row"),
        (3, "tools"),
        (4, "query"),
        (5, "id"),
        (6, "cot"),
    ]
    assert rejected[0]["content"] == "{not json" and "already the id of row 1" in rejected[3]["reason"]
    assert report["rows"] == 8 and report["kept"] + report["rejected"] == 8
    kept, _ = read_examples(tmp_path / "refined.jsonl")  # what training reads
    assert [example.id for example in kept] == ["1", "5", "row-8"]


def test_a_held_out_part_is_written_apart(tmp_path, scripted):
    journal = Journal(tmp_path)
    refine_rows(enumerate(make_corpus("train", 400, 1), 1), 400, fcdr, Panel([scripted()]), journal, 8)
    write_results(tmp_path, journal, val_fraction=0.05)
    journal.close()
    counts = [len((tmp_path / name).read_text().splitlines()) for name in ("refined.jsonl", "validation.jsonl")]
    assert sum(counts) == 400 and 5 <= counts[1] <= 40  # 400 x 0.05 = 20
    left = [json.loads(line)["query"] for line in (tmp_path / "refined.jsonl").read_text().splitlines()]
    assert 5 <= hold_out(query_places(left), 0.05).sum() <= 40  # what training holds out of it, 380 x 0.05 = 19


def test_rows_of_one_conversation_are_held_out_together(tmp_path):
    journal = Journal(tmp_path)
    for number in range(40):  # a request of its own each, and what follows on it
        first = f"Request {number // 2}"
        history = [{"role": "user", "content": first}, {"role": "assistant", "content": "Sure?"}] * (number % 2)
        example = Example(str(number), "Yes." if history else first, "[]", "[]", history=json.dumps(history))
        journal.write(number, Outcome(example, (Verdict("row", True),)))
    write_results(tmp_path, journal, val_fraction=0.5)
    journal.close()
    kept, held = (
        {int(json.loads(line)["id"]) // 2 for line in (tmp_path / name).read_text().splitlines()}
        for name in ("refined.jsonl", "validation.jsonl")
    )
    assert kept and held and not kept & held


def test_rows_that_are_decided_are_not_decided_again(tmp_path):
    async def recipe(example, judge):
        asked.append(example.id)
        return Outcome(example, (Verdict("row", True),))

    rows, asked, journal = list(enumerate(make_corpus("train", 5, 1), 1)), [], Journal(tmp_path)
    for decided in (rows[1:3], rows):
        refine_rows(iter(decided), 5, recipe, Panel([RuleJudge()]), journal, 2)
    assert sorted(asked) == sorted(str(row["id"]) for _, row in rows) and len(journal) == 5
    journal.close()


def options(folder, rows, stub, **more):
    values = {"data.path": rows, "output_dir": folder, "in_flight": 8} | more
    judge = {"class_path": "datamodules.refinement.OpenAIJudge", "init_args": {"model": "m", "servers": [stub.url]}}
    rules = {"class_path": "datamodules.refinement.RuleJudge"}
    return [
        "--config",
        "configs/refine.yaml",
        f"--judges={json.dumps([judge, rules])}",
        *(f"--{k}={v}" for k, v in values.items()),
    ]


def in_child(arguments):
    """Run the command in a process of its own that has everything imported."""
    process = multiprocessing.get_context("fork").Process(target=main, args=(arguments,))
    process.start()
    return process


def start(hash_seed, arguments):
    """Start the command in an interpreter of its own, whose sets have another order."""
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    return subprocess.Popen(
        [sys.executable, "-m", "datamodules.refinement", *map(str, arguments)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def half_right(number):
    """A request for a payslip and for working days, answered with the payslip and a parking place."""
    descriptions = ("Get the payslip.", "Find parking.", "Count the working days.")
    names = [f"{name}_{number}" for name in ("get_payslip", "find_parking", "count_workdays")]
    return {
        "query": f"Get payslip {number}, and count the working days.",
        "tools": json.dumps(
            [{"name": n, "description": d, "parameters": {}} for n, d in zip(names, descriptions, strict=True)]
        ),
        "answers": json.dumps([{"name": name, "arguments": {}} for name in names[:2]]),
        "cot": f"{names[0]}, then {names[1]}.",
    }


@pytest.fixture
def rows(tmp_path, write_rows):
    rows = make_corpus("train", 120, 9)
    rows[7]["tools"] = "no tools"
    rows[50]["answers"] = "[broken("
    for number in range(60, 66):
        rows[number] |= half_right(number)
    return write_rows(rows)


def rows_asked_about(asked, rows):
    """The ids of the rows that questions are about: each shows its row's query, chain of thought or answer."""
    prompts = [body["messages"][0]["content"] for body in asked]
    return {row["id"] for row in rows if any(row[name] in p for name in ("query", "cot") for p in prompts)}


@pytest.mark.kills
def test_killed_at_ten_random_moments(tmp_path, rows):
    corpus = [json.loads(line) for line in Path(rows).read_text().splitlines()]
    rng = random.Random()
    with Stub(by_prompt, delay=0.02) as stub:
        assert in_child(options(tmp_path / "whole", rows, stub)).join() is None
    whole = files(tmp_path / "whole")
    with Stub(by_prompt, delay=0.02) as stub:
        asked, decided = [set()], [set()]  # ids of rows, before each kill
        for _ in range(10):
            before, process = len(stub.asked), in_child(options(tmp_path / "killed", rows, stub))
            enough = before + rng.randint(1, 30)
            while len(stub.asked) < enough and process.is_alive():
                time.sleep(0.005)
            time.sleep(rng.random() * 0.02)  # anywhere between two questions
            process.kill()
            process.join()
            journal = Journal(tmp_path / "killed")
            asked.append(rows_asked_about(stub.asked[before:], corpus))
            decided.append({outcome.example.id for _, outcome in journal.outcomes()})
            journal.close()
        before, last = len(stub.asked), start(1, options(tmp_path / "killed", rows, stub))
        code = last.wait()
        asked.append(rows_asked_about(stub.asked[before:], corpus))
    assert code == 0 and files(tmp_path / "killed") == whole
    assert 0 < len(decided[-1]) < 120
    for run in range(1, 12):
        assert decided[run - 1] <= decided[min(run, 10)]
        assert not asked[run] & decided[run - 1]  # no row that was decided is asked about again
    for run in range(1, 11):
        assert len(asked[run] - decided[run]) <= 8  # only those in flight at the kill are


@pytest.mark.slow
def test_the_order_of_sets_reaches_no_output(tmp_path, rows):
    arguments = ["--config", "configs/refine.yaml", "--data.path", rows, "--output_dir"]
    runs = [start(seed, [*arguments, tmp_path / str(seed)]) for seed in (1, 2)]
    assert [run.wait() for run in runs] == [0, 0]
    written = files(tmp_path / "1")
    assert written == files(tmp_path / "2")
    assert b"The request does not ask for 'find_parking_60'." in written["rejected.jsonl"]  # as it does for the other


def test_parts_joined_are_the_whole(tmp_path, rows, write_rows):
    lines = Path(rows).read_text().splitlines()
    parts = {"part-0": lines[:50], "part-1": lines[50:]}
    sources = {name: write_rows(map(json.loads, part), f"{name}.jsonl") for name, part in parts.items()} | {"all": rows}
    for name, source in sources.items():
        main(["--config", "configs/refine.yaml", f"--data.path={source}", f"--output_dir={tmp_path / name}"])
    joined, whole = (
        "".join((tmp_path / name / "refined.jsonl").read_text() for name in names) for names in (parts, ["all"])
    )
    assert joined == whole and joined.count("\n") > 100


def test_a_finished_folder_is_left_as_it_is(tmp_path, rows, capsys):
    folder = tmp_path / "run"
    arguments = ["--config", "configs/refine.yaml", f"--data.path={rows}", f"--output_dir={folder}"]
    main(arguments)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    capsys.readouterr()
    main(arguments)
    assert "is finished" in capsys.readouterr().out
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    with pytest.raises(SystemExit, match=r"error: .* holds a run with other settings \(regenerations\)"):
        main([*arguments, "--regenerations=1"])
    main([*arguments, "--in_flight=2"])  # how it is done may change


@pytest.mark.slow
def test_servers_that_go_down_leave_what_was_decided(tmp_path, rows, capsys):
    with Stub(lambda number, body: YES if number <= 60 else None, healthy=lambda: len(stub.asked) <= 60) as stub:
        arguments = options(tmp_path / "run", rows, stub)
        arguments[2] = arguments[2].replace('"servers"', '"patience": 0.6, "servers"')
        with pytest.raises(SystemExit, match="error: no judge answers any more"):
            main(arguments)
    assert "rows are decided and kept" in capsys.readouterr().out
    journal = Journal(tmp_path / "run")
    assert 5 < len(journal) <= 40  # 60 replies, three to a row that calls
    journal.close()
    with Stub() as stub:  # elsewhere, and well
        main(options(tmp_path / "run", rows, stub))
    assert json.loads((tmp_path / "run" / "report.json").read_text())["rows"] == 120


def test_three_judges_vote(tmp_path, rows, scripted):
    journal = Journal(tmp_path)
    panel = Panel([RuleJudge(), scripted(), scripted(call=NO)], "majority")
    refine_rows(enumerate(make_corpus("train", 20, 2), 1), 20, partial(fcdr, regenerations=1), panel, journal, 4)
    assert all(outcome.kept for _, outcome in journal.outcomes())
    journal.close()

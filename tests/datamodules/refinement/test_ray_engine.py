"""Refinement on a real local Ray of two cores: what one process writes, whatever becomes of the others."""

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stub_server import Stub, by_prompt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.readers import read_rows
from datamodules.refinement import Panel, RuleJudge, VLLMJudge, fcdr, ray_engine
from datamodules.refinement.cli import main
from datamodules.toolbox.rows import make_corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
ROOT = Path(__file__).parents[3]
KINDS = ("refined", "rejected", "validation")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Ray's address."""
    if find_spec("ray") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("Ray is not installed: pip install -e '.[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", token_hex(32))  # else Ray keeps one in the home folder
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # of the judge below
        patch.chdir(ROOT)
        import ray

        context = ray.init(
            num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, logging_level="warning"
        )
        yield context.address_info["gcs_address"]
        ray.shutdown()


def rows_with_faults():
    """Rows of which some are no rows, some have the id of another block's row, and some have none."""
    rows = make_corpus("train", 90, 9)
    rows[7]["tools"] = "no tools"
    rows[50]["answers"] = "[broken("
    rows[40]["query"] = ""  # does not get as far as its id
    rows[40]["id"] = rows[41]["id"] = rows[70]["id"] = rows[88]["id"]
    rows[62]["id"] = rows[61]["id"]
    for number in (3, 30, 66):
        del rows[number]["id"]
    return rows


def command(folder, source, judge=None, **options):
    judges = [{"class_path": "datamodules.refinement.RuleJudge"}, *([judge] if judge else [])]
    values = {"judges": json.dumps(judges), "data.path": source, "output_dir": folder, "in_flight": 4} | options
    return ["--config", "configs/refine.yaml", *(f"--{name}={value}" for name, value in values.items())]


def on_ray(folder, source, judge=None, **options):
    return command(folder, source, judge, **{"engine": "ray", "block_rows": 20} | options)


def noting(folder, **options):
    folder.mkdir(exist_ok=True)
    return {"class_path": "noting_judge.NotingJudge", "init_args": {"notes": str(folder / "asked")} | options}


def asked(folder):
    return Counter((folder / "asked").read_text().split())


def joined(folder, kind):
    """The rows of a run's file or parts, in the order of the parts' names."""
    files = [folder / f"{kind}.jsonl"] if (folder / f"{kind}.jsonl").exists() else sorted((folder / kind).glob("*"))
    return "".join(file.read_text() for file in files)


def assert_equal(one, other):
    """Both runs wrote the same rows, in the same order, and the same report."""
    for kind in KINDS:
        assert joined(other, kind) == joined(one, kind)
    for name in ("report.json", "report.md"):
        assert (other / name).read_text() == (one / name).read_text()
    lines = [line for kind in KINDS for line in joined(other, kind).splitlines()]
    assert len(lines) == json.loads((other / "report.json").read_text())["rows"]


def parts(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for kind in KINDS for path in (folder / kind).glob("*")}


def test_what_two_processes_write_is_what_one_writes(tmp_path, capsys):
    lines = [json.dumps(row) for row in rows_with_faults()]
    lines[25:25] = ["", "{not json"]  # an empty line counts in the numbers, and is no row
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    source, one, two = tmp_path / "rows.jsonl", tmp_path / "one", tmp_path / "two"
    with Stub(by_prompt) as stub:
        judge = {"class_path": "datamodules.refinement.OpenAIJudge", "init_args": {"model": "m", "servers": [stub.url]}}
        main(command(one, source, judge, val_fraction=0.2))
        main(on_ray(two, source, judge, val_fraction=0.2, block_rows=15))
    assert_equal(one, two)
    rejected = [json.loads(line) for line in joined(two, "rejected").splitlines()]
    taken = {line["row"]: line["reason"].rpartition(" ")[2] for line in rejected if line["fault"] == "id"}
    # Two lines before row 26: 41 + 1 + 2 = 44 has the id of 43 without the right to it, for 43 has no query.
    assert taken == {73: "44", 91: "44", 65: "64"}
    assert {path.name for path in (two / "refined").iterdir()} == {f"part-{n:05d}.jsonl" for n in range(7)}  # 91 / 15
    assert {path.name for path in two.iterdir() if "tfevents" not in path.name} == {
        *KINDS,
        *("blocks", "config.yaml", "report.json", "report.md"),
    }
    assert [json.loads(row) for _, row in read_rows(str(two / "refined"))] == [
        json.loads(line) for line in joined(two, "refined").splitlines()
    ]  # what training is given
    curve = EventAccumulator(str(two)).Reload().Scalars("refine/rows")
    assert (curve[-1].step, curve[-1].value) == (91, 91)
    assert f"Refined rows: {two / 'refined'}" in capsys.readouterr().out


def test_parquet_parts_and_a_killed_process(tmp_path):
    rows = rows_with_faults()
    (tmp_path / "rows").mkdir()
    for number in range(3):
        pq.write_table(pa.Table.from_pylist(rows[number::3]), tmp_path / "rows" / f"{number}.parquet")
    main(command(tmp_path / "one", tmp_path / "rows"))
    victim = rows[3 * 9]["id"]  # the tenth row of the first part, and of the first block
    judge = noting(tmp_path / "notes", kill_at=victim)
    main(on_ray(tmp_path / "two", tmp_path / "rows", judge, processes=2))
    assert (tmp_path / "notes" / "killed").exists()
    main(command(tmp_path / "plain", tmp_path / "rows", noting(tmp_path / "plain_notes")))
    assert_equal(tmp_path / "plain", tmp_path / "two")
    assert joined(tmp_path / "one", "refined") == joined(tmp_path / "two", "refined")
    again = asked(tmp_path / "notes") - asked(tmp_path / "plain_notes")
    in_block = {row.get("id") for row in rows[0:60:3]}  # its 20 rows
    assert again and victim in again and set(again) <= in_block


def test_a_block_that_kills_every_process_ends_the_run(tmp_path, write_rows, monkeypatch):
    monkeypatch.setattr(ray_engine, "RETRIES", 1)
    rows = make_corpus("train", 4, 9)
    judge = noting(tmp_path / "notes", kill_at=rows[1]["id"], always=True)
    with pytest.raises(SystemExit, match="error: Ray gives up a block whose process has died 2 times"):
        main(on_ray(tmp_path / "run", write_rows(rows), judge, processes=1))
    assert asked(tmp_path / "notes")[rows[1]["id"]] == 1 + 1


def test_a_restart_skips_what_is_finished(tmp_path, write_rows, capsys):
    rows = make_corpus("train", 80, 9)
    source, folder, notes = write_rows(rows), tmp_path / "run", tmp_path / "notes"
    judge = noting(notes, refuse_at=rows[50]["id"])  # of the third block of four
    with pytest.raises(SystemExit, match="error: the judge has gone home"):
        main(on_ray(folder, source, judge, processes=1))
    assert "40 of 80 rows are decided and kept; the same command resumes there" in capsys.readouterr().out
    before = parts(folder)
    assert sorted({path.name for path in before}) == ["part-00000.jsonl", "part-00001.jsonl"]
    assert not (folder / "report.json").exists()
    for other in ({"regenerations": 1}, {"block_rows": 10}, {"recipe": "datamodules.refinement.funrl"}):
        with pytest.raises(SystemExit, match=rf"holds a run with other settings \({next(iter(other))}"):
            main(on_ray(folder, source, judge, **other))
    with pytest.raises(SystemExit, match=r"holds a run with other settings \(engine, block_rows\)"):
        main(command(folder, source, judge))
    (notes / "well").touch()
    (notes / "asked").unlink()
    main(on_ray(folder, source, judge, processes=2))
    assert set(asked(notes)) <= {row["id"] for row in rows[40:]}
    assert parts(folder).items() > before.items() and len(parts(folder)) == 8
    main(command(tmp_path / "one", source, judge))
    assert_equal(tmp_path / "one", folder)
    capsys.readouterr()
    main(on_ray(folder, source, judge))
    assert "is finished" in capsys.readouterr().out


def test_a_cluster_that_runs_already_is_joined_by_its_address(tmp_path, write_rows, cluster):
    arguments = on_ray(tmp_path / "two", write_rows(make_corpus("train", 30, 9)), ray_address=cluster, processes=1)
    program = [sys.executable, "-m", "datamodules.refinement", *arguments]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    main(command(tmp_path / "one", tmp_path / "rows.jsonl"))
    assert_equal(tmp_path / "one", tmp_path / "two")


def test_too_many_errors_stop_the_run(tmp_path, write_rows):
    source = write_rows(make_corpus("train", 30, 9))
    judge = noting(tmp_path / "notes", trips=True)
    with pytest.raises(SystemExit, match=r"error: 2 rows ended in an unexpected KeyError: 'no such.*max_row_errors"):
        main(on_ray(tmp_path / "run", source, judge, processes=1))


def test_each_engine_of_a_process_has_its_gpus(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    judges = [VLLMJudge("a", options={"tensor_parallel_size": 2}), VLLMJudge("b"), RuleJudge()]
    assert ray_engine._gpus(Panel(judges)) == 3


def test_a_block_that_was_written_is_not_asked_about_again(tmp_path, scripted, monkeypatch):
    """As where a process dies between its last file and Ray's answer; here in this process, which keeps its folder."""
    import ray

    monkeypatch.setattr(ray_engine.gc, "freeze", lambda: None)
    judge, rows = scripted(), make_corpus("train", 10, 9)
    told = {"in_flight": 2, "max_row_errors": 0.0, "val_fraction": 0.0, "block_rows": 5, "settings": {}}
    job = ray_engine.Job(tmp_path, lambda: enumerate(rows, 1), 10, fcdr, Panel([judge]), **told)
    monkeypatch.setattr(ray, "get", lambda references: references)
    refiner = ray_engine.Refiner(job, {})

    def refine(block):
        return pickle.loads(refiner(block)["result"][0])

    blocks = ({"part": [block["part"]], "first": [block["first"]]} for block in job.blocks())
    second, first = reversed(list(blocks))
    results = [refine(second), refine(first)]  # the source is opened again
    asked = len(judge.asked)
    assert {question.example.id for question in judge.asked} <= {row["id"] for row in rows} and asked >= 10
    assert [refine(second), refine(first)] == results and len(judge.asked) == asked
    kept = [json.loads(line)["id"] for line in joined(tmp_path, "refined").splitlines()]
    assert kept == [row["id"] for row in rows]
    refiner.loop.close()


def test_usage_statistics_are_off_and_a_ray_that_was_there_stays(monkeypatch):
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    with ray_engine._connected(None) as ray:
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert ray.is_initialized()

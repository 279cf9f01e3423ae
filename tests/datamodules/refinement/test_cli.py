import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.refinement.cli import main

DEMO = ["--config", "configs/refine_demo.yaml"]
REFINE = ["--config", "configs/refine.yaml"]


def test_the_command_is_imported_without_torch_and_ray():
    code = "import sys, datamodules.refinement.cli; print(sorted({'torch', 'transformers', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_demo_finds_what_was_planted(tmp_path, capsys):
    main([*DEMO, "--corpus.seed=123", "--corpus.rows=700", f"--output_dir={tmp_path}"])
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["planted"]) >= 5
    assert all(min(kind["precision"], kind["recall"]) >= 0.95 for kind in report["planted"].values())
    lines = [len((tmp_path / name).read_text().splitlines()) for name in ("refined.jsonl", "rejected.jsonl")]
    assert lines == [report["kept"], report["rejected"]] and sum(lines) == report["rows"] == 700
    printed = capsys.readouterr().out
    assert "broken_format" in printed and str(tmp_path / "report.md") in printed
    rejected = json.loads((tmp_path / "rejected.jsonl").read_text().splitlines()[0])
    assert {"row", "stage", "verdict", "fault", "reason", "judge", "query", "tools", "answers"} <= set(rejected)
    text = (tmp_path / "report.md").read_text()
    assert "## Planted defects" in text and "## Refused by cot" in text
    board = EventAccumulator(str(tmp_path)).Reload()
    for tag, value in {"refine/kept": report["kept"], "refine_cot/dropped": report["stages"]["cot"]["dropped"]}.items():
        assert board.Scalars(tag)[-1].value == value and board.Scalars(tag)[-1].step == 700


def test_what_is_written_to_a_folder_at_home_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    main([*DEMO, "--corpus.rows=20", "--output_dir=~/refined"])
    assert [path.name for path in tmp_path.iterdir()] == ["refined"] and (tmp_path / "refined" / "report.md").is_file()


def test_a_dry_run_shows_prompts_and_cost_and_writes_nothing(tmp_path, capsys, make_row, write_rows):
    rows = write_rows([make_row(1), make_row(2, query=None), make_row(3), make_row(4), make_row(5, tools="[{")])
    main([*REFINE, f"--data.path={rows}", f"--output_dir={tmp_path / 'run'}", "--dry-run"])
    printed = capsys.readouterr().out
    assert printed.count("How is the weather in City 1 for 1 days?") == 2  # queries are shown in two of the questions
    assert "row 2 would be rejected: column 'query': is missing" in printed and "City 4" not in printed
    assert "5 rows, 2 of them unreadable; 1 judge(s). About 9 questions" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "config, judges, asked",
    # 4 rows: two with calls, one of which has no chain of thought, one statement, one whose answer cannot be read.
    # fcdr: query, cot, call; query; nothing; response, query, cot, call, format. funrl: each once. cot: one row.
    [("refine", 1, 9), ("refine", 3, 27), ("refine_rl", 1, 4), ("cot", 2, 1)],
)
def test_a_dry_run_asks_what_the_recipe_would(config, judges, asked, tmp_path, capsys, make_row, write_rows):
    answers = {1: {}, 2: {"cot": None}, 3: {"answers": "[]"}, 4: {"answers": "[get_weather(city="}}
    rows = write_rows([make_row(number, **changes) for number, changes in answers.items()])
    panel = f"--judges=[{','.join(['datamodules.refinement.RuleJudge'] * judges)}]"
    main(["--config", f"configs/{config}.yaml", panel, f"--data.path={rows}", "--dry-run"])
    assert f"4 rows, 0 of them unreadable; {judges} judge(s). About {asked} questions" in capsys.readouterr().out


def test_a_limit(tmp_path):
    main([*DEMO, "--corpus.rows=50", "--limit=7", f"--output_dir={tmp_path}"])
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == 7


@pytest.mark.parametrize(
    "options, sentence",
    [
        ([*DEMO, "--data.path=toolbox"], "give the rows as either data.path or corpus"),
        ([*REFINE, "--data=null"], "give the rows as either data.path or corpus"),
        ([*REFINE, "--data.path=nowhere.jsonl"], "no file, folder or data set nowhere.jsonl"),
        ([*REFINE, "--recipe=datamodules.nothing"], "datamodules.nothing"),
        (
            [*REFINE, "--recipe=datamodules.refinement.stages.cot_stage"],
            "recipe is called as recipe(example, judge, regenerations=3), and takes (example: ",
        ),
        ([*REFINE, "--in_flight=0"], "in_flight and limit must be at least 1"),
        ([*REFINE, "--engine=ray", "--processes=0"], "processes and block_rows must be at least 1"),
        ([*DEMO, "--engine=ray"], "engine ray refines rows of data.path"),
        ([*REFINE, "--processes=16"], "settings of engine ray: add --engine ray"),
        ([*REFINE, "--vote=loud"], "loud"),
        ([*REFINE, "--judge=x"], "judge"),
        ([*REFINE, "--judges=[]"], "judges is empty"),
        (["--config", "configs/nothing.yaml"], "configs/nothing.yaml"),
        ([*REFINE, '--judges=[{"class_path": "datamodules.refinement.OpenAIJudge"}]'], "model"),
    ],
)
def test_bad_options_are_one_sentence(options, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*options, f"--output_dir={tmp_path / 'run'}"])
    code = exit_.value.code
    last = capsys.readouterr().err.splitlines()[-1] if code == 2 else code
    assert last.startswith("error: ") and "\n" not in last and sentence in last
    assert not (tmp_path / "run").exists()


def test_a_source_that_breaks_off_is_refused_before_any_judge_is_asked(tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text('[{"id": 1, "query"')
    with pytest.raises(SystemExit, match="row 1: the JSON array breaks off"):
        main([*REFINE, f"--data.path={rows}", f"--output_dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


def test_without_ray(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^error: engine ray needs Ray: pip install -e '\.\[ray\]'$"):
        main([*REFINE, "--engine=ray", f"--output_dir={tmp_path / 'run'}"])


def test_rules_on_rows_of_others_are_said_to_be_for_the_shipped_corpus(tmp_path, capsys, make_row, write_rows):
    rows = write_rows([make_row(1)])
    main([*REFINE, f"--data.path={rows}", f"--output_dir={tmp_path / 'theirs'}"])
    said = capsys.readouterr().out
    assert "RuleJudge goes by the words of the shipped corpus" in said
    pairs = re.findall(r"(\w+\.yaml) after (\w+\.yaml)", said)
    assert len(pairs) == 3
    for overlay, recipe in pairs:  # as the overlay says itself
        usage = f"--config configs/{recipe} --config configs/paper/{overlay} "
        assert usage in Path("configs", "paper", overlay).read_text()
    main([*REFINE, "--data.path=toolbox:train:2", f"--output_dir={tmp_path / 'ours'}"])
    assert "RuleJudge" not in capsys.readouterr().out

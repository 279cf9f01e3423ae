import json
from pathlib import Path

import pytest
from training_runs import command_on_ranks

from datamodules.example import Example
from datamodules.refinement import rounds
from datamodules.refinement.rounds import SelfRefinement, candidate, main, pool_examples
from datamodules.system.locks import sole_writer
from datamodules.toolbox.rows import make_corpus
from datamodules.xlam import write_jsonl
from rewards import render_calls

ROOT = Path(__file__).parents[3]


def option(arguments, name):
    return arguments[arguments.index(name) + 1]


class Commands:
    """Plays the commands: a model that answers rightly on the queries it is told, and is scored by its training."""

    def __init__(self, right, fail=None):
        self.right, self.fail, self.ran = right, fail, []
        self.sampled = []  # from which model each round has sampled, with which seed

    def __call__(self, module, *arguments):
        command = "refine" if module.endswith("refinement") else arguments[0]
        self.ran.append(command)
        if self.fail == len(self.ran):
            raise RuntimeError(f"{command} failed")
        getattr(self, command)(arguments)

    def predict(self, arguments):
        self.sampled.append([option(arguments, f"--model.{name}") for name in ("init_from", "generator.seed")])
        rows = [json.loads(line) for line in Path(option(arguments, "--data.path")).read_text().splitlines()]
        for row in rows:
            if self.right(row["id"]):
                answer = render_calls(json.loads(row["answers"]))
            else:
                answer = "I would rather not."
            row["completion"] = f"<think>{row['cot']}</think>\n\n{answer}"
        folder = Path(option(arguments, "--trainer.default_root_dir")) / "srml-predict-0"
        write_jsonl(folder / "rollouts.jsonl", rows)

    def refine(self, arguments):
        from datamodules.refinement.cli import main

        main([*arguments])

    def fit(self, arguments):
        run = Path(option(arguments, "--trainer.default_root_dir")) / "srml-fit-0"
        (run / "hf").mkdir(parents=True)
        (run / "hf" / "config.json").write_text("{}")

    def test(self, arguments):
        run = Path(option(arguments, "--trainer.default_root_dir")) / "version_0"
        run.mkdir(parents=True)
        (run / "metrics.csv").write_text("step,name,value\n0,tool/exact_match,0.5\n")


@pytest.fixture
def loop(tmp_path, write_rows, monkeypatch):
    monkeypatch.chdir(ROOT)
    pool = write_rows(make_corpus("train", 20, 3))

    def make(commands, **settings):
        monkeypatch.setattr(rounds, "run_module", commands)
        values = {"init_from": "start", "pool": pool, "val_path": "toolbox", "output_dir": str(tmp_path / "loop")}
        values |= {"sample": [], "refine": ["--config", "configs/refine.yaml"], "fit": []}
        (tmp_path / "loop").mkdir(exist_ok=True)
        return SelfRefinement(**values | settings)

    return make


def table(tmp_path):
    return json.loads((tmp_path / "loop" / "rounds.json").read_text())


def test_two_rounds(loop, tmp_path):
    commands = Commands(lambda row_id: int(row_id.split("#")[0].split("-")[-1]) < 12)
    loop(commands).run()
    assert commands.ran == ["test", *["predict", "refine", "fit", "test"] * 2]
    assert commands.sampled == [["start", "1"], [str(tmp_path / "loop/round_1/fit/srml-fit-0"), "2"]]
    start, first, second = table(tmp_path)
    assert start == {"round": 0, "pool": 20, "score": 0.5}
    # 12 of 20 are right, and of the 8 refusals those for queries that no tool fits count as right, too
    refusals = sum(row["answers"] == "[]" for row in make_corpus("train", 20, 3)[12:])
    assert first["sampled"] == second["sampled"] == 20
    assert first["accepted"] == first["well_formed"] == 12 + refusals
    assert first["acceptance"] == round((12 + refusals) / 20, 4) and first["score"] == 0.5
    trained = [json.loads(line) for line in (tmp_path / "loop/round_1/train.jsonl").read_text().splitlines()]
    assert len(trained) == 12 + refusals and trained[0]["source"] == "self-refinement"


@pytest.mark.parametrize("fail", range(1, 10))
def test_a_loop_that_was_stopped_goes_on_where_it_was(loop, tmp_path, fail):
    commands = Commands(lambda row_id: True, fail)
    with pytest.raises(RuntimeError, match="failed"):
        loop(commands).run()
    done, commands.fail = len(commands.ran) - 1, None
    loop(commands).run()
    whole = ["test", *["predict", "refine", "fit", "test"] * 2]
    ran_again = [command for command in commands.ran[fail:] if command != "refine"]  # which notices by itself
    assert ran_again == [command for command in whole[done:] if command != "refine"]
    assert [row["round"] for row in table(tmp_path)] == [0, 1, 2]


def test_a_training_that_was_killed_between_its_last_step_and_its_model_is_exported(loop, tmp_path, capsys):
    class Killed(Commands):
        def fit(self, arguments):  # which takes no step more where all are taken, and writes no model
            run = Path(option(arguments, "--trainer.default_root_dir")) / "srml-fit-0"
            if "--ckpt_path" not in arguments:
                (run / "checkpoints").mkdir(parents=True)
                (run / "checkpoints" / "last-000002.ckpt").write_text("x")
                raise RuntimeError("fit failed")

        def export(self, arguments):
            assert option(arguments, "--ckpt_path") == str(tmp_path / "loop/round_1/fit/srml-fit-0")
            folder = Path(option(arguments, "--output_dir"))
            folder.mkdir()
            (folder / "config.json").write_text("{}")

    commands = Killed(lambda row_id: True)
    with pytest.raises(RuntimeError, match="fit failed"):
        loop(commands, rounds=1).run()
    assert "was begun" not in capsys.readouterr().out
    loop(commands, rounds=1).run()
    assert commands.ran == ["test", "predict", "refine", "fit", "refine", "fit", "export", "test"]
    said = capsys.readouterr().out
    assert f"{tmp_path / 'loop'} holds a loop that was begun: what it has done is not done again." in said
    assert f"The last model: {tmp_path / 'loop/round_1/fit/srml-fit-0'}; " in said


def test_a_score_that_a_kill_has_left_without_its_number_is_made_again(loop, tmp_path):
    commands = Commands(lambda row_id: True)
    loop(commands, rounds=1).run()
    (tmp_path / "loop/test/round_1/version_0/metrics.csv").rename(tmp_path / "gone")
    (tmp_path / "loop/test/round_1/version_9").mkdir()
    (tmp_path / "loop/test/round_1/version_9/metrics.csv").touch()
    (tmp_path / "loop/test/round_1/version_0").rmdir()
    commands.ran.clear()
    loop(commands, rounds=1).run()
    assert commands.ran == ["refine", "test"]


def test_more_rounds_follow_and_what_is_done_stays(loop, tmp_path):
    commands = Commands(lambda row_id: True)
    loop(commands, rounds=1).run()
    loop(commands, rounds=2).run()
    ran = [command for command in commands.ran if command != "refine"]
    assert ran == ["test", *["predict", "fit", "test"] * 2]
    assert [row["round"] for row in table(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize(
    "name, value",
    [
        ("init_from", "other"),
        ("pool", "toolbox:train:9"),
        ("val_path", "toolbox:heldout:9"),
        ("sample", ["--model.generator.temperature=1"]),
        ("refine", ["--config", "configs/refine_rl.yaml"]),
        ("fit", ["--model.learning_rate=1"]),
        ("samples", 2),
        ("hard", True),
    ],
)
def test_a_folder_with_other_settings_is_refused(loop, tmp_path, name, value):
    commands = Commands(lambda row_id: True)
    first = loop(commands, rounds=1)
    first.run()
    before, ran = table(tmp_path), list(commands.ran)
    with pytest.raises(ValueError, match="holds a loop with other settings: ") as error:
        loop(commands, **{name: value}).run()
    assert f": {name} is {value!r} here and {getattr(first, name)!r} there; choose another" in str(error.value)
    assert (table(tmp_path), commands.ran) == (before, ran)


def test_a_loop_whose_first_step_failed_may_be_corrected(loop, tmp_path):
    with pytest.raises(RuntimeError, match="test failed"):
        loop(Commands(lambda row_id: True, fail=1), init_from="misspelt").run()
    loop(Commands(lambda row_id: True), rounds=1).run()
    assert [row["round"] for row in table(tmp_path)] == [0, 1]


def test_a_pool_of_other_rows_under_the_same_name_is_refused(loop, write_rows):
    first = loop(Commands(lambda row_id: True), rounds=1)
    first.run()
    Path(first.pool).write_text("".join(json.dumps(row) + "\n" for row in make_corpus("train", 5, 4)))
    with pytest.raises(ValueError, match="other settings: rows of pool is '"):
        loop(Commands(lambda row_id: True), rounds=1).run()


def test_a_folder_that_does_not_say_its_settings_is_refused(loop, tmp_path):
    loop(Commands(lambda row_id: True), rounds=1).run()
    (tmp_path / "loop" / "settings.json").unlink()
    with pytest.raises(ValueError, match="a loop of an earlier version, which did not save its settings: choose"):
        loop(Commands(lambda row_id: True), rounds=1).run()


def test_a_loop_may_lie_at_home(loop, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert loop(None, output_dir="~/loop").folder == tmp_path / "loop"


def test_answered_queries_leave_the_pool_of_hard_ones(loop, tmp_path):
    commands = Commands(lambda row_id: not row_id.endswith("#0") and int(row_id.split("#")[0].split("-")[-1]) % 2 == 0)
    loop(commands, samples=3, hard=True, rounds=10).run()
    first, *_ = rows = table(tmp_path)[1:]
    calling = {i for i, row in enumerate(make_corpus("train", 20, 3)) if row["answers"] != "[]"}
    answered = {i for i in range(20) if i % 2 == 0 or i not in calling}
    assert (first["pool"], first["sampled"], first["queries_answered"]) == (20, 60, len(answered))
    assert rows[1]["pool"] == 20 - len(answered) and rows[1].get("accepted", 0) == 0 and len(rows) == 2


def test_the_hard_rows_of_a_refinement(tmp_path):
    rows = make_corpus("train", 5, 3)
    stages = ("call", "format", "query", "cot", "cot")
    rejected = [{"row": n, "stage": stage} | row for n, (stage, row) in enumerate(zip(stages, rows, strict=True), 1)]
    rejected[1]["answers"] = "[broken("
    rejected[3]["tried"], rejected[4]["tried"] = [], ["[f(a=2)]"]  # the last one's own answer failed at "call"
    write_jsonl(tmp_path / "rejected.jsonl", rejected)
    hard = [example.id for example in pool_examples(str(tmp_path / "rejected.jsonl"))]
    assert hard == [rows[0]["id"], rows[1]["id"], rows[4]["id"]]


def test_a_pool_without_hard_rows_is_refused(loop, tmp_path):
    write_jsonl(tmp_path / "rejected.jsonl", [{"stage": "query"} | row for row in make_corpus("train", 2, 3)])
    with pytest.raises(ValueError, match=r"^pool: .*rejected\.jsonl holds no rows to roll out on: give others"):
        loop(Commands(bool), pool=str(tmp_path / "rejected.jsonl")).run()


def test_a_rollout_without_its_think_block_is_no_candidate():
    row = {"id": "1", "query": "q", "tools": "[]", "history": "[]", "category": ""}
    assert candidate(row | {"completion": "[f()]"}) is None
    assert candidate(row | {"completion": "<think>a</think>"}) is None
    made = candidate(row | {"completion": "<think>a</think>\n\n[f()"})
    assert (made.cot, made.answers) == ("a", "[f()")


def test_impossible_settings_are_one_sentence(capsys):
    with pytest.raises(SystemExit, match="error: rounds and samples must be at least 1"):
        main(["--config", str(ROOT / "configs/self_refine.yaml"), "--rounds=0"])


def test_two_loops_of_one_folder(tmp_path):
    given = {name: "x" for name in ("init_from", "pool", "val_path")} | {"output_dir": tmp_path / "loop"}
    options = [f"--{name}={value}" for name, value in given.items()] + [
        f"--{n}=[]" for n in ("sample", "refine", "fit")
    ]
    with (
        sole_writer(tmp_path / "loop"),
        pytest.raises(SystemExit, match=r"error: another run is writing to .*loop: wait for it, or write elsewhere"),
    ):
        main(options)


@pytest.mark.ranks
def test_a_round_uses_the_rollouts_of_all_ranks(loop, tmp_path, tiny_model_dir, monkeypatch):
    """Two ranks sample from a random model; every completion is then taken for the right answer."""

    class Sampled(Commands):
        def predict(self, arguments):
            done = command_on_ranks(*arguments)
            assert done.returncode == 0, done.stderr[-4000:]

    def right(rollout):
        assert rollout["completion"]
        columns = {name: rollout[name] for name in ("id", "query", "tools", "history", "answers")}
        return Example(**columns, cot="It fits.", source="self-refinement")

    monkeypatch.setattr(rounds, "candidate", right)
    sample = ["--config=configs/sample.yaml", "--config=configs/trainer/ddp.yaml", "--trainer.accelerator=cpu"]
    sample += ["--trainer.devices=2", "--trainer.precision=32-true", f"--data.cache_dir={tmp_path / 'cache'}"]
    sample += ["--model.generator=lightning_modules.generators.HFGenerator", "--model.generator.max_new_tokens=4"]
    loop(Sampled(None), init_from=str(tiny_model_dir), rounds=1, sample=sample).run()
    assert table(tmp_path)[1]["sampled"] == table(tmp_path)[1]["well_formed"] == 20
    lines = (tmp_path / "loop/round_1/candidates.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"{row['id']}#0" for row in make_corpus("train", 20, 3)]

"""Evaluations on BFCL: a scripted model through the whole run, interruptions, several samples, what is refused."""

import json
import shutil

import pytest
import torch
from huggingface_hub import constants
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import command_on_ranks
from transformers import AutoConfig, AutoModelForCausalLM

from datamodules import BFCLDataModule
from lightning_modules import BFCLModule
from lightning_modules.cli import main
from lightning_modules.generators import Completion

pytest.importorskip("bfcl_eval", reason="bfcl-eval is not installed")

CATEGORIES = ["simple", "java", "parallel", "irrelevance"]


class Scripted:
    """Answers each row as told, and notes which rows it was asked."""

    max_new_tokens, top_p, seed, reports_logprobs = 64, 1.0, 0, False

    def __init__(self, tokenizer, answer, fail_after=None):
        self.tokenizer, self.answer, self.left, self.asked = tokenizer, answer, fail_after, []

    def __call__(self, policy, prompts, names=None, n=1, stop_ids=None, temperature=None, top_p=None):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left = None if self.left is None else self.left - 1
        self.asked += names
        texts = [[self.answer(row, sample) for sample in range(n)] for row in names]
        encode = lambda text: self.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
        return [[Completion([*encode(text), min(stop_ids)], "stop") for text in row] for row in texts]


GOLD = {
    "simple_0": "[calculate_triangle_area(base=10, height=5, unit='units')]",
    "simple_1": "[math.factorial(number=5)]",
    "java_0": '[GeometryPresentation.createPresentation(controller="mapController", parent="mapArea")]',
    "java_1": "[f(a=1)]",  # wrong
    "parallel_0": "[spotify.play(artist='Maroon 5', duration=15), spotify.play(artist='Taylor Swift', duration=20)]",
    "parallel_1": "[spotify.play(",  # wrong
    "irrelevance_0": "No function fits.",
    "irrelevance_1": "[determine_body_mass_index(weight=1.0, height=2.0)]",  # wrong
}


def told(row, sample):
    return f"<think>It is {row}.</think>\n\n{GOLD[row]}"


@pytest.fixture
def evaluate(tiny_model_dir, tiny_tokenizer, tmp_path):
    def run(answer=told, fail_after=None, data=None, precision=None, checkpoint=None, **options):
        generator = Scripted(tiny_tokenizer, answer, fail_after)
        module = BFCLModule(**{"init_from": str(tiny_model_dir), "generator": generator} | options)
        rows = BFCLDataModule(
            str(tiny_model_dir), **{"categories": CATEGORIES, "limit": 8, "eval_batch_size": 2} | (data or {})
        )
        logger = TensorBoardLogger(tmp_path, name="")
        quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(accelerator="cpu", logger=logger, precision=precision, **quiet)
        try:
            trainer.test(module, datamodule=rows, verbose=False, ckpt_path=checkpoint)
        except SystemExit:  # what Lightning makes of an interruption
            pass
        return generator.asked, module.run, module

    return run


def lines(run, category, folder="result"):
    file = run / folder / "Qwen_Qwen3-8B" / f"BFCL_v3_{category}_result.json"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_answers_are_written_scored_and_shown(evaluate, capsys):
    asked, run, module = evaluate()
    assert asked == [f"{category}_{i}" for category in CATEGORIES for i in range(2)]
    (line, _) = lines(run, "simple")
    assert line == {
        "id": "simple_0",
        "result": GOLD["simple_0"],
        "reasoning_content": "It is simple_0.",
        "input_token_count": line["input_token_count"],
        "output_token_count": line["output_token_count"],
    }
    found = {category: module.scores[category][:2] for category in CATEGORIES}
    assert found == {"simple": (1.0, 2), "java": (0.5, 2), "parallel": (0.5, 2), "irrelevance": (0.5, 2)}
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["simple", "100.00", "first", "2", "of", "400"] in table
    assert ["this", "model", "(PARTIAL)", "N/A", "0.00", "N/A"] in table
    wrong = [json.loads(line) for line in (run / "wrong.jsonl").read_text().splitlines()]
    assert [line["id"] for line in wrong] == ["java_1", "parallel_1", "irrelevance_1"]
    assert wrong[2]["reason"] == "there is a call where no function fits" and wrong[2]["sample"] == 1
    board = EventAccumulator(str(run)).Reload()
    assert board.Scalars("bfcl/java")[-1].value == 0.5 and board.Tags()["tensors"] == ["bfcl/table/text_summary"]
    assert "bfcl/live" not in board.Tags()["scalars"]


def test_an_interrupted_evaluation_goes_on_where_it_stopped(evaluate, capsys):
    asked, first, _ = evaluate(fail_after=2)
    assert asked == ["simple_0", "simple_1", "java_0", "java_1"]
    asked, second, module = evaluate()
    assert asked == ["parallel_0", "parallel_1", "irrelevance_0", "irrelevance_1"]
    assert "4 of 8 rows were answered by earlier runs" in capsys.readouterr().out
    assert (first.name, second.name) == ("version_0", "version_1")
    assert lines(first, "java") == lines(second, "java")  # the new folder is complete
    assert module.scores["simple"].accuracy == 1.0
    assert evaluate()[0] == []
    more, _, _ = evaluate(data={"categories": ["simple"], "limit": 2})
    assert more == []


def test_other_settings_start_afresh(evaluate, tiny_model_dir, tmp_path):
    one, both = {"categories": ["simple"], "limit": 2}, ["simple_0", "simple_1"]
    evaluate(data=one)
    options = {"model.init_from": tiny_model_dir, "data.path": "toolbox:train:8", "trainer.max_steps": 1}
    options |= {"data.val_fraction": 0, "trainer.limit_val_batches": 0, "trainer.default_root_dir": tmp_path / "fit"}
    main(["fit", "--config", "configs/srml.yaml", *(f"--{name}={value}" for name, value in options.items())])
    checkpoint, template = next((tmp_path / "fit").glob("*/checkpoints/*.ckpt")), tmp_path / "other.jinja"
    template.write_text("{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}")
    others = (
        {"temperature": 0.7},
        {"checkpoint": checkpoint},
        {"precision": "bf16-mixed"},
        {"attn_implementation": "eager"},
        {"data": one | {"chat_template": str(template)}},
    )
    for other in others:
        assert [evaluate(**{"data": one} | other)[0] for _ in range(2)] == [both, []]
    template.write_text("{% for message in messages %}{{ message.content }}\n{% endfor %}")
    assert evaluate(data=one | {"chat_template": str(template)})[0] == both
    assert evaluate(data=one)[0] == []


def test_a_model_that_has_changed_on_its_hub_is_asked_again(evaluate, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    entry, one = tmp_path / "hub" / "models--some--model", {"categories": ["simple"], "limit": 2}
    for commit, seed in (("a" * 40, 0), ("b" * 40, 1)):
        snapshot = shutil.copytree(tiny_model_dir, entry / "snapshots" / commit)
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(snapshot)).save_pretrained(snapshot)
        (entry / "refs").mkdir(exist_ok=True)
        (entry / "refs" / "main").write_text(commit)
        asked = [evaluate(data=one, init_from="some/model")[0] for _ in range(2)]
        assert asked == [["simple_0", "simple_1"], []]


def test_several_samples_are_averaged_and_kept_apart(evaluate):
    answers = {("simple_0", 0): GOLD["simple_0"], ("simple_1", 1): GOLD["simple_1"], ("simple_1", 2): GOLD["simple_1"]}
    _, run, module = evaluate(
        lambda row, sample: answers.get((row, sample), "[]"),
        data={"categories": ["simple"], "limit": 2},
        samples=3,
        temperature=1.0,
    )
    assert module.scores["simple"] == (3 / 6, 6, True)
    assert [line["result"] == "[]" for line in lines(run, "simple", "result-3")] == [True, False]
    wrong = [json.loads(line) for line in (run / "wrong.jsonl").read_text().splitlines()]
    assert [(line["id"], line["sample"]) for line in wrong] == [("simple_0", 2), ("simple_0", 3), ("simple_1", 1)]


def test_answer_tags_are_taken_off(evaluate):
    _, run, module = evaluate(
        lambda row, sample: f"<think>x</think><answer>{GOLD[row]}</answer>",
        data={"categories": ["simple"], "limit": 2},
        answer_tags="answer",
    )
    assert module.scores["simple"].accuracy == 1.0 and lines(run, "simple")[0]["result"] == GOLD["simple_0"]


def test_damaged_answers_stop_the_run_before_it_asks(evaluate):
    _, run, _ = evaluate(data={"categories": ["simple"], "limit": 2})
    file = run / "result" / "Qwen_Qwen3-8B" / "BFCL_v3_simple_result.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(ValueError, match=r"BFCL_v3_simple_result.json, line 2 is not a whole result"):
        evaluate(data={"categories": ["simple"], "limit": 2})


def test_through_the_command_line_with_the_tiny_model(tiny_model_dir, tmp_path, capsys):
    options = {
        "model.init_from": tiny_model_dir,
        "model.generator": "lightning_modules.generators.HFGenerator",
        "model.generator.max_new_tokens": 4,
        "data.categories": "[irrelevance,live_relevance]",
        "data.limit": 2,
        "trainer.default_root_dir": tmp_path,
        "trainer.enable_progress_bar": "false",
    }
    main(["test", "--config", "configs/bfcl.yaml", *(f"--{name}={value}" for name, value in options.items())])
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["irrelevance", "100.00", "first", "1", "of", "240"] in table
    assert ["live_relevance", "0.00", "first", "1", "of", "18"] in table


@pytest.mark.parametrize(
    "options, message",
    [
        (["--model.samples=3"], "model.samples is 3 and model.temperature 0.0; give at least one sample, and a temp"),
        (
            ["--model.generator.temperature=0.7"],
            "model.generator.temperature is 0.7, and BFCL's answers are sampled at model.temperature, which is 0.0",
        ),
        (
            ["--model.registered_name=me/mine", "--data.limit=1"],
            "bfcl-eval 2025.8.6.2 knows no model me/mine; give one that `bfcl mod",
        ),
        (["--data.categories=[simple,chatable]"], "'chatable' is no category of BFCL v3"),
        (["--data.path=/nowhere"], "/nowhere holds no package bfcl_eval"),
        (
            ["--data.class_path=XLAMSFTDataModule", "--data.path=toolbox"],
            "BFCLModule answers the rows of a BFCLDataModule",
        ),
    ],
)
def test_bad_input_is_one_sentence(options, message, tiny_model_dir, tmp_path, capsys):
    base = [f"--model.init_from={tiny_model_dir}", f"--trainer.default_root_dir={tmp_path}"]
    with pytest.raises(SystemExit) as error:
        main(["test", "--config", "configs/bfcl.yaml", *base, *options])
    said = f"{error.value} {capsys.readouterr().err}"
    assert message in said and "Traceback" not in said


@pytest.mark.ranks
def test_two_ranks_share_the_rows_and_the_answers(tiny_model_dir, tmp_path):
    options = {
        "model.init_from": tiny_model_dir,
        "model.generator": "lightning_modules.generators.HFGenerator",
        "model.generator.max_new_tokens": 4,
        "data.categories": "[irrelevance,live_relevance]",
        "data.limit": 6,
        "data.eval_batch_size": 3,
        "trainer.default_root_dir": tmp_path,
        "trainer.accelerator": "cpu",
        "trainer.devices": 2,
        "trainer.strategy": "ddp",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    done = command_on_ranks("test", "--config", "configs/bfcl.yaml", *arguments)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("this model (PARTIAL)") == 1
    assert ["irrelevance", "100.00", "first", "3", "of", "240"] in [line.split() for line in done.stdout.splitlines()]
    assert [line["id"] for line in lines(tmp_path / "bfcl-test-0", "irrelevance")] == [
        f"irrelevance_{i}" for i in range(3)
    ]
    wrong = [json.loads(line)["id"] for line in (tmp_path / "bfcl-test-0" / "wrong.jsonl").read_text().splitlines()]
    assert sorted(wrong) == ["live_relevance_0-0-0", "live_relevance_1-1-0", "live_relevance_2-2-0"]
    file = next((tmp_path / "bfcl-test-0").rglob("*_irrelevance_result.json"))
    file.write_text(file.read_text()[:-20])
    done = command_on_ranks("test", "--config", "configs/bfcl.yaml", *arguments)
    assert all(done.returncodes) and "line 3 is not a whole result" in done.stderr
    assert "Connection closed" not in done.stderr  # no rank waits for one that has ended


@pytest.mark.ranks
@pytest.mark.parametrize("overlay", ["ddp", "fsdp", "fsdp2"])
def test_the_files_and_scores_of_two_ranks_are_those_of_one_process(tiny_model_dir, tmp_path, overlay):
    command = ["test", "--config", "configs/bfcl.yaml", "--config", f"configs/trainer/{overlay}.yaml"]
    options = {
        "model.init_from": tiny_model_dir,
        "model.generator": "lightning_modules.generators.HFGenerator",
        "model.generator.max_new_tokens": 12,
        "data.categories": "[simple,irrelevance,live_relevance]",
        "data.limit": 8,  # 3, 3 and 2 of the categories
        "data.eval_batch_size": 3,  # the ranks have 2 and 1 of each batch but the last
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    main([*command, *arguments, "--trainer.devices=1", f"--trainer.default_root_dir={tmp_path / 'one'}"])
    places = ["--trainer.devices=2", f"--trainer.default_root_dir={tmp_path / 'two'}"]
    done = command_on_ranks(*command, *arguments, *places)
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = (tmp_path / which / "bfcl-test-0" for which in ("one", "two"))
    files = {path.relative_to(one) for path in one.rglob("*.json*")}
    assert {path.relative_to(two) for path in two.rglob("*.json*")} == files and len(files) == 5  # of 3 categories
    for file in (*files, "metrics.csv"):
        assert (two / file).read_text() == (one / file).read_text(), file
    assert "gradient_checkpointing" not in (two / "config.yaml").read_text()  # a key of the overlay's, for training

"""README and docs: every command parses, every path, link, key and metric that they name exists, their Python runs."""

import ast
import csv
import importlib
import inspect
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer

from datamodules import BFCLDataModule, XLAMPromptDataModule, XLAMSFTDataModule
from datamodules.example import BadRow
from datamodules.packing import idle_batch
from datamodules.refinement import cli as refine
from datamodules.refinement import rounds
from datamodules.rows import read_raw
from datamodules.system.command_line import SentenceParser
from datamodules.toolbox import __main__ as toolbox
from datamodules.xlam import read_examples
from lightning_modules import BFCLModule, GRPOModule, SRMLModule
from lightning_modules.callbacks import board
from lightning_modules.cli import FunReasonCLI
from lightning_modules.commands.ask import load_model
from lightning_modules.commands.main import main
from rewards import FunctionCallReward

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TOP = ("lightning_modules", "datamodules", "rewards", "configs", "docs", "notebooks", "benchmarks", "assets", "tests")
COMMANDS = {"funreason": main, "funreason-refine": refine.main, "funreason-self-refine": rounds.main}


class ParsedError(BaseException):
    """Raised in the place of what a command does once it has read its command line; no command catches it."""


def blocks(page, kind):
    """The fenced blocks of a kind in a page."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands():
    """The command lines of all pages, without comments, each once: words -> page."""
    lines = {}
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                for part in shlex.join(words).split(" '&&' ") if words else ():
                    lines.setdefault(part, page.name)
    return lines


def test_every_page_with_commands_is_read():
    pages = {name for name in commands().values()}
    assert {"README.md", "commands.md", "configuration.md", "refinement.md", "bfcl.md", "vllm.md"} <= pages


@pytest.fixture
def own(tmp_path, tiny_model_dir, monkeypatch):
    """What the pages call MODEL, RUN, rows.jsonl, ...; the working directory is the repository's root."""
    monkeypatch.chdir(ROOT)
    (row,) = blocks(ROOT / "README.md", "json")
    for name in ("rows.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(json.dumps(json.loads(row)) + "\n")
    (tmp_path / "tools.json").write_text(json.dumps(json.loads(row)["tools"]))
    files = {name: tmp_path / name for name in ("rows.jsonl", "test.jsonl", "tools.json")}
    return {"MODEL": tiny_model_dir, "RUN": tiny_model_dir, **files}


def targets():
    return re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("line", [line for line in commands() if line.split()[:1] != ["source"]])
def test_command_is_understood(line, own, monkeypatch):
    """As far as reading the command line goes; what the commands do is tested where they are."""
    program, *words = (str(own.get(word, word)) for word in shlex.split(line))
    if program == "make":
        assert words[0] in targets() and all("=" in word for word in words[1:])
        return
    if program == "pip":
        extra = re.search(r"\[(\w+)\]", line)[1]
        assert re.search(rf"^{extra} =$", (ROOT / "setup.cfg").read_text(encoding="utf-8"), re.MULTILINE)
        assert all((ROOT / words[i + 1]).is_file() for i, word in enumerate(words) if word == "-c")
        return
    if program == "python":
        assert words[:2] == ["-m", "datamodules.toolbox"]
        toolbox.main(words[2:])
        return
    helps = [word for word in words if word.endswith(".help") or word == "--print_config"]
    parse_args, depth = SentenceParser.parse_args, []

    def parse(parser, *args, **kwargs):
        depth.append(parser)
        options = parse_args(parser, *args, **kwargs)
        depth.pop()
        if not depth:
            raise ParsedError
        return options

    def stop(model):
        raise ParsedError

    monkeypatch.setattr(SentenceParser, "parse_args", parse)
    monkeypatch.setattr("lightning_modules.commands.serve.server_arguments", stop)  # who reads the rest is vLLM
    monkeypatch.setattr("sys.argv", [program, *words])
    with pytest.raises((ParsedError, SystemExit)) as end:
        COMMANDS[program](words)
    assert isinstance(end.value, ParsedError) or (helps and end.value.code in (0, None)), end.value


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http://", "https://")):
            assert (page.parent / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_and_the_names_in_it_exist(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for path, names in re.findall(rf"`((?:{'|'.join(TOP)})/[\w./-]*)(?:: ([\w, ]+))?`", text):
        assert (ROOT / path).exists(), path
        for name in filter(None, names.split(", ")):
            assert re.search(rf"^(?:async )?(?:def|class) {name}\b", (ROOT / path).read_text(), re.MULTILINE), name


def parameters(*classes):
    return {name for cls in classes for base in cls.__mro__[:-1] for name in inspect.signature(base).parameters}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_is_one(page):
    known = {
        "model": parameters(SRMLModule, GRPOModule, BFCLModule),
        "data": parameters(XLAMSFTDataModule, XLAMPromptDataModule, BFCLDataModule),
        "trainer": parameters(Trainer),
    }
    for section, key in re.findall(r"`-{0,2}(model|data|trainer)\.(?!init_args)(\w+)", page.read_text("utf-8")):
        assert key in known[section] | {"help"}, f"{section}.{key}"


@pytest.mark.parametrize("block", blocks(ROOT / "docs" / "configuration.md", "yaml"))
def test_yaml_of_the_configuration_page_builds_a_run(block, own, tmp_path):
    (tmp_path / "mine.yaml").write_text(block)
    files = ["--config=configs/finetune.yaml", f"--config={tmp_path / 'mine.yaml'}"]
    given = [f"--model.init_from={own['MODEL']}", f"--data.path={own['rows.jsonl']}", "--trainer.accelerator=cpu"]
    cli = FunReasonCLI([*files, *given, f"--trainer.default_root_dir={tmp_path}"], run=False)
    for key, value in yaml.safe_load(block).items():
        assert cli.config[key] is not None and value


def test_row_of_the_readme_is_what_its_picture_shows(own):
    (example,), bad = read_examples(own["rows.jsonl"])
    picture = (ROOT / "docs" / "images" / "row.svg").read_text(encoding="utf-8")
    assert not bad and all(text in picture for text in (example.query, example.cot, *json.loads(example.answers)[0]))
    plain = re.sub(r"<[^>]*>", " ", picture).replace("&lt;", "<").replace("&gt;", ">").replace("<|im_end|>", "")
    answers = [line.strip() for line in plain.split("3  The reward")[1].splitlines() if "get_weather(" in line]
    scores = [int(line) for line in plain.split("3  The reward")[1].splitlines() if line.strip() in ("0", "1")]
    assert len(answers) == len(scores) == 4
    for answer, score in zip(answers, scores, strict=True):
        assert FunctionCallReward()(answer, example.tools, example.answers).score == score, answer


def test_chat_of_the_data_page_is_read_as_it_says():
    (row,) = blocks(ROOT / "docs" / "data.md", "json")
    (last,), every = (read_raw(row, turns).examples for turns in ("last", "every"))
    assert (last.query, last.cot) == ("And the day after?", "Still Oslo, two days ahead.")
    assert json.loads(last.answers) == [{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}]
    assert [example.response for example in every] == ["", "It will be 3 °C.", ""]


def test_python_of_the_readme_trains(own, tmp_path):
    _, train = blocks(ROOT / "README.md", "python")
    small = {"max_steps=100": "max_steps=1, enable_progress_bar=False", "assets/tiny-base": str(own["MODEL"])}
    small |= {"toolbox:train:400": str(own["rows.jsonl"]), "limit_val=32": f"val_fraction=0, cache_dir='{tmp_path}'"}
    small |= {"runs/python": str(tmp_path)}
    for given, instead in small.items():
        assert given in train
        train = train.replace(given, instead)
    space = {}
    exec(train, space)
    assert space["trainer"].global_step == 1


def test_python_of_the_client_is_python():
    for page in PAGES:
        for block in blocks(page, "python"):
            ast.parse(block)


def extending():
    """The files that docs/extending.md shows: name -> text. The line above a block begins or ends with its name."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    return dict(re.findall(r"`([\w.]+)`(?:, [^\n]*)?:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


@pytest.fixture
def extend(own, tmp_path, monkeypatch):
    """Runs a recipe with a YAML of docs/extending.md after it, for one step, and gives the metrics."""
    for name, text in extending().items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    small = {"model.init_from": own["MODEL"], "data.path": own["rows.jsonl"], "data.val_path": own["rows.jsonl"]}
    small |= {"data.cache_dir": tmp_path / "cache", "model.generator.max_new_tokens": 4}
    small |= {"trainer.max_steps": 1, "trainer.val_check_interval": 1, "trainer.precision": "32-true"}
    small |= {"trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false"}

    def run(recipe, name, **options):
        given = small | {"trainer.default_root_dir": tmp_path / "run"} | options
        files = [f"--config=configs/{recipe}.yaml", f"--config={tmp_path / name}"]
        main(["fit", *files, *(f"--{key}={value}" for key, value in given.items())])
        (log,) = (tmp_path / "run").glob("*/metrics.csv")
        return {row["name"]: float(row["value"]) for row in csv.DictReader(log.open())}

    return run


def run_tests(text):
    """Run the tests of a text as pytest does those without fixtures."""
    space = {}
    exec(text, space)
    tests = [test for name, test in space.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_the_objective_of_extending_trains(extend, own):
    run_tests(extending()["test_my_dft.py"])
    metrics = extend("finetune", "my_dft.yaml", **{"data.batch_size": 1})
    assert 0 < metrics["train/loss"] < 1 / math.e  # a mean of -p log p, whose greatest value is at p = 1 / e
    assert metrics["train/grad_norm"] > 0 and "tool/exact_match" in metrics
    module = sys.modules["my_dft"].DFTModule(init_from=own["MODEL"])
    module.configure_model()
    loss, _ = module.loss(idle_batch(module.device), 1)
    assert loss.item() == 0 and loss.requires_grad
    (row,) = blocks(ROOT / "docs" / "extending.md", "markdown")
    file, name = re.fullmatch(r"\| [^|]+ \| `(.+): (\w+)` \|\n", row).groups()
    assert f"def {name}(" in extending()[file]


def test_the_loss_of_extending_is_learnt_from(extend, tmp_path):
    run_tests(extending()["test_my_loss.py"])
    assert "policy/loss" in extend("rl", "my_loss.yaml", **{"data.prompts_per_step": 1, "model.sampling.group_size": 2})
    (saved,) = (tmp_path / "run").glob("*/config.yaml")
    loss = yaml.safe_load(saved.read_text())["model"]["init_args"]["loss"]
    assert loss["class_path"] == "my_loss.WeightedLoss"
    assert (loss["init_args"]["positive"], loss["init_args"]["clip_high"]) == (0.1, 0.28)


def test_the_alpha_of_extending_falls(extend, own, monkeypatch):
    assert extend("finetune", "my_objective.yaml", **{"data.batch_size": 1})["train/loss"] > 0
    falling = sys.modules["my_objective"].FallingSRMLModule(init_from=own["MODEL"], final_cot_weight=0.5)
    falling._trainer = type("Half", (), {"estimated_stepping_batches": 10, "global_step": 5})()
    assert falling.alpha() == pytest.approx(0.6)  # 0.7 + 5 / 10 (0.5 - 0.7)


def test_the_rewards_of_extending_are_paid(extend):
    metrics = extend("rl", "my_rewards.yaml", **{"data.prompts_per_step": 1, "model.sampling.group_size": 2})
    mean = 0.2 * metrics["reward/short/mean"] + 0.1 * metrics["reward/few/mean"] + metrics["reward/function_call/mean"]
    assert metrics["reward/mean"] == pytest.approx(mean)
    rewards = sys.modules["my_rewards"]
    row = [f"<think>{'so ' * words}</think>\n\n[]" for words in (60, 61)]
    assert [rewards.short_thought(text, "[]", "[]") for text in row] == [1.0, 0.0]
    calls = [f"<think>So.</think>\n\n[{', '.join(['f()'] * n)}]" for n in (0, 2, 3)]
    assert [rewards.AtMostCalls(2)(text, "[]", "[]") for text in [*calls, "f("]] == [1.0, 1.0, 0.0, 0.0]


def test_the_run_from_python_of_extending_leaves_a_model_and_answers(extend, own, tmp_path):
    run = tmp_path / "my_run.py"
    assert "max_new_tokens=512" in run.read_text()
    run.write_text(run.read_text().replace("max_new_tokens=512", "max_new_tokens=4"))
    train = importlib.import_module("my_run").train
    row, *_ = map(json.loads, Path(own["rows.jsonl"]).read_text().splitlines())
    queries = ["weather in Oslo?", "Oslo tomorrow?"]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row | {"query": query}) + "\n" for query in queries))
    answers = train(str(own["MODEL"]), str(tmp_path / "two.jsonl"), str(tmp_path / "python"), steps=1)
    assert [answer["query"] for answer in answers] == queries
    assert all(answer["completion"] and answer["score"] == 0.0 for answer in answers)
    (folder,) = (tmp_path / "python").glob("**/hf")
    assert (folder / "adapter").is_dir() and load_model(str(folder))[2].answer_form == "python"


def test_the_form_of_rows_of_extending_is_read(tmp_path):
    files = extending()
    test = files["test_utterances.py"]
    with pytest.raises(BadRow) as refused:
        run_tests(test)
    assert f"`{refused.value}`" in (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for package in ("rewards", "datamodules"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=files["utterances.diff"], text=True, check=True)
    code = f"{inspect.getsource(run_tests)}\nrun_tests({test!r})"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, check=True)


def metrics_of_the_page():
    """Patterns of the metrics that the first column of docs/metrics.md names."""
    rows = re.findall(r"^\| (`[^|]*) \|", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    return [re.escape(name).replace("CATEGORY", r"\w+").replace("NAME", r"\w+").replace("…", ".+") for name in names]


@pytest.mark.parametrize("config", ["finetune", "rl"])
def test_every_metric_that_a_run_logs_is_explained(config, own, tmp_path):
    generator = "lightning_modules.generators.HFGenerator"
    small = {"init_from": own["MODEL"], "generator": generator, "generator.max_new_tokens": 4}
    options = [f"--model.{key}={value}" for key, value in small.items()]
    options += [f"--data.{key}={own['rows.jsonl']}" for key in ("path", "val_path")]
    sizes = ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--trainer.precision=32-true"]
    sizes += [f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu"]
    sizes += [f"--data.cache_dir={tmp_path / 'cache'}", "--trainer.enable_progress_bar=false"]
    small = ["--data.prompts_per_step=1", "--model.sampling.group_size=2"]
    sizes += small if config == "rl" else ["--data.batch_size=1"]
    main(["fit", f"--config=configs/{config}.yaml", *options, *sizes])
    (log,) = tmp_path.glob("*/metrics.csv")
    names = {row["name"] for row in csv.DictReader(log.open())} - {"step", "epoch"}
    known = [*metrics_of_the_page(), r"rollout/.+"]  # `rollout/` is that of the heading
    assert names and not [name for name in names if not any(re.fullmatch(known_as, name) for known_as in known)]


def test_every_chart_is_of_a_metric_that_is_explained():
    tags = [tag[1:-1] for charts in board.LAYOUT.values() for _, chart in charts.values() for tag in chart]
    names = [[tag, f"{tag}_cot"] for tag in tags]  # those of a segment are drawn under the name of the whole
    known = metrics_of_the_page()
    assert not [ways[0] for ways in names if not any(re.fullmatch(name, way) for name in known for way in ways)]


def first_sentence(path):
    """What a source file or a YAML says of itself first."""
    text = path.read_text(encoding="utf-8")
    text = ast.get_docstring(ast.parse(text)) or "" if path.suffix == ".py" else text.lstrip("# ")
    return text.partition("\n")[0].partition(". ")[0].rstrip(".")


def test_the_tree_of_the_layout_page_is_that_of_the_repository():
    """Where this fails, the message has the lines as they should be."""
    ours = [path for top in TOP[:3] for path in (ROOT / top).rglob("*.py")]
    sources = [path for path in ours if path.name != "__init__.py"]
    sources += [*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "benchmarks").glob("*.py")]
    told = {f"- `{path.relative_to(ROOT)}`: {first_sentence(path)}" for path in sources}
    other = [path for top in ("docs", "notebooks") for path in (ROOT / top).glob("*.*")]
    text = (ROOT / "docs" / "layout.md").read_text("utf-8")
    page = [line for line in text.splitlines() if line.startswith("- `")]
    named = [line.split("`")[1] for line in page]
    assert not told - set(page), "missing in docs/layout.md:\n" + "\n".join(sorted(told - set(page)))
    stale = {line for line, name in zip(page, named, strict=True) if not (ROOT / name).exists()}
    assert not stale and len(set(named)) == len(named), f"of no file, or twice: {sorted(stale)}"
    lacking = {str(path.relative_to(ROOT)) for path in other if path.is_file()} - set(named)
    assert not lacking, f"missing in docs/layout.md: {sorted(lacking)}"
    for package in (path for path in ours if path.name == "__init__.py"):
        belongs = (ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
        assert f"## {package.parent.relative_to(ROOT)}/\n\n{belongs}\n\n" in text, f"missing at its head: {belongs}"

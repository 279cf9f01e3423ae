"""Every shipped YAML through the real `main(args)`, made small: tiny model, a few rows, two optimizer steps."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from datamodules.refinement import rounds
from datamodules.refinement.cli import main as refine
from lightning_modules.cli import FunReasonCLI, main
from lightning_modules.generators import HFGenerator, VLLMGenerator

ROOT = Path(__file__).resolve().parents[1]
TOOL = {"name": "f", "description": "", "parameters": {"a": {"type": "int", "description": ""}}}
ROWS = {"data.path": "{rows}", "data.cache_dir": "{tmp}/cache"}
GENERATE = {"model.generator": "lightning_modules.generators.HFGenerator", "model.generator.max_new_tokens": 4}
FIT = ROWS | GENERATE | {"trainer.max_steps": 2, "data.batch_size": 4, "data.val_fraction": 0.1}
SAMPLE = ROWS | GENERATE | {"trainer.max_steps": 2, "data.val_path": "null", "data.val_fraction": 0.1}
SAMPLE |= {"model.sampling.group_size": 2, "data.prompts_per_step": 4, "trainer.val_check_interval": 1}
# file -> command, the files before it, options that make it small
COMMANDS = {
    "srml.yaml": ("fit", [], FIT),
    "finetune.yaml": ("fit", [], FIT),
    "sample.yaml": ("predict", [], ROWS | GENERATE),
    "pretrain.yaml": ("fit", [], {"trainer.max_steps": 2, "data.documents": 8, "data.batch_size": 4}),
    "paper/funreason.yaml": ("fit", ["finetune.yaml"], FIT),
    "paper/balancesft.yaml": ("fit", ["finetune.yaml"], FIT),
    "grpo.yaml": ("fit", [], SAMPLE),
    "variants/grpo_plain.yaml": ("fit", ["grpo.yaml"], SAMPLE),
    "variants/grpo_vllm.yaml": ("fit", ["grpo.yaml"], SAMPLE),  # with its own generator: tests/vllm
    "variants/grpo_vllm_server.yaml": ("fit", ["grpo.yaml"], SAMPLE),  # likewise
    "variants/vllm.yaml": ("fit", ["rl.yaml"], SAMPLE),  # that one, too
    "rl.yaml": ("fit", [], SAMPLE),
    "paper/egpo.yaml": ("fit", ["rl.yaml"], SAMPLE),
    "paper/funrl.yaml": ("fit", ["rl.yaml"], SAMPLE),
    "bfcl.yaml": ("test", [], GENERATE | {"data.limit": 1, "data.categories": "[simple,irrelevance]"}),
    "trainer/cpu.yaml": ("fit", ["srml.yaml"], FIT),
    "trainer/gpu.yaml": ("fit", ["srml.yaml"], FIT),
    "trainer/ddp.yaml": ("fit", ["srml.yaml"], FIT),
    "trainer/fsdp.yaml": ("fit", ["grpo.yaml"], SAMPLE),
    "trainer/fsdp2.yaml": ("fit", ["grpo.yaml"], SAMPLE),
}
# file -> the files before it, options that make it small; those that need a server only say what they would ask
REFINE = {
    "refine.yaml": ([], ["--data.path={rows}"]),
    "refine_demo.yaml": ([], ["--corpus.rows=60"]),
    "refine_rl.yaml": ([], ["--data.path={rows}"]),
    "cot.yaml": ([], ["--data.path={rows}"]),
    "paper/fcdr.yaml": (["refine.yaml"], ["--data.path={rows}", "--dry-run"]),
    "paper/funrl_data.yaml": (["refine_rl.yaml"], ["--data.path={rows}", "--dry-run"]),
    "paper/cot.yaml": (["cot.yaml"], ["--data.path={rows}", "--dry-run"]),
    "paper/hard_judges.yaml": (["refine.yaml"], ["--data.path={rows}", "--dry-run"]),
}
ROUNDS = ("self_refine.yaml", "paper/hard_resampling.yaml")
OWN = ("finetune.yaml", "rl.yaml")  # experiments on a model and rows of one's own, which the papers' recipes follow
RECIPES = (*OWN, *(name for name, (_, before, _) in COMMANDS.items() if name[:6] == "paper/" and before[0] in OWN))


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(12):
            answers = json.dumps([{"name": "f", "arguments": {"a": i}}])
            row = {"id": i, "query": f"f of {i}", "tools": json.dumps([TOOL]), "answers": answers, "cot": f"a is {i}"}
            file.write(json.dumps(row) + "\n")
    return path


def shipped():
    return sorted(str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml"))


def holds(in_force, value, name, options):
    """Whether what a file says is part of the saved config, which spells out defaults, or was made small."""
    if isinstance(value, dict):
        in_force = in_force.get("init_args", in_force) if "class_path" not in value else in_force
        return all(holds(in_force[key], inner, f"{name}.{key}", options) for key, inner in value.items())
    return name in options or in_force == value


@pytest.mark.parametrize(
    ("variant", "changed"),
    [
        ("plain", {"entropy_bonus": {"scale": 0.0}}),
        (
            "vllm",
            {
                "generator": {
                    "class_path": "lightning_modules.generators.VLLMGenerator",
                    "init_args": {"kv_cache_gib": 1.0, "enforce_eager": True},
                }
            },
        ),
        (
            "vllm_server",
            {
                "generator": {
                    "class_path": "lightning_modules.generators.VLLMServerGenerator",
                    "init_args": {"servers": ["http://127.0.0.1:8000"]},
                }
            },
        ),
    ],
)
def test_a_variant_of_grpo_says_what_it_changes_and_where_it_runs(variant, changed):
    overlay = yaml.safe_load((ROOT / f"configs/variants/grpo_{variant}.yaml").read_text())
    trainer = {"default_root_dir": f"runs/grpo_{variant}"}
    assert overlay == {"model": {"init_args": changed}, "trainer": trainer}


@pytest.mark.parametrize(
    "name", ["variants/grpo_plain.yaml", "variants/grpo_vllm.yaml", "variants/vllm.yaml", "paper/egpo.yaml"]
)
def test_an_overlay_alone_asks_for_the_experiment_that_it_changes(name, capsys):
    file = ROOT / "configs" / name
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(file)])
    asked = f"error: {file} is an overlay, it names no model.class_path: give the experiment that it changes before it"
    assert capsys.readouterr().err.splitlines()[-1].startswith(asked)


@pytest.mark.parametrize(
    "files",
    [
        ("rl", "variants/vllm", "paper/egpo"),
        ("rl", "paper/egpo", "variants/vllm"),
        ("grpo", "variants/grpo_vllm", "paper/egpo"),
        ("grpo", "paper/egpo", "variants/grpo_vllm"),
    ],
)
def test_who_generates_and_how_much_may_be_said_in_either_order(files, monkeypatch):
    monkeypatch.chdir(ROOT)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *given: name == "vllm" or find(name, *given))
    cli = FunReasonCLI([*(f"--config=configs/{file}.yaml" for file in files), "--data.path=rows.jsonl"], run=False)
    assert type(cli.model.generator) is VLLMGenerator and cli.model.generator.max_new_tokens == 8192
    assert cli.model.sampling.group_size == 8


def test_a_recipe_generates_with_transformers_unless_told_otherwise(monkeypatch):
    monkeypatch.chdir(ROOT)
    cli = FunReasonCLI(
        ["--config=configs/rl.yaml", "--config=configs/paper/egpo.yaml", "--data.path=rows.jsonl"], run=False
    )
    assert type(cli.model.generator) is HFGenerator and cli.model.generator.max_new_tokens == 8192


def test_what_is_sampled_of_a_model_may_be_as_long_as_its_validation_let_it_be():
    recipes = [yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text()) for name in ("finetune", "rl", "sample")]
    lengths = {recipe["model"]["init_args"]["generator"]["init_args"]["max_new_tokens"] for recipe in recipes}
    assert lengths == {2048}


def test_overlays_say_in_their_first_line_or_folder_what_they_are():
    for name in shipped():
        first = (ROOT / "configs" / name).read_text().splitlines()[0]
        assert first.startswith("# Overlay") == name.startswith(("variants/", "trainer/")), name


def leaves(config, path=""):
    """Values by their dotted keys."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def test_gpus_learn_float32_weights_and_recompute_as_the_docs_say():
    for name in ("gpu", "ddp", "fsdp", "fsdp2"):
        overlay = yaml.safe_load((ROOT / f"configs/trainer/{name}.yaml").read_text())
        assert overlay["trainer"]["precision"] == "bf16-mixed"
        assert overlay["model"]["init_args"]["gradient_checkpointing"] is True
    for name in OWN:
        assert yaml.safe_load((ROOT / "configs" / name).read_text())["model"]["init_args"]["lora"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_inherits_nothing_of_the_embedded_default(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    files = [f"configs/{file}" for file in [*COMMANDS[name][1], name]]
    usage = next(line for line in Path(files[-1]).read_text().splitlines() if "funreason fit" in line)
    assert re.findall(r"--config (\S+)", usage) == files
    given = ["--data.path=rows.jsonl"] + (["--model.init_from=own"] if name in OWN else [])
    cli = FunReasonCLI([*(f"--config={file}" for file in files), *given], run=False)
    resolved = dict(leaves(cli.config.as_dict()))
    for default in ("srml.yaml", "grpo.yaml"):
        for key, value in leaves(yaml.safe_load((ROOT / "configs" / default).read_text())):
            if key.endswith("class_path") or key not in resolved or value is None:
                continue
            # verl has no warm-up either: the two papers' recipes say so themselves
            stated = key == "model.init_args.warmup_ratio" and name in ("paper/egpo.yaml", "paper/funrl.yaml")
            assert stated or resolved[key] != value, key
    assert resolved["model.init_args.epsilon"] == 1e-8 and "tiny-base" not in str(resolved)
    assert (resolved.get("model.init_args.lora.r") == 16) == (name in OWN)  # the papers train all weights


def test_papers_rounds_train_by_the_papers_recipe_and_ask_for_rows_of_ones_own(capsys):
    config = yaml.safe_load((ROOT / "configs/paper/hard_resampling.yaml").read_text())
    assert config["fit"][:2] == ["--config=configs/finetune.yaml", "--config=configs/paper/balancesft.yaml"]
    judges = yaml.safe_load((ROOT / "configs/paper/hard_judges.yaml").read_text())
    assert judges["regenerations"] == 0  # a sample whose answer fails goes back to the pool
    with pytest.raises(SystemExit):
        rounds.main(["--config", str(ROOT / "configs/paper/hard_resampling.yaml"), "--init_from=own"])
    assert "val_path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "given", "lacks"),
    [
        ("finetune.yaml", [], "--model.init_from"),
        ("rl.yaml", ["--model.init_from=own"], "--data.path"),
        ("paper/funreason.yaml", [], "--data.path"),
    ],
)
def test_what_a_recipe_cannot_know_is_asked_for_in_a_sentence(name, given, lacks, capsys):
    files = [f"--config={ROOT / 'configs' / file}" for file in [*COMMANDS[name][1], name]]
    with pytest.raises(SystemExit):
        main(["fit", *files, *given])
    asked = f"error: {lacks} must be given, on the command line or in a YAML: there is no default."
    assert capsys.readouterr().err.splitlines()[-1] == asked


def test_every_shipped_file_is_run_by_a_test():
    assert set(shipped()) == set(COMMANDS) | set(REFINE) | set(ROUNDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_config_runs(name, tiny_model_dir, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, before, options = COMMANDS[name]
    if name.startswith("trainer/"):  # one process; without a GPU all but the device
        options = options | {"trainer.devices": 1, "trainer.num_nodes": 1}
        options |= {} if torch.cuda.is_available() else {"trainer.accelerator": "cpu"}
    files = [argument for file in [*before, name] for argument in ("--config", f"configs/{file}")]
    options = options | {"model.init_from": tiny_model_dir, "trainer.default_root_dir": "{tmp}/run"}
    values = {key: str(value).format(rows=rows, tmp=tmp_path) for key, value in options.items()}
    main([command, *files, "--trainer.enable_progress_bar=false", *(f"--{key}={v}" for key, v in values.items())])
    (run,) = (tmp_path / "run").iterdir()
    assert run.name.endswith(f"-{command}-0")
    saved = yaml.safe_load((run / "config.yaml").read_text())
    last = yaml.safe_load((ROOT / "configs" / name).read_text())
    for section, values in last.items():  # what the file says is in force, but for what was made small
        for key, value in (values if section == "trainer" else values.get("init_args", {})).items():
            in_force = saved[section].get("init_args", saved[section])[key]
            assert f"{section}.{key}" in options or holds(in_force, value, f"{section}.{key}", options), key
    assert (run / {"fit": "hf", "predict": "rollouts.jsonl", "test": "result"}[command]).exists()
    assert not torch.distributed.is_initialized()  # whose threads could outlive the interpreter


@pytest.mark.parametrize("name", REFINE)
def test_refinement_config_runs(name, rows, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    before, options = REFINE[name]
    files = [argument for file in [*before, name] for argument in ("--config", f"configs/{file}")]
    refine([*files, f"--output_dir={tmp_path / 'run'}", *(option.format(rows=rows) for option in options)])
    if "--dry-run" in options:
        assert "12 rows" in capsys.readouterr().out and not (tmp_path / "run").exists()
    else:
        report = json.loads((tmp_path / "run" / "report.json").read_text())
        assert report["rows"] == report["kept"] + report["rejected"] > 0 and (tmp_path / "run/refined.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ROUNDS)
def test_rounds_config_runs(name, rows, tiny_model_dir, tmp_path, monkeypatch):
    """Until there is nothing to fit on: the model is random."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(rounds, "run_module", lambda module, *arguments: main(list(arguments)))
    options = {"init_from": tiny_model_dir, "pool": rows, "val_path": rows, "output_dir": tmp_path / "run"}
    small = [f"--{step}+=--data.cache_dir={tmp_path / 'cache'}" for step in ("sample", "fit")]
    small += [f"--fit+=--model.generator={GENERATE['model.generator']}"]
    small += [f"--{step}+=--model.generator.max_new_tokens=4" for step in ("sample", "fit")]
    rounds.main(["--config", f"configs/{name}", *(f"--{key}={value}" for key, value in options.items()), *small])
    start, first = json.loads((tmp_path / "run" / "rounds.json").read_text())
    assert first["sampled"] == 12 * yaml.safe_load((ROOT / "configs" / name).read_text()).get("samples", 1)
    assert start["score"] == first["score"] == first["queries_answered"] == 0


@pytest.mark.parametrize("name", shipped())
def test_config_says_only_what_is_not_the_default_and_leans_on_no_interpolation(name):
    text = (ROOT / "configs" / name).read_text()
    assert "${" not in text  # an override on the command line would not move it
    assert text.startswith("# ")
    for overlay in ("callbacks", "logger"):  # a list in an overlay replaces the list before it
        assert f"{overlay}:" not in text

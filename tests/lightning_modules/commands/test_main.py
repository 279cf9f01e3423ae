"""`funreason` itself: its help and version load nothing heavy, and each command is imported when it is called."""

import subprocess
import sys

import pytest
from huggingface_hub import constants

from datamodules.chat.tokenizer import resolve_model_folder
from datamodules.readers.data_sets import load_data_set
from datamodules.system.files import shipped
from lightning_modules.commands.main import COMMANDS, main

HEAVY = ("torch", "transformers", "lightning", "datasets", "peft", "torchmetrics")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["data", "--help"], ["export", "--help"], ["fti"]])
def test_what_loads_no_model_imports_nothing_heavy(words):
    code = (
        "import sys\nfrom lightning_modules.commands.main import main\n"
        f"try: main({words})\nexcept SystemExit: pass\n"
        f"print('HEAVY', sorted(set({HEAVY}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_help_names_every_command_in_a_line(capsys):
    main(["--help"])
    printed = capsys.readouterr().out
    lines = [line.split()[0] for line in printed.splitlines() if line.startswith("  ")]
    assert lines == [*COMMANDS] and {"show", "data", "fit", "ask", "play", "serve", "export"} <= {*lines}
    assert all(len(line) <= 120 for line in printed.splitlines())
    main([])
    assert capsys.readouterr().out == printed


def test_a_command_that_is_none_is_named_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["exprot", "--ckpt_path", "x"])
    said = "error: there is no command exprot: is export meant? funreason --help lists them."
    assert exit_.value.code == 2 and capsys.readouterr().err.splitlines() == [said]


@pytest.mark.slow
def test_public_names_are_imported_when_they_are_asked_for():
    code = "import sys, lightning_modules, datamodules; a = 'torch' in sys.modules; lightning_modules.SRMLModule\n"
    code += "print(a, 'torch' in sys.modules, datamodules.Example.__name__, hasattr(datamodules, 'absent'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True Example False\n"


def test_shipped_files_are_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped("configs/srml.yaml").endswith("/configs/srml.yaml") and shipped("configs/srml.yaml")[0] == "/"
    assert shipped("configs/absent.yaml") == "configs/absent.yaml"
    assert shipped("runs") == "runs" and shipped("Makefile") == "Makefile" and shipped("") == ""
    assert resolve_model_folder("assets/tiny-base").endswith("/assets/tiny-base")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "srml.yaml").touch()
    assert shipped("configs/srml.yaml") == "configs/srml.yaml"  # what is here comes first


def test_an_interrupted_run_is_told_how_to_be_exported(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last-000003.ckpt").touch()
    (tmp_path / "config.yaml").write_text("model:\n  init_args:\n    init_from: assets/tiny-base\n")  # as runs do
    with pytest.raises(FileNotFoundError, match=rf"funreason export --ckpt_path {tmp_path} --output_dir {tmp_path}/hf"):
        resolve_model_folder(str(tmp_path))


def test_a_typo_in_a_path_that_could_be_a_data_set_is_not_asked_of_a_hub_that_is_silent(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # as a user's own environment may say
    with pytest.raises(
        FileNotFoundError, match="there is no file, folder or cached data set data/rowz here, and the hub"
    ):
        load_data_set("data/rowz")

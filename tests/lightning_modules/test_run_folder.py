"""Each run has a folder that says what it is under `trainer.default_root_dir`, whatever it logs to."""

import json
import os
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy
from training_runs import metrics

from datamodules.system import redaction
from datamodules.system.files import atomic_write
from lightning_modules.cli import FunReasonCLI, main
from lightning_modules.commands.checks import check_reads_safely, check_shards_by_model
from lightning_modules.commands.run_folders import new_folder
from lightning_modules.strategies import FSDP1, FSDP2

CONFIG = ["--config", "configs/srml.yaml"]
SMALL = {"trainer.max_steps": 1, "trainer.limit_val_batches": 1, "data.init_args.batch_size": 4}


class RemoteLogger(Logger):
    """Logs to a server, as W&B and MLflow do: there is no folder of it here."""

    name, version, save_dir, log_dir = "remote", "abc", None, None

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.step = step


class KeyedLogger(RemoteLogger):
    """One that wants a key, as Comet's does."""

    def __init__(self, api_key: str, tracking_uri: str, workspace: str = ""):
        super().__init__()


REMOTE = {"class_path": "test_run_folder.RemoteLogger"}


def csv_logger(root, name):
    return {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(root), "name": name}}


def test_a_run_leaves_everything_in_its_folder(base_args, tmp_path):
    loggers = [REMOTE, csv_logger(tmp_path, "csv")]
    main(["fit", *CONFIG, *base_args(tmp_path, **SMALL), f"--trainer.logger={json.dumps(loggers)}"])
    assert {path.name for path in tmp_path.iterdir()} == {"srml-fit-0", "csv"}
    run = tmp_path / "srml-fit-0"
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "checkpoints", "metrics.csv", "hf"}
    assert any((run / "checkpoints").iterdir()) and (1, "train/loss") in metrics(run)
    theirs, ours = (path / "metrics.csv" for path in (tmp_path / "csv" / "version_0", run))
    assert "train/loss" in theirs.read_text().splitlines()[0].split(",")
    assert ours.read_text().splitlines()[0] == "step,name,value"
    given, saved = theirs.with_name("hparams.yaml"), run / "config.yaml"
    assert yaml.safe_load(given.read_text()) == yaml.safe_load(saved.read_text())


def trainer_of(args):
    return FunReasonCLI([*CONFIG, *args], run=False).trainer


@pytest.mark.parametrize("logger", [REMOTE, False, True, "csv"], ids=["remote", "none", "ours", "csv"])
def test_the_folder_is_the_runs_own(base_args, tmp_path, logger):
    if logger == "csv":  # without a name it writes metrics.csv into version_0
        logger = csv_logger(tmp_path, "")
    quick = [] if logger is not False else ["--last_checkpoint.fsync=false"]
    trainer = trainer_of([*base_args(tmp_path), f"--trainer.logger={json.dumps(logger)}", *quick])
    assert trainer.log_dir == str(tmp_path / "srml-fit-0")
    assert not list(tmp_path.iterdir())
    assert trainer.strategy.checkpoint_io.fsync == (logger is not False)


def test_the_next_run_has_the_next_folder_below_home(base_args, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for other in ("srml-fit-9", "srml-fit-old", "srml-test-12", "egpo-fit-30", "version_40"):
        (tmp_path / "runs" / other).mkdir(parents=True)
    for logger in ("true", json.dumps(REMOTE)):
        trainer = trainer_of([*base_args("~/runs"), f"--trainer.logger={logger}"])
        assert trainer.log_dir == str(tmp_path / "runs" / "srml-fit-10")
        assert os.path.normpath(trainer.default_root_dir) == str(tmp_path / "runs")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--trainer.default_root_dir=s3://bucket/runs", ["trainer.default_root_dir", "s3://bucket/runs", "local"]),
        ("--data.cache_dir=s3://bucket/x", ["data.cache_dir: s3://bucket/x is no folder of this machine", "local"]),
        ("--best_checkpoint.dirpath=s3://bucket/x", ["dirpath of ModelCheckpoint: s3://bucket/x is no folder", "loc"]),
        (
            '--trainer.callbacks+={class_path: ModelCheckpoint, init_args: {dirpath: "s3://bucket/x"}}',
            ["dirpath of ModelCheckpoint: s3://bucket/x is no folder of this machine", "local"],
        ),
        ("--best_checkpoint.dirpath=/proc/nothing/x", ["dirpath of ModelCheckpoint: '/proc/nothing/x'", "another"]),
        ("--trainer.gradient_clip_val=1.0", ["trainer.gradient_clip_val", "model.max_grad_norm"]),
        ("--trainer.gradient_clip_algorithm=value", ["gradient_clip_algorithm", "model.max_grad_norm"]),
        ("--trainer.accumulate_grad_batches=4", ["accumulate_grad_batches", "data.batch_size", "micro_batch_tokens"]),
    ],
)
def test_a_setting_that_cannot_be_used_is_answered_before_anything_loads(base_args, tmp_path, option, words):
    absent = {"model.init_args.init_from": "/absent", "data.init_args.path": "/absent.jsonl"}
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *CONFIG, *base_args(tmp_path, **absent), option])
    said = exit_.value.code
    assert said.startswith("error: ") and "\n" not in said and all(word in said for word in words), said


def test_a_test_goes_on_where_checkpoints_of_the_training_cannot_be_written(base_args, tmp_path):
    absent = base_args(tmp_path, **{"model.init_args.init_from": "/absent"})
    with pytest.raises(SystemExit, match="error: init_from: no folder /absent"):
        main(["test", *CONFIG, *absent, "--best_checkpoint.dirpath=/proc/nothing/x"])


@pytest.mark.parametrize("earlier", ["srml-fit-0", "egpo-fit-3", "version_0"])  # the last as they were called once
def test_runs_that_start_at_once_have_a_folder_each_and_clear_what_kills_have_left(tmp_path, monkeypatch, earlier):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", lambda *_: [])  # all have looked before any has made its folder
        assert [new_folder(tmp_path, "srml-fit", claim=True) for _ in range(3)] == [f"srml-fit-{i}" for i in range(3)]
    assert new_folder(tmp_path, "srml-fit", claim=False) == new_folder(tmp_path, "srml-fit", claim=True) == "srml-fit-3"
    saving, leftover = (tmp_path / earlier / "checkpoints" / name for name in ("last.ckpt", f".a.{'0' * 32}.lock"))
    with atomic_write(saving) as unfinished:
        unfinished.touch()
        leftover.touch()
        leftover.with_suffix(".partial").mkdir()
        new_folder(tmp_path, "srml-fit", claim=True)
    assert [path.name for path in saving.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("unsafe", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_would_run_what_a_checkpoint_holds_do_not_read_one(unsafe):
    with pytest.raises(ValueError, match=f"trainer.strategy: {unsafe.__name__} would run code"):
        check_reads_safely(object.__new__(unsafe))
    for ours in (FSDP1, FSDP2, DDPStrategy, SingleDeviceStrategy):
        check_reads_safely(object.__new__(ours))


def test_lightnings_own_sharding_is_refused_and_the_overlay_to_take_is_named(base_args, tmp_path):
    strategy = "--trainer.strategy.class_path=lightning.pytorch.strategies.ModelParallelStrategy"
    with pytest.raises(SystemExit, match=r"error: trainer.strategy: ModelParallelStrategy of Lightning.*fsdp2.yaml"):
        main(["fit", *CONFIG, *base_args(tmp_path, **SMALL), strategy])
    for ours in (FSDP1, FSDP2, DDPStrategy, SingleDeviceStrategy):
        check_shards_by_model(object.__new__(ours))


def test_the_saved_config_holds_no_secret_and_asks_for_it_again(base_args, tmp_path, monkeypatch):
    monkeypatch.setattr(redaction, "_kept", set())
    monkeypatch.setenv("WORK_SECRET", "of-the-environment")
    given = {"api_key": "key-of-a-logger", "tracking_uri": "http://me:pass-word@h/?a=1&sig=signed"}
    logger = {"class_path": "test_run_folder.KeyedLogger", "init_args": given | {"workspace": "${oc.env:WORK_SECRET}"}}
    (tmp_path / "logger.yaml").write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
    args = base_args(tmp_path, **SMALL)
    main(["fit", *CONFIG, "--config", str(tmp_path / "logger.yaml"), *args])
    run = tmp_path / "srml-fit-0"
    files = [path for path in run.rglob("*") if path.is_file()]
    for secret in (b"key-of-a-logger", b"pass-word", b"signed", b"of-the-environment"):
        assert [path for path in files if secret in path.read_bytes()] == []
    saved = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["logger"]["init_args"]
    masked = {"api_key": "<secret>", "tracking_uri": "http://me:<secret>@h/?a=1&sig=<secret>", "workspace": "<secret>"}
    assert saved == masked

    again = ["fit", "--config", str(run / "config.yaml")]
    with pytest.raises(SystemExit, match=r"trainer\.logger\.init_args\.api_key: <secret> was saved without its secret"):
        main(again)
    main([*again, "--config", str(tmp_path / "logger.yaml"), "--trainer.fast_dev_run=true"])

import os

import pytest

from lightning_modules.checkpointing.find import resolve_checkpoint, step_of


def test_newest_checkpoint_of_a_run_is_the_one_of_the_last_step(tmp_path):
    folder = tmp_path / "version_0" / "checkpoints"
    folder.mkdir(parents=True)
    ages = {"last-000020.ckpt": 0, "best-000010.ckpt": 60, "last-000100.ckpt": -60, "best-000100.ckpt": 90}
    for name, age in ages.items():
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (1e9 + age, 1e9 + age))
    newest = str(folder / "last-000100.ckpt")  # although another file is younger, as after a copy
    assert resolve_checkpoint(str(tmp_path / "version_0")) == newest
    assert resolve_checkpoint(str(folder)) == newest
    assert resolve_checkpoint(newest) == newest


def test_the_step_of_a_model_is_that_of_its_checkpoints_name(tmp_path):
    checkpoints = tmp_path / "srml-fit-0" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in ("best-000010.ckpt", "last-000100.ckpt"):
        (checkpoints / name).touch()
    run = checkpoints.parent
    exported = run / "hf-best-000010"  # of `funreason export --ckpt_path …/best-000010.ckpt`
    exported.mkdir()
    models = (run, run / "hf", checkpoints / "best-000010.ckpt", checkpoints / "mine.ckpt", "Qwen/Qwen2.5-7", tmp_path)
    assert [step_of(str(model)) for model in models] == [100, 100, 10, 0, 0, 0]
    assert [step_of(str(model)) for model in (exported, exported / "", "someone/hf-model-7")] == [10, 10, 0]


def test_a_run_is_found_in_the_home_of_who_asks(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "last-000100.ckpt").touch()
    newest = str(checkpoints / "last-000100.ckpt")
    assert resolve_checkpoint("~/run") == resolve_checkpoint("~/run/checkpoints/last-000100.ckpt") == newest
    assert step_of("~/run") == step_of("~/run/hf") == 100


def test_sharded_folder_is_taken_as_it_is(tmp_path):
    (tmp_path / ".metadata").write_bytes(b"")
    assert resolve_checkpoint(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("word", ["last", "best", "hpc"])
def test_words_that_look_into_the_new_run_are_refused(word):
    with pytest.raises(ValueError, match=f"--ckpt_path {word}: give a path"):
        resolve_checkpoint(word)


def test_missing_checkpoint_is_an_error(tmp_path):
    for path in (tmp_path, tmp_path / "absent.ckpt"):
        with pytest.raises(FileNotFoundError, match=str(path)):
            resolve_checkpoint(str(path))

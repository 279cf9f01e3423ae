"""Folders in the place of a model: what lies in them, and which sentence tells it."""

import json
import os
import shutil
from pathlib import Path

import pytest

from datamodules.chat.model_files import adapter_in, merging, models_in, unread_in
from datamodules.chat.tokenizer import load_tokenizer, resolve_model_folder


def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_models_are_in_order_of_their_numbers_and_have_weights_if_any_has(tmp_path):
    for name in ("checkpoint-900", "checkpoint-1000", "1_Pooling"):
        write(tmp_path / name / "config.json", "{}")
    assert [place.name for place in models_in(tmp_path)] == ["1_Pooling", "checkpoint-900", "checkpoint-1000"]
    write(tmp_path / "checkpoint-900" / "model.safetensors")
    assert [place.name for place in models_in(tmp_path)] == ["checkpoint-900"]
    cached = tmp_path / "models--me--mine"  # of the hub, in its cache
    write(cached / "snapshots" / "0ab1" / "config.json", "{}")
    assert models_in(cached) == [cached / "snapshots" / "0ab1"]


def test_weights_that_are_not_read_are_found_pickles_first_and_below_last(tmp_path):
    for name in ("README.md", "tokenizer.json", "model.safetensors", "a.gguf", "pytorch_model.bin", "optimizer.pt"):
        write(tmp_path / name)
    write(tmp_path / "onnx" / "model.onnx")
    write(tmp_path / "deep" / "er" / "model.onnx")
    (tmp_path / "folder.bin").mkdir()
    download = ".cache/huggingface/download/ab.incomplete"
    write(tmp_path / download)
    assert unread_in(tmp_path) == ["pytorch_model.bin", "a.gguf", "optimizer.pt", "onnx/model.onnx", download]


def test_what_an_adapter_sits_on_is_said_if_it_says_so(tmp_path):
    own = write(tmp_path / "own" / "adapter_config.json", json.dumps({"base_model_name_or_path": "some/base"}))
    write(tmp_path / "all" / "checkpoint-90" / "adapter_config.json", "{}")
    last = write(tmp_path / "all" / "checkpoint-100" / "adapter_config.json", "[]")
    assert adapter_in(tmp_path / "own") == own
    assert adapter_in(tmp_path / "all") == last
    assert "sits on (some/base, by merge_and_unload of peft)" in merging(own)
    assert "sits on (by merge_and_unload of peft)" in merging(last)
    assert adapter_in(tmp_path / "all" / "checkpoint-100" / "deeper") is None


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["m.Q4_K_M.gguf"], "holds neither a config.json nor an hf/ folder that has one; m.Q4_K_M.gguf is not read"),
        (["model.onnx"], "; model.onnx is not read: give the Hugging Face folder of that model, with its safetensors"),
        (["checkpoint-9/adapter_config.json"], "holds an adapter in checkpoint-9 and no model: merge it into the"),
        (
            ["checkpoint-9/config.json", "checkpoint-10/config.json"],
            "give one of the folders in it, as {}/checkpoint-10",
        ),
        (
            ["checkpoints/last.ckpt", "config.yaml"],
            "holds a checkpoint that no run of this project wrote (checkpoints/l",
        ),
        (
            ["checkpoints/epoch=0.ckpt"],
            "holds a checkpoint that no run of this project wrote (checkpoints/epoch=0.ckpt)",
        ),
        (["epoch=0.ckpt"], "; epoch=0.ckpt is not read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_folder_without_a_model_is_told_by_what_it_holds(tmp_path, files, words):
    for name in files:
        write(tmp_path / name, "{}")
    with pytest.raises(FileNotFoundError) as raised:
        resolve_model_folder(str(tmp_path))
    assert str(raised.value).startswith(f"init_from: {tmp_path} ")
    assert words.format(tmp_path) in str(raised.value)


def test_a_run_that_was_interrupted_is_known_by_its_settings(tmp_path):
    write(tmp_path / "checkpoints" / "last-000002.ckpt")
    write(tmp_path / "config.yaml", "model:\n  class_path: SRMLModule\n  init_args:\n    init_from: some/model\n")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} is a run that was interrupted, and has no hf/ folder yet"):
        resolve_model_folder(str(tmp_path))


def test_the_checkpoints_of_a_run_are_no_model_and_its_folder_is_named(tmp_path):
    write(tmp_path / "run" / "checkpoints" / "last-000002.ckpt")
    write(tmp_path / "run" / "hf" / "config.json", "{}")
    with pytest.raises(FileNotFoundError, match=r"checkpoints holds the checkpoints of a run: give the run, .*/run$"):
        resolve_model_folder(str(tmp_path / "run" / "checkpoints"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "holds no settings, in braces: get it again"),
        ('"qwen2"', "holds no settings, in braces: get it again"),
        ("null", "holds no settings, in braces: get it again"),
        ("", r"is no JSON \(Expecting value: line 1 column 1 \(char 0\)\)"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS: fetch it by git lfs pull"),
    ],
)
def test_a_config_that_holds_no_settings_is_named_and_not_the_tokenizer(tiny_model_dir, tmp_path, text, words):
    place = shutil.copytree(tiny_model_dir, tmp_path / "model")
    write(place / "config.json", text)
    with pytest.raises(ValueError, match=rf"^init_from: {place}/config\.json {words}$"):
        load_tokenizer(str(place))


def test_a_file_is_no_folder_and_nobodys_home_is_none(tmp_path, monkeypatch):
    write(tmp_path / "sub" / "model.gguf")
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "sub" / "model.gguf"), "sub/model.gguf"):  # which could be a hub id
        with pytest.raises(
            FileNotFoundError, match=r"init_from: .*sub/model\.gguf is a file: give a folder with a con"
        ):
            resolve_model_folder(name)
    with pytest.raises(FileNotFoundError, match="init_from: no folder ~no-such-user/model: Could not determine home"):
        resolve_model_folder("~no-such-user/model")


def test_places_are_written_in_any_way(tiny_model_dir, tmp_path, monkeypatch):
    place = shutil.copytree(tiny_model_dir, tmp_path / "with space" / "modèle 模型")
    (tmp_path / "link").symlink_to(place)
    monkeypatch.setenv("HOME", str(place.parent))
    monkeypatch.chdir(place.parent)
    for name in (f"{place}/", place.name, f"./{place.name}//", f"~/{place.name}", tmp_path / "link"):
        assert os.path.samefile(resolve_model_folder(str(name)), place)
    monkeypatch.chdir(place)
    assert Path(resolve_model_folder(".")).samefile(place)

"""Tokenizers of models: where they are found, and which are refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from datamodules.chat.tokenizer import load_tokenizer, resolve_model_folder


def test_model_folders(tiny_model_dir, tmp_path):
    run = tmp_path / "version_0"
    shutil.copytree(tiny_model_dir, run / "hf")
    assert resolve_model_folder(str(run)) == str(run / "hf")
    assert resolve_model_folder(str(run / "hf")) == str(run / "hf")
    assert resolve_model_folder("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    assert len(load_tokenizer(str(run))) == len(load_tokenizer(str(tiny_model_dir)))
    for missing in (str(tmp_path / "nowhere"), "./nowhere", "a/b/nowhere"):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            resolve_model_folder(missing)
    with pytest.raises(FileNotFoundError, match=r"neither a config\.json nor an hf/ folder"):
        resolve_model_folder(str(tmp_path))


def test_folders_that_hold_something_else_than_a_model(tiny_model_dir, tmp_path):
    trainer, adapter = tmp_path / "outputs", tmp_path / "adapter"
    for step in (500, 900):
        shutil.copytree(tiny_model_dir, trainer / f"checkpoint-{step}")
    with pytest.raises(FileNotFoundError, match=r"give one of the folders in it, as .*outputs/checkpoint-900$"):
        resolve_model_folder(str(trainer))
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="adapter holds an adapter and no model: merge it into the model"):
        resolve_model_folder(str(adapter))


def test_folder_without_tokenizer_or_template(tiny_model_dir, tmp_path):
    bare, mute = tmp_path / "bare", tmp_path / "mute"
    bare.mkdir()
    shutil.copy(tiny_model_dir / "config.json", bare)
    with pytest.raises(FileNotFoundError, match=r"init_from: .*bare has no tokenizer .*: add that"):
        load_tokenizer(str(bare))
    shutil.copytree(tiny_model_dir, mute)
    (mute / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"init_from: .*mute has no chat template, as those of base models: set data"):
        load_tokenizer(str(mute))
    (mute / "chat_template.json").write_text('{"chat_template": "x"}')  # transformers gives it to a processor alone
    with pytest.raises(
        ValueError, match=r"no chat template, only chat_template\.json, .* into a file chat_template\.ji"
    ):
        load_tokenizer(str(mute))


@pytest.mark.parametrize("unknown", [None, "<|endoftext|>"])
def test_a_tokenizer_whose_vocabulary_is_missing_is_refused(tiny_model_dir, tmp_path, unknown):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (folder / "tokenizer.json").unlink()  # transformers makes one without words of what is left
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"unk_token": unknown}))
    with pytest.raises(
        ValueError, match=r"init_from: the tokenizer of .*model knows no words: add the file of its voc"
    ):
        load_tokenizer(str(folder))


def test_decoding_keeps_every_blank_whatever_the_settings_of_a_tokenizer(tiny_model_dir, tmp_path):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    settings = folder / "tokenizer_config.json"
    name = "clean_up_tokenization_spaces"
    both = {name: True, f"{name}_for_bpe_even_though_it_will_corrupt_output": True}  # as a tokenizer without BPE has it
    settings.write_text(json.dumps(json.loads(settings.read_text()) | both))
    text = "[f(city='Oslo , Norway')]"
    plain = AutoTokenizer.from_pretrained(folder)
    assert plain.decode(plain(text)["input_ids"]) == "[f(city='Oslo, Norway')]"
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    tokenizer.save_pretrained(tmp_path / "saved")
    exported = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert exported.decode(exported(text)["input_ids"]) == text


def test_a_tokenizer_without_offsets_is_refused(tiny_model_dir, monkeypatch):
    monkeypatch.setattr("datamodules.chat.tokenizer._read_tokenizer", lambda folder: SimpleNamespace(is_fast=False))
    with pytest.raises(ValueError, match=r"is not a fast one, .*: give a model with a tokenizer\.json"):
        load_tokenizer(str(tiny_model_dir))


def test_a_template_that_multiplies_text_is_refused_before_anything_is_made_tokens_of(tiny_model_dir, tmp_path):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ 'x' * 10 ** 7 }}{{ messages[0].content }}")
    with pytest.raises(
        ValueError, match=r"of .*model makes 10,000,010 characters of one question: set data\.chat_templ"
    ):
        load_tokenizer(str(folder))
    (folder / "chat_template.jinja").write_text("{{ messages | length }}")
    with pytest.raises(
        ValueError, match=r"of .*model leaves out what a user says: set data\.chat_template to chatml or"
    ):
        load_tokenizer(str(folder))


def test_files_are_read_once_and_again_when_they_change(tiny_model_dir, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    other = tmp_path / "other.jinja"
    other.write_text("{% for m in messages %}{{ m.content }}?{% endfor %}", encoding="utf-8")
    reads, read = [], AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *a, **k: reads.append(a) or read(*a, **k))
    first, second = load_tokenizer(str(folder)), load_tokenizer(str(folder), str(other))
    first.init_kwargs["own"] = 1
    assert len(reads) == 1
    assert "own" not in second.init_kwargs
    assert first.chat_template != second.chat_template
    assert load_tokenizer(str(folder)).chat_template == first.chat_template
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}!{% endfor %}", encoding="utf-8")
    assert load_tokenizer(str(folder)).chat_template != first.chat_template
    assert len(reads) == 2

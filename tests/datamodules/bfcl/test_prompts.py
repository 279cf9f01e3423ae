"""Rows and prompts of BFCL: the official ones; and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from datamodules import BFCLDataModule, XLAMSFTDataModule
from datamodules.bfcl.package import decoder, find_package, instructions, registered, system_prompt
from datamodules.bfcl.prompts import spread_over_categories
from datamodules.bfcl.rows import (
    CATEGORIES,
    HINTS,
    SIMPLE,
    chat,
    check_categories,
    language_of,
    read_category,
    with_hints,
)
from datamodules.sources.tools import bfcl_tools

V4 = Path(sys.prefix) / "bfcl-v4"


@pytest.fixture(scope="module")
def v3():
    pytest.importorskip("bfcl_eval", reason="bfcl-eval is not installed")
    return find_package("bfcl_eval")


@pytest.fixture(scope="module")
def v4():
    if not V4.is_dir():
        pytest.skip("BFCL v4 is not unpacked")
    return find_package(str(V4))


@pytest.fixture
def data(v3, tiny_model_dir):
    """Makes a DataModule of a few rows."""

    def make(**options):
        return BFCLDataModule(str(tiny_model_dir), **{"limit": 4} | options)

    return make


@pytest.mark.parametrize("version", ["v3", "v4"])
def test_every_chat_is_the_official_one(version, request):
    path = str(request.getfixturevalue(version).folder.parent)
    script = str(Path(__file__).with_name("chats.py"))
    done = subprocess.run([sys.executable, script, path], capture_output=True, text=True, check=False)
    assert done.stdout == "3641 []\n", done.stderr[-2000:]


def test_rows_to_train_on_are_asked_with_the_official_text(v3, tiny_model_dir):
    data = XLAMSFTDataModule(str(tiny_model_dir), "toolbox:train:8", system_prompt="bfcl", val_fraction=0)
    data.setup("fit")
    official = chat(v3, read_category(v3, "simple")[0])[0]["content"]
    before, functions, _ = official.partition("[{'name': ")
    assert data.form.instructions == before and functions
    text = data.tokenizer.decode(data.rows.documents([0])[0].input_ids)
    assert before + "[{'name': '" in text and "'parameters': {'type': 'dict', 'properties': {" in text


def test_tools_are_printed_as_in_the_official_prompts(v3):
    said = HINTS["python"]
    for category in ("simple", "parallel_multiple", "live_multiple"):
        for row in read_category(v3, category)[::20]:
            official = system_prompt(v3, with_hints(row.functions, "python"))
            # the tools themselves, already in the schema of BFCL, and without the sentence on the language
            assert instructions(v3) + bfcl_tools(row.functions) == official.replace(said, "")


def test_flat_parameters_are_printed_as_a_schema():
    flat = {"days": {"description": "days ahead", "type": "int"}, "rain": {"type": "float, optional", "default": 0.5}}
    tools = [{"name": "f", "description": "d", "parameters": flat}]
    assert bfcl_tools(tools) == (
        "[{'name': 'f', 'description': 'd', 'parameters': {'type': 'dict', 'properties': {"
        "'days': {'type': 'integer', 'description': 'days ahead'}, "
        "'rain': {'type': 'float', 'default': 0.5}}, 'required': ['days']}}]\n\n"
    )


def test_rows_of_every_category(v3, v4):
    counts = {category: len(read_category(v3, category)) for category in CATEGORIES[3]}
    assert [counts[category] for category in SIMPLE[3]] == [400, 100, 50]
    assert (counts["live_multiple"], counts["live_irrelevance"], counts["live_relevance"]) == (1053, 882, 18)
    assert [len(read_category(v4, category)) for category in ("live_irrelevance", "live_relevance")] == [884, 16]
    (row, *_), (other, *_) = read_category(v3, "parallel"), read_category(v3, "irrelevance")
    assert row.id == "parallel_0" and len(row.possible_answers) > 1
    assert other.possible_answers is None


def test_a_system_message_of_the_row_goes_below_the_official_one(v3):
    row = next(row for row in read_category(v3, "live_simple") if row.question[0]["role"] == "system")
    first, *others = chat(v3, row)
    assert first["content"].startswith("You are an expert in composing functions.")
    assert first["content"].endswith("\n\n" + row.question[0]["content"])
    assert others == row.question[1:]


def test_languages():
    categories = ["javascript", "simple_java", "java", "live_simple", "simple_javascript"]
    assert [language_of(c) for c in categories] == ["javascript", "java", "java", "python", "javascript"]


def test_java_and_javascript_are_decoded_by_the_official_parsers(v3):
    java, javascript = decoder(v3, "java"), decoder(v3, "javascript")
    written = '[a.B.c(x="y", n=12L, l=new ArrayList<>(Arrays.asList(1, 2)))]'
    assert java(written) == ([{"a.B.c": {"x": "y", "n": "12L", "l": "new ArrayList<>(Arrays.asList(1, 2))"}}], None)
    assert javascript("f(a={k: 1}, b='x')") == ([{"f": {"a": "{k: 1}", "b": "x"}}], None)
    for decode, text in ((java, "[f(a=1"), (javascript, "no call"), (java, "[f(a=1, a=2)]"), (java, "[f(a='\ud800')]")):
        calls, error = decode(text)
        assert calls is None and error.startswith("the answer cannot be read as a call: ")


def test_a_limit_is_the_number_of_rows_and_is_spread_over_the_categories():
    assert spread_over_categories({"a": 9, "b": 1, "c": 9}, 8) == {"a": 4, "b": 1, "c": 3}  # b has no more to give
    assert spread_over_categories({"a": 9, "b": 9}, 1) == {"a": 1, "b": 0}
    assert spread_over_categories({"a": 2, "b": 1}, 50) == {"a": 2, "b": 1}


def test_registered_names(v3, v4):
    for package in (v3, v4):
        assert registered(package, "Qwen/Qwen3-8B") and not registered(package, "Qwen/Qwen3")


def test_prompts_are_encoded_in_the_order_of_the_rows(data, tiny_tokenizer, capsys):
    module = data(categories=["java", "live_relevance"])
    module.setup("test")
    assert [row.id for row in module.rows] == ["java_0", "java_1", "live_relevance_0-0-0", "live_relevance_1-1-0"]
    assert capsys.readouterr().out.startswith("BFCL v3 (bfcl-eval 2025.8.6.2): 4 of 3,641 single-turn rows, 2 categ")
    text = tiny_tokenizer.decode(module.prompt_ids[0])
    assert "any type of Java object" in text and text.endswith("<|im_start|>assistant\n")
    (batch,) = module.test_dataloader()
    assert batch.examples == module.rows and batch.prompt_ids == module.prompt_ids


@pytest.mark.parametrize(
    "options, message",
    [
        ({"limit": 0}, "data.limit is 0; give at least 1"),
        ({"eval_batch_size": 0}, "data.eval_batch_size is 0"),
        ({"categories": []}, "data.categories names no category"),
        ({"categories": ["simple", "sinple"]}, "'sinple' is no category of BFCL v3; these are: simple, java, javascr"),
        ({"categories": ["multi_turn_base"]}, "'multi_turn_base' takes several turns against simulated APIs"),
        ({"path": "/nowhere"}, r"data.path: /nowhere holds no package bfcl_eval: pip install --no-deps --target /now"),
    ],
)
def test_bad_options(data, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data(**options)


def test_a_release_that_is_not_known_to_agree(tmp_path):
    (tmp_path / "bfcl_eval" / "data").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"is of an unknown release; the official scores are reproduced for 2025.8.6.2"
    ):
        find_package(str(tmp_path))
    (tmp_path / "bfcl_eval-2025.7.17.dist-info").mkdir()
    metadata = "Metadata-Version: 2.4\nName: bfcl_eval\nVersion: 2025.7.17\n"
    (tmp_path / "bfcl_eval-2025.7.17.dist-info" / "METADATA").write_text(metadata)
    with pytest.raises(ValueError, match=r"is 2025.7.17; the official"):
        find_package(str(tmp_path))


def test_the_installed_package_is_absent(monkeypatch):
    monkeypatch.setattr("datamodules.bfcl.package.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"is not installed here: pip install --no-deps bfcl-eval==2025.8.6.2"):
        find_package("bfcl_eval")


def test_tree_sitter_is_absent(v3, monkeypatch):
    monkeypatch.setattr("datamodules.bfcl.package.find_spec", lambda name: None)
    decoder.cache_clear()
    with pytest.raises(ValueError, match=r"data.categories: java needs tree-sitter==0.21.3"):
        decoder(v3, "java")


@pytest.mark.parametrize("stage", ["fit", "validate", "predict"])
def test_bfcl_is_for_evaluation(data, stage):
    with pytest.raises(ValueError, match=f"BFCL is for evaluation: run it with funreason test, not {stage}"):
        data().setup(stage)


def test_a_model_without_a_chat_template(data, tiny_model_dir, tmp_path):
    for file in tiny_model_dir.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    module = data()
    module.tokenizer = str(tmp_path)
    with pytest.raises(ValueError, match=r"has no chat template.*set data.chat_template to chatml"):
        module.setup("test")


def test_a_row_of_several_turns(v3, tmp_path):
    package = type(v3)(tmp_path, v3.release)
    (tmp_path / "data").mkdir()
    row = {"id": "irrelevance_0", "question": [[], []], "function": []}
    (tmp_path / "data" / "BFCL_v3_irrelevance.json").write_text(json.dumps(row))
    with pytest.raises(
        ValueError, match=r"BFCL_v3_irrelevance.json, row irrelevance_0 has several turns.*: leave irrelevance out"
    ):
        read_category(package, "irrelevance")


def test_names_of_the_other_version():
    with pytest.raises(ValueError, match="'simple' is no category of BFCL v4; these are: simple_python"):
        check_categories(["simple"], 4)

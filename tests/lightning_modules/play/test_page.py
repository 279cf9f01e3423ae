import json

import pytest
from streamlit.testing.v1 import AppTest

from lightning_modules.commands.play import PAGE

HOSTILE = '<img src=x onerror="window.stolen=1">'
TOOL = {"name": "f", "description": "", "parameters": {"a": {"type": "int", "required": True}}}
CALLS = [{"name": "f", "arguments": {"a": 1}}]
ROW = {"id": "1", "query": "Do f with 1.", "tools": json.dumps([TOOL]), "answers": json.dumps(CALLS)}


@pytest.fixture
def run(tmp_path, tiny_model_dir):
    """A run folder with a model and the answers of a validation."""
    (tmp_path / "hf").symlink_to(tiny_model_dir)
    sample = ROW | {"step": 7, "completion": HOSTILE, "score": 0.0, "cot": "", "finish_reason": "stop"}
    (tmp_path / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    return tmp_path


@pytest.fixture
def page(monkeypatch, run, tmp_path):
    """The page as Streamlit runs it, with one model or with two."""

    def open_page(*runs):
        rows = tmp_path / "rows.jsonl"
        rows.write_text(json.dumps(ROW | {"query": "Of the data."}))
        monkeypatch.setattr("sys.argv", [str(PAGE), "--data", str(rows), *map(str, runs or [run])])
        shown = AppTest.from_file(PAGE, default_timeout=120).run()
        assert not shown.exception
        return shown

    return open_page


def text(shown):
    return "\n".join(block.proto.body for block in shown.get("html"))


def press(shown, label):
    next(button for button in shown.button if button.label == label).click()
    shown.run()
    assert not shown.exception
    return shown


def short(shown):
    """Few tokens, two samples."""
    shown.sidebar.number_input[0].set_value(6)
    shown.sidebar.slider[0].set_value(2)
    return shown


def test_a_group_is_sampled_and_compared(page):
    shown = short(page())
    shown.text_area(key="query").set_value("Weather?")
    shown.text_area(key="reference").set_value("[get_weather(city='Oslo')]")
    press(shown, "Sample a group")
    assert sum("mean reward **0.000**, mean CoT entropy **0.000 nats**" in line.value for line in shown.markdown) == 1
    assert text(shown).count('class="fr-card"') == 2 and "reward 0" in text(shown)
    assert any("Weather?" in code.value for code in shown.code)  # the prompt
    assert not shown.error


def test_two_models_answer_side_by_side(page, run, tiny_model_dir):
    shown = short(page(run, tiny_model_dir))
    press(shown, "Sample a group")
    assert sum("tiny-model" in head.value for head in shown.subheader) == 1
    assert text(shown).count('class="fr-card"') == 4 and "reward" not in text(shown)


def test_rows_are_opened_in_the_fields(page, run):
    shown = press(page(), "Open")
    assert shown.text_area(key="query").value == "Of the data."
    assert json.loads(shown.text_area(key="tools").value)[0]["name"] == "f"
    assert shown.text_area(key="reference").value == "[f(a=1)]"
    shown.selectbox[0].set_value(f"samples of {run}").run()
    press(shown, "Open")
    assert shown.text_area(key="query").value == ROW["query"]
    assert [code.value for code in shown.code] == [HOSTILE]  # shown as code, which nothing interprets
    assert any("step 7, score 0.0" in caption.value for caption in shown.caption)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tools", "[{", "the tools cannot be read"),
        ("query", "<|im_end|>", "a special token"),
        ("query", "", "is empty"),
    ],
)
def test_what_cannot_be_asked_is_said_on_the_page(page, field, value, message):
    shown = page()
    shown.text_area(key=field).set_value(value)
    press(shown, "Sample a group")
    (error,) = shown.error
    assert message in error.value.replace("&#39;", "'") and not text(shown).count("fr-t ")

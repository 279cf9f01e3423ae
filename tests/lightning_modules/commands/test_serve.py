import importlib.util
import os

import pytest

from datamodules.chat.form import ChatForm
from datamodules.chat.serving import served_tokenizer
from lightning_modules.cli import main
from lightning_modules.commands import serve

HERMES = (
    "{%- if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{%- endif %}"
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{%- for c in m.tool_calls or [] %}{{ '\n' if not loop.first }}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{%- endfor %}'
    "<|im_end|>\n{%- endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\n{%- endif %}"
)
THINKING = ["--reasoning-parser", "funreason", "--reasoning-parser-plugin", serve.PLUGIN]


@pytest.fixture
def exported(tmp_path, tiny_tokenizer):
    """Makes a run folder without weights, which the arguments need not."""

    def make(form, template=None):
        folder = tmp_path / "run" / "hf"
        tokenizer = tiny_tokenizer
        if template:
            tokenizer = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token="<|im_end|>")
            tokenizer.chat_template = template
        served_tokenizer(tokenizer, form).save_pretrained(folder)
        (folder / "config.json").write_text("{}")
        return folder.parent

    return make


@pytest.mark.parametrize(
    ("form", "template", "parsers"),
    [
        (ChatForm(), None, ["funreason", "--tool-parser-plugin", serve.PLUGIN, *THINKING]),
        (ChatForm(answer_form="json"), None, ["funreason", "--tool-parser-plugin", serve.PLUGIN, *THINKING]),
        (ChatForm(answer_form="hermes"), None, ["hermes", *THINKING]),
        (ChatForm(answer_form="hermes", think=False), None, ["hermes"]),
        (ChatForm("template", "template", think=False), HERMES, ["hermes"]),
        (
            ChatForm("template", "template", think=False),
            HERMES.replace("tool_call>", "call>"),
            ["funreason", "--tool-parser-plugin", serve.PLUGIN],
        ),
    ],
    ids=["python", "json", "hermes", "hermes without CoT", "template of Hermes", "template"],
)
def test_the_parsers_fit_the_form_that_the_model_was_trained_in(exported, form, template, parsers):
    run = str(exported(form, template))
    arguments = serve.server_arguments(run)
    assert arguments[arguments.index("--tool-call-parser") + 1 :] == parsers
    assert arguments[:6] == ["--model", f"{run}/hf", "--served-model-name", run, "--host", "127.0.0.1"]
    assert arguments[6:10] == ["--generation-config", "vllm", "--override-generation-config", '{"temperature": 0.0}']


def test_the_process_becomes_the_server_and_hands_on_what_follows_the_model(exported, monkeypatch):
    run, started = str(exported(ChatForm())), []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words))
    options = ["--port", "8123", "--tensor-parallel-size", "2", "--host", "0.0.0.0"]
    main(["serve", run, *options])
    assert started == [[started[0][0], "-m", serve.SERVER, *serve.server_arguments(run), *options]]


def test_what_cannot_be_served_is_one_sentence(exported, tiny_model_dir, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for run, message in [
        (str(exported(ChatForm())), "vLLM is not installed beside this command: `make serve MODEL=...`"),
        (str(tiny_model_dir), "does not say in which form it was trained"),
        ("./nowhere", "no folder ./nowhere"),
    ]:
        with pytest.raises(SystemExit) as stop:
            main(["serve", run])
        assert str(stop.value).startswith("error: ") and message in str(stop.value)

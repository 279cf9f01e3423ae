"""What a YAML, a model folder or a chat template of somebody else cannot do; docs/configuration.md says what it can."""

import copy
import json
import shutil
import sys

import pytest
from omegaconf.basecontainer import BaseContainer

from datamodules.chat.templates import turns_text
from datamodules.chat.tokenizer import load_tokenizer
from datamodules.refinement.cli import parse
from lightning_modules.cli import FunReasonCLI
from lightning_modules.policy.model import build_policy

USER = [{"role": "user", "content": "hello"}]


@pytest.fixture
def ran(tmp_path):
    """A file that the code of the test's files would make."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


@pytest.mark.parametrize("command", [lambda args: FunReasonCLI(["fit", *args]), parse], ids=["funreason", "refine"])
@pytest.mark.parametrize("tag", ["object/apply:os.system ['touch {ran}']", "object/new:os.system ['touch {ran}']"])
def test_tags_of_a_yaml_make_no_objects(command, tag, ran, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(f"output_dir: !!python/{tag.format(ran=ran)}\n")
    with pytest.raises(SystemExit):
        command(["--config", str(config)])
    assert "python/object" in capsys.readouterr().err


def test_interpolation_evaluates_nothing(tmp_path, monkeypatch):
    assert {name.partition(".")[0] for name in BaseContainer._resolvers} == {
        "oc"
    }  # OmegaConf's own, none of which does
    monkeypatch.setenv("FOLDER", "runs/of-the-environment")
    config = tmp_path / "config.yaml"
    config.write_text("recipe: datamodules.refinement.fcdr\njudges: []\noutput_dir: ${oc.env:FOLDER}\n")
    assert (
        parse(["--config", str(config)])[0]["output_dir"] == "${oc.env:FOLDER}"
    )  # `funreason` reads it, this does not


def with_code(folder, ran):
    """A copy of a model folder whose every part names code of its own."""
    copied = ran.parent / "model"
    shutil.copytree(folder, copied)
    classes = "class Config(Qwen2Config): model_type = 'own'\nclass Model(Qwen2ForCausalLM): pass\n"
    code = f"open({str(ran)!r}, 'w')\nfrom transformers import *\n{classes}class Words(PreTrainedTokenizerFast): pass\n"
    (copied / "own.py").write_text(code)
    (copied / "custom_generate").mkdir()
    (copied / "custom_generate" / "generate.py").write_text(code)
    names = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": [None, "own.Words"]}
    for name, changes in {"config": {"model_type": "own"}, "tokenizer_config": {"tokenizer_class": "Words"}}.items():
        path = copied / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes | {"auto_map": names}))
    return str(copied)


@pytest.mark.parametrize("load", [load_tokenizer, build_policy])
def test_code_of_a_model_folder_is_refused_without_asking(load, tiny_model_dir, ran, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # who is asked, and says yes
    words = r"^init_from: .*model needs code of its own \(auto_map in its \w+.json\), and none but transformers' is run"
    with pytest.raises(ValueError, match=words) as error:
        load(with_code(tiny_model_dir, ran))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch RAN') }}",
        "{{ lipsum.__globals__['os'].system('touch RAN') }}",
        "{{ messages.append(1) }}",
        "{{ ''['__class__'] }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ raise_exception.__globals__ }}",
        "{% include '/etc/hostname' %}",
    ],
)
def test_a_chat_template_reaches_nothing_of_python(template, tiny_tokenizer, ran):
    tokenizer = copy.copy(tiny_tokenizer)
    tokenizer.chat_template = template.replace("RAN", str(ran))
    try:
        said = turns_text(tokenizer, USER)
    except Exception as error:
        said = str(error)
        assert "unsafe" in said or "no loader" in said, said
    assert "class '" not in said and "{'" not in said

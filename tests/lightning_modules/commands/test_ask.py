import io
import json
import math
import shutil

import pytest
import torch
from families import GPT, Family

from datamodules.chat.form import ChatForm
from datamodules.chat.segments import encode_prompt
from datamodules.example import Example
from lightning_modules.cli import main
from lightning_modules.commands import request
from lightning_modules.commands.ask import ask, load_model
from lightning_modules.generators.base import Completion

TOOL = {
    "name": "get_weather",
    "description": "Weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
QUERY = "Weather in Oslo?"
COT = "Oslo is a city."


@pytest.fixture(scope="module")
def taught(teach, tiny_model_dir):
    """Makes a run folder of a model that has learnt one answer by heart."""

    def make(form, arguments):
        answers = json.dumps([{"name": "get_weather", "arguments": arguments}])
        return teach(tiny_model_dir, form, [Example("1", QUERY, json.dumps([TOOL]), answers, COT)])

    return make


@pytest.mark.parametrize("form", [ChatForm(), ChatForm(answer_form="hermes"), ChatForm(think=False)], ids=str)
def test_what_was_learnt_is_answered(taught, form):
    run = taught(form, {"city": "Oslo", "days": 2})
    policy, tokenizer, found = load_model(str(run))
    (answer,) = ask(policy, tokenizer, found, QUERY, [TOOL])
    assert found == form and answer.error is None and answer.misfit is None
    assert [(call.name, call.arguments) for call in answer.calls] == [("get_weather", {"city": "Oslo", "days": 2})]
    assert answer.cot == (COT if form.think else "") and answer.finish_reason == "stop"
    assert answer.completion.startswith("<think>") == form.think
    assert answer.completion_tokens == len(tokenizer(answer.completion)["input_ids"]) + 1  # and what ended it
    assert (answer.cot_entropy is None) == (answer.cot_tokens == 0) == (not form.think)


def test_entropy_is_that_of_the_tokens_between_the_tags(taught):
    policy, tokenizer, form = load_model(str(taught(ChatForm(), {"city": "Oslo"})))
    (answer,) = ask(policy, tokenizer, form, QUERY, [TOOL], temperature=1e-9, max_new_tokens=60)  # as good as greedy
    (greedy,) = ask(policy, tokenizer, form, QUERY, [TOOL])
    assert answer.completion == greedy.completion and answer.cot_entropy == pytest.approx(0.0, abs=1e-6)
    # The oracle: transformers alone, on the exported template's prompt; offsets say which tokens are the thought's.
    chat, tools = [{"role": "user", "content": QUERY}], [{"type": "function", "function": TOOL}]
    served = tokenizer.__class__.from_pretrained(tokenizer.name_or_path)
    prompt = served.apply_chat_template(chat, tools=tools, add_generation_prompt=True, return_dict=False)
    written = served(greedy.completion, return_offsets_mapping=True)
    start, end = len("<think>"), greedy.completion.index("</think>")
    thought = [i for i, (first, last) in enumerate(written["offset_mapping"]) if start <= first and last <= end]
    ids = torch.tensor([prompt + written["input_ids"]])
    with torch.no_grad():
        logits = policy.causal_lm(ids).logits[0, [len(prompt) - 1 + i for i in thought]].double()
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert greedy.cot_tokens == len(thought) and greedy.cot_entropy == pytest.approx(float(entropy), rel=1e-4)
    assert 0 < greedy.cot_entropy < math.log(len(served))


def test_samples_are_those_of_their_seed(tiny_model_dir):
    policy, tokenizer, form = load_model(str(tiny_model_dir))

    def texts(seed, samples=3):
        drawn = ask(policy, tokenizer, form, QUERY, [TOOL], samples, 1.0, 8, seed)
        assert {answer.finish_reason for answer in drawn} == {"length"} and drawn[0].calls is None
        return [answer.completion for answer in drawn]

    assert len(set(texts(0))) == 3 and texts(0, 2) == texts(0)[:2] and texts(1) != texts(0)


def test_answers_without_a_thought_are_spared_the_pass_for_entropies(tiny_model_dir, monkeypatch):
    policy, tokenizer, form = load_model(str(tiny_model_dir))
    texts = ["[]", "<think>One fits.</think>\n\n[]", "<think>", "<think>Two or three.</think>\n\n[]"]
    drawn = [Completion([*tokenizer(text)["input_ids"], tokenizer.eos_token_id], "stop") for text in texts]
    scored = []
    policy.register_forward_hook(lambda _, given, __: scored.append(len(given[0])))  # rows; no tokens are drawn by it

    def entropies(*written):
        monkeypatch.setattr(request, "HFGenerator", lambda *_, **__: lambda *_, **__: [list(written)])
        return [answer.cot_entropy for answer in ask(policy, tokenizer, form, QUERY, [TOOL], len(written))]

    assert entropies(drawn[0], drawn[2]) == [None, None] and not scored
    found = entropies(*drawn)
    assert sum(scored) == 2 and found[0] is found[2] is None
    assert found[1::2] == pytest.approx(entropies(drawn[1]) + entropies(drawn[3])) and found[1] != found[3]


def test_an_answer_ends_within_a_table_of_positions(tmp_path, tiny_tokenizer):
    """One that may end a token later could be written, and not scored."""
    folder = Family("gpt2", True, GPT).save(tmp_path, tiny_tokenizer)
    policy, tokenizer, form = load_model(str(folder))
    room = 512 - len(encode_prompt(tokenizer, request.request(QUERY, [TOOL]), form))
    (answer,) = ask(policy, tokenizer, form, QUERY, [TOOL], max_new_tokens=room)
    assert answer.prompt_tokens + answer.completion_tokens <= 512
    with pytest.raises(
        ValueError, match=f"512 positions, and the prompt has {512 - room} .* up to {room + 1}: set max"
    ):
        ask(policy, tokenizer, form, QUERY, [TOOL], max_new_tokens=room + 1)


def test_calls_that_contradict_the_tools_are_told(taught):
    policy, tokenizer, form = load_model(str(taught(ChatForm(), {"city": "Oslo", "days": "two"})))
    (answer,) = ask(policy, tokenizer, form, QUERY, [TOOL])
    assert answer.calls[0].arguments["days"] == "two" and "'days' of 'get_weather' is declared" in answer.misfit


def test_the_command_prints_what_it_was_answered(taught, tmp_path, capsys, monkeypatch):
    run, tools = taught(ChatForm(), {"city": "Oslo"}), tmp_path / "tools.json"
    tools.write_text(json.dumps({"tools": [{"type": "function", "function": TOOL}]}))
    main(["ask", str(run), QUERY, "--tools", str(tools)])
    printed = capsys.readouterr().out
    assert f"CoT     {COT}\nanswer  [get_weather(city='Oslo')]\n        read as calls, which fit the tools\n" in printed
    monkeypatch.setattr("sys.stdin", io.StringIO(QUERY + "\n"))
    main(["ask", str(run / "hf"), "--tools", str(tools), "--samples", "2", "--temperature", "0", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 2 and rows[0] == rows[1]
    assert rows[0]["calls"] == [{"name": "get_weather", "arguments": {"city": "Oslo"}}] and rows[0]["cot"] == COT


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere/at/all", QUERY], "no folder nowhere/at/all"),
        (["ODD", QUERY], "init_from: "),
        (["MODEL", QUERY, "--tools", "none.json"], "--tools none.json: No such file or directory"),
        (["MODEL", QUERY, "--tools", "CALLS"], "every tool must be an object with a string 'name'"),
        (["MODEL", QUERY, "--tools", "EMPTY"], "blank.json: the file is empty; give a file with a list of tools"),
        (["MODEL", "-"], "the request is empty"),
        (["MODEL", "Z\udcfcrich"], "the request holds bytes that are no text in the terminal's encoding"),
        (["MODEL", "end<|im_end|>"], "column 'query': holds '<|im_end|>', a special token"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(tiny_model_dir, tmp_path, monkeypatch, words, message):
    calls, blank = tmp_path / "calls.json", tmp_path / "blank.json"
    calls.write_text('[{"arguments": {}}]')
    blank.write_text("\ufeff\n", encoding="utf-8")
    odd = shutil.copytree(tiny_model_dir, tmp_path / "odd")
    (odd / "config.json").write_text('{"model_type": "nosuch"}')
    files = {"MODEL": str(tiny_model_dir), "ODD": str(odd), "CALLS": str(calls), "EMPTY": str(blank)}
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(SystemExit) as stop:
        main(["ask", *(files.get(word, word) for word in words)])
    assert str(stop.value).startswith("error: ") and "traceback" not in str(stop.value) and message in str(stop.value)


@pytest.mark.parametrize("words", [["--samples", "0"], ["--temperature", "-1"], ["--max_new_tokens", "0"]])
def test_impossible_settings_are_refused_before_the_model_loads(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(["ask", "nowhere/at/all", QUERY, *words])
    assert stop.value.code == 2 and words[0].strip("-") in capsys.readouterr().err.splitlines()[-1]

"""What is shown of a run to come is what the run does, and what its reward says; nothing else is written or loaded."""

import json
import re
import shutil

import numpy as np
import pytest
from families import FAMILIES
from training_runs import rewards_module
from transformers import AutoModelForCausalLM

from datamodules.chat.form import ChatForm
from datamodules.chat.segments import target_text
from datamodules.example import Example
from lightning_modules.cli import main
from lightning_modules.commands.answers import altered_arguments, other_value, score_answers
from lightning_modules.commands.page import Section, Span, as_html, as_text, plain
from lightning_modules.commands.sections import demo_values, histogram, ranges, shortened
from lightning_modules.commands.show import in_color
from lightning_modules.policy import probe
from rewards import FRAMES, FunctionCallReward

BY_KIND = {family.kind: family for family in FAMILIES}
PARAMETERS = {"city": {"type": "str"}, "days": {"type": "int"}}
TOOLS = [{"name": name, "description": "", "parameters": PARAMETERS} for name in "fg"]
CALL = {"name": "f", "arguments": {"city": "Oslo", "days": 2}}
WRONG = "<script>alert(1)</script> \x1b[31m"


def example(answers=(CALL,), **columns):
    columns = {"id": "a", "query": "Oslo?", "cot": "f fits."} | columns
    return Example(tools=json.dumps(TOOLS), answers=json.dumps(answers), **columns)


def scores(row, form="python", learnt=True, **settings):
    """What answers earn by what was done, and which part of the reward they fail."""
    think = settings.pop("think", True)
    reward = FunctionCallReward(**settings)
    reward.form, reward.think = form, think
    target = target_text(row, ChatForm(answer_form=form, think=think))
    answers = score_answers(reward, row, target, FRAMES.get(form), learnt)
    return {answer.name: answer.fails.partition(":")[0] for answer in answers}


@pytest.mark.parametrize("form", ["python", "json", "hermes"])
def test_what_answers_earn_and_the_part_that_they_fail(form):
    assert scores(example(), form) == {
        "the row's own answer, as it is trained on": "",
        "another value of city": "arg_values",
        "days as text": "arg_values",
        "city left out": "arg_names",
        "an argument too many": "arg_names",
        "arguments in another order": "",
        "another function": "name",
        "the call twice": "name",
        "no call": "name",
        "another chain of thought": "",
        "no <think> block": "format",
        "text after it": "parse",
        "in a code fence": "parse",
    } | ({"the calls as a Python list": "parse"} if form == "json" else {}) | (
        {"the calls as a JSON list": "" if form == "python" else "parse"} if form != "json" else {}
    )


def test_answers_of_several_calls_and_of_none():
    two = scores(example([CALL, CALL | {"name": "g"}]))
    assert (two["the last call left out"], two["calls in another order"], two["another function"]) == (
        "name",
        "",
        "name",
    )
    assert "calls in another order" not in scores(example([CALL, CALL]))  # it is the same
    none = scores(example([]))
    assert (none["a call where none fits"], none["words instead of []"]) == ("name", "parse")
    # In words: the default reward pays for [] alone; one that pays for what is no call takes both.
    words = example([], response="I cannot.")
    asked = scores(words)
    assert (asked["the row's own answer, as it is trained on"], asked["[] instead of words"]) == ("parse", "")
    asked = scores(words, no_call="text")
    assert (asked["the row's own answer, as it is trained on"], asked["[] instead of words"]) == ("", "")
    assert asked["a call where none fits"] == "name"


def test_without_a_chain_of_thought():
    asked = scores(example(), think=False)
    assert asked["the row's own answer, as it is trained on"] == ""
    assert asked["a <think> block before it"] == "format" and "no <think> block" not in asked
    # A row that has none where one is wanted: what is trained earns nothing, what a model would have to write does.
    row = example(cot="")
    assert list(scores(row).items())[:2] == [
        ("the row's own answer, as it is trained on", "format"),
        ("the row's own answer after any thought", ""),
    ]
    assert next(iter(scores(row, learnt=False).items())) == ("the row's own answer after any thought", "")


def test_answer_tags_are_put_around_what_was_altered():
    tagged = scores(example(), answer_tags="answer")
    assert tagged["the row's own answer, as it is trained on"] == "format"
    assert tagged["the row's own answer as the reward asks for it"] == ""
    assert (tagged["another value of city"], tagged["no <answer> tags"]) == ("arg_values", "format")


@pytest.mark.parametrize("value", [True, 3, 1e300, "", "a", [], [1], {}, {"a": 1}, None])
def test_another_value_is_another_one(value):
    assert other_value(value) != value


def test_an_argument_too_many_has_a_name_of_its_own():
    altered = dict(altered_arguments({"a": 1, "a_2": 2}))
    assert altered["an argument too many"] == {"a": 1, "a_2": 2, "a_2_2": True}


def test_ranges_are_round_and_count_every_value():
    # 7 to 43 in at most 4 ranges: of width 10 there are 5 (0-9, ..., 40-49), of width 20 three.
    assert ranges(np.array([7, 19, 20, 43]), 4) == [(0, 19, 2), (20, 39, 1), (40, 59, 1)]
    assert ranges(np.array([5, 5]), 10) == [(5, 5, 2)]
    assert ranges(np.array([], dtype=int), 10) == []
    lengths = np.random.default_rng(0).integers(1, 5000, 300)
    found = ranges(lengths, 10)
    assert [((lengths >= low) & (lengths <= high)).sum() for low, high, _ in found] == [count for *_, count in found]
    assert sum(count for *_, count in found) == 300


def test_a_histogram_sets_apart_what_is_too_long():
    text = as_text([Section("", histogram(np.array([10, 10, 12, 99]), 50, "data.max_length"))], color=False)
    lines = [line.split() for line in text.splitlines()]
    assert ["10", "to", "10", "█" * 40, "2"] in lines and ["12", "to", "12", "█" * 20, "1"] in lines
    assert ["over", "50", "█" * 20, "1"] in lines
    assert "data.max_length is 50: 1 rows are longer and not trained on; the longest has 99" in text
    *_, said = histogram(np.array([9, 99]), 99, "data.max_length")
    assert said[0].text == "data.max_length is 99: no row is longer; the longest has 99"


def test_values_of_the_demo_are_named_where_rows_or_model_are_others():
    demo = {"model.init_from": "assets/tiny-base", "model.learning_rate": 0.002, "model.epsilon": 1e-4}
    demo |= {"data.path": "toolbox:train:4000", "data.val_path": None, "trainer.max_steps": -1}
    assert list(demo_values(demo, 10**6)) == ["data.path"]
    more = {"data.val_path": "toolbox:heldout:64", "trainer.max_steps": 20}  # which go with that path
    assert list(demo_values(demo | more, 10**6)) == ["data.path"]
    own = {"data.path": "rows.jsonl", "data.val_path": "toolbox:heldout:64", "trainer.max_steps": 20}
    own |= {"model.sampling.temperature": 1.0}
    found = demo_values(demo | own, 10**6)
    assert set(found) == {"data.val_path", "model.init_from", "model.sampling.temperature", "trainer.max_steps"}
    found = demo_values(demo | own | {"model.init_from": "Qwen/Qwen3-4B"}, 4 * 10**9)
    assert set(found) == {*own, "model.learning_rate", "model.epsilon"} - {"data.path"}
    assert found["data.val_path"].startswith("toolbox:heldout:64 is the shipped corpus")
    sane = {"model.learning_rate": 2e-4, "model.epsilon": 1e-8, "data.path": "rows.jsonl"}
    assert demo_values(demo | sane | {"model.init_from": "Qwen/Qwen3-4B"}, 4 * 10**9) == {}


def test_foreign_text_commands_neither_a_terminal_nor_a_page():
    sections = [Section(WRONG, [plain(WRONG), (Span(WRONG, "cot"), Span("x"))])]
    page = as_html(WRONG, sections)
    assert "<script" not in page and "\x1b" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt; \\x1b[31m") == 5  # title, h1, h2, two lines
    assert not re.search(r"(src|href)=|url\(|@import", page)
    assert "\x1b" not in as_text(sections, color=False)
    colored = as_text(sections, color=True)
    assert re.findall("\x1b[^m]*m", colored) == ["\x1b[1m", "\x1b[0m", "\x1b[36m", "\x1b[0m"]


def test_colours_are_for_terminals(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert not in_color()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert in_color()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not in_color()


def test_a_long_answer_is_cut_in_its_middle():
    assert shortened("<think>" + "a" * 100 + "</think>\n\n[f()]") == "<think>…</think> [f()]"
    assert shortened("<think>Hm.</think>\n\n[]") == "<think>Hm.</think> []"
    cut = shortened("[f(a='" + "x" * 500 + "')]")
    assert len(cut) == 163 and cut.startswith("[f(a=") and cut.endswith("')]")  # 160 and " … "


@pytest.fixture
def show(base_args, tmp_path, capsys, monkeypatch):
    """Runs the command, in which no weight may be read; gives what it prints."""
    load = AutoModelForCausalLM.from_pretrained

    def of_headers(*args, device_map, **options):
        assert device_map == "meta"
        return load(*args, device_map=device_map, **options)

    def run(experiment, *words, **options):
        with monkeypatch.context() as patch:
            patch.setattr(AutoModelForCausalLM, "from_pretrained", of_headers)
            main(["show", "--config", f"configs/{experiment}.yaml", *base_args(tmp_path / "runs", **options), *words])
        assert not (tmp_path / "runs").exists()
        return capsys.readouterr().out

    return run


def table_of(printed):
    """Rows of the tables by their first word."""
    return {line.split()[0]: line.split() for line in printed.splitlines() if line.startswith("  ") and line.split()}


@pytest.mark.parametrize("experiment", ["srml", "grpo"])
def test_steps_and_memory_are_those_of_the_run(experiment, show, base_args, tmp_path, capsys):
    options = {"trainer.max_steps": 1, "trainer.limit_val_batches": 0, "model.init_args.schedule": "constant"}
    options |= {"model.init_args.micro_batch_tokens": 2048} if experiment == "grpo" else {}
    shown = table_of(show(experiment, **options))
    main(["fit", "--config", f"configs/{experiment}.yaml", *base_args(tmp_path / "fit", **options)])
    begun = table_of(capsys.readouterr().out)
    same = ["learning", "tokens", "memory", "weights", "AdamW", "gradients"]
    same += ["batch", "rows", "loss"] if experiment == "srml" else ["rollouts", "objective", "rewards", "reference"]
    assert {name: shown[name] for name in same} == {name: begun[name] for name in same}


def test_a_row_and_what_it_earns(show, tmp_path):
    """Row 2 of the fixture has two tools; 24 rows, of which at least one is held out, in steps of 8."""
    page = tmp_path / "pages" / "page.html"
    printed = show("srml", "--row=2", f"--html={page}", "--color")
    plain_text = re.sub("\x1b[^m]*m", "", printed)
    assert "Asked by our system prompt; answered with a Python list of calls, after a chain of thought" in plain_text
    assert "rows read as: xLAM's columns 24" in plain_text
    row = plain_text[plain_text.index("Row 2 of") : plain_text.index("What answers")]
    assert "<|im_start|>user\n  Request 1: weather in" in row
    assert re.search(r"\x1b\[36m<think>[^\x1b]+get_weather fits.</think>\s*\x1b\[0m", printed)
    assert re.search(r"\x1b\[32m[^\x1b]*\[get_weather\(city='\w+', days=\d\)\]<\|im_end\|>\x1b\[0m", printed)
    tokens = [int(n) for n in re.findall(r"^  (?:prompt|chain of thought|call), (\d+) tokens$", row, re.M)]
    assert f": {sum(tokens)} tokens" in row and all(tokens)
    for line in ("1  the row's own answer, as it is trained on", "0  another value of city: fails arg_values"):
        assert f"  {line}" in plain_text
    text = page.read_text()
    assert '<span class="cot">&lt;think&gt;' in text and "<h2>Memory</h2>" in text and "\x1b" not in text
    assert plain_text.endswith(f"The same as a page: {page}\n")


def said(content, call=None):
    calls = [{"id": content, "type": "function", "function": {"name": "f", "arguments": call}}] if call else None
    return {"role": "assistant", "content": None, "tool_calls": calls} if call else {"role": "user", "content": content}


@pytest.fixture
def odd_rows(tmp_path):
    """A chat of two calls, a name that is no identifier, markup, and a bad row; nobody thinks."""
    function = {
        "name": "f",
        "description": "",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    }
    turns = [said("First?", '{"a": "1"}'), {"role": "tool", "tool_call_id": "First?", "content": "snow"}]
    turns = [said("First?"), *turns, said("Second?"), said("Second?", '{"a": "2"}')]
    rows = [
        {"messages": turns, "tools": [{"type": "function", "function": function}]},
        {"query": "Hi", "tools": [TOOLS[0] | {"name": "a name"}], "answers": [CALL | {"name": "a name"}]},
        {"query": WRONG, "tools": TOOLS, "answers": [CALL]},
        {"query": "Hi", "tools": TOOLS, "answers": "f('Oslo')"},
    ]
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {"data.init_args.path": path, "data.init_args.on_bad_row": "skip", "data.init_args.val_fraction": 0}


def test_rows_of_conversations_and_names_that_are_no_identifiers(show, odd_rows, tmp_path):
    printed = show("srml", "--row=1", **odd_rows | {"data.init_args.turns": "every"})
    assert "without a chain of thought (data.think auto)" in printed
    assert "left out: " in printed and "odd.jsonl, row 4, column 'answers': the calls cannot be read" in printed
    assert "tokens, the first of 2 answers that were cut from it" in printed
    printed = show("srml", "--row=1", **odd_rows)
    row = printed[printed.index("Row 1 of") : printed.index("What answers")]
    assert row.index("First?") < row.index("[f(a='1')]") < row.index("snow") < row.index("Second?")
    assert "chain of thought, 0 tokens" in row and "[f(a='2')]" in row[row.index("  call, ") :]
    assert "0  a <think> block before it: fails format: there is a think tag" in printed
    printed = show("srml", "--row=2", **odd_rows)
    assert "its calls are JSON, for a name in them is no Python identifier" in printed
    assert '[{"name": "a name", "arguments": {"city": "Oslo", "days": 2}}]<|im_end|>' in printed
    page = tmp_path / "page.html"
    show("srml", "--row=3", f"--html={page}", **odd_rows)
    assert "<script" not in page.read_text() and "&lt;script&gt;alert(1)&lt;/script&gt; \\x1b[31m" in page.read_text()


def test_what_other_rewards_pay(show, odd_rows, tmp_path):
    text = "def length(completion, tools, answers):\n    return len(completion)\n"
    settings = tmp_path / "rewards.yaml"
    settings.write_text(
        "model:\n  init_args:\n    rewards:\n      length: {function: toy_rewards.length, weight: 0.5}\n"
        "      ours: {function: {class_path: rewards.FunctionCallReward}, weight: 10}\n"
    )
    with rewards_module(tmp_path, text):
        options = odd_rows | {"model.init_args.entropy_bonus.scale": 0, "data.init_args.think": "none"}
        printed = show("grpo", f"--config={settings}", "--row=3", **options)
    # "[f(city='Oslo', days=2)]" has 24 characters: 0.5 x 24 + 10; with a value of one more 0.5 x 25.
    assert "1  the row's own answer; model.rewards pay 22\n" in printed
    assert "0  another value of city: fails arg_values; model.rewards pay 12.5\n" in printed
    assert "sampled from: " in printed and "toolbox:heldout:64 is the shipped corpus" in printed
    assert "an epoch" in printed and "rollouts with their prompts" in printed


@pytest.mark.parametrize("experiment", ["srml", "grpo"])
def test_both_ways_to_attend_are_estimated_where_the_start_decides(
    experiment, show, base_args, tmp_path, capsys, monkeypatch
):
    options = {"trainer.max_steps": 1, "trainer.limit_val_batches": 0, "model.init_args.schedule": "constant"}
    options |= {"model.init_args.micro_batch_tokens": 2048} if experiment == "grpo" else {}
    shown = next(line for line in show(experiment, **options).splitlines() if line.startswith("  attention"))
    assert "each document by itself, if that is found right" in shown
    # A run whose probe does not find it right begins with the other estimate.
    monkeypatch.setattr(probe, "_can_attend_by_document", lambda policy: False)
    main(["fit", "--config", f"configs/{experiment}.yaml", *base_args(tmp_path / "fit", **options)])
    begun = table_of(capsys.readouterr().out)["memory"]
    assert shown.endswith(f"which takes about {begun[2]} {begun[3]}")


def test_another_attention_is_named_and_what_is_known_not_to_pack_is_refused(show, tmp_path, tiny_tokenizer):
    eager = {"model.init_args.attn_implementation": "eager"}
    assert re.search(r"  attention +eager, under a mask of the row\n", show("srml", **eager))
    chunks = {"model.init_args.init_from": BY_KIND["llama4_text"].save(tmp_path / "chunks", tiny_tokenizer)}
    printed = show("srml", **chunks)
    assert (
        "one document per row, because its attention is cut in chunks" in printed and "taken for granted" not in printed
    )
    with pytest.raises(SystemExit, match=r"data\.packing is on, but .* does not keep documents apart"):
        show("srml", **chunks | {"data.init_args.packing": "on"})


def test_random_weights_are_said(show, tmp_path, tiny_model_dir):
    assert "random, for" not in show("srml")
    shutil.copytree(tiny_model_dir, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    printed = show("srml", **{"model.init_args.init_from": tmp_path / "model"})
    assert f"random, for {tmp_path / 'model'} holds a config.json and no weights" in printed


def test_shards_are_counted_before_there_are_ranks(show):
    strategy = {"trainer.strategy.class_path": "lightning_modules.strategies.FSDP2", "trainer.devices": 2}
    assert "/ 2 shards" in show("srml", **strategy)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--row=99"], r"--row 99: the rows of .* are numbered from 1 to 4"),
        (["--row=4"], r"--row 4: .*odd\.jsonl, row 4, column 'answers': the calls cannot be read"),
        (["--html=."], r"--html \. is a folder: name a file in it"),
        (["--html=s3://bucket/p.html"], r"--html: s3://bucket/p\.html is no folder of this machine"),
        (["--data.init_args.batch_size=0"], r"data\.batch_size is 0; give at least 1"),
        (["--trainer.max_epochs=0"], r"trainer\.max_epochs and max_steps give 0 optimizer steps"),
        (["--data.on_bad_row=raise"], r"odd\.jsonl, row 4, column 'answers'"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(show, odd_rows, words, reason):
    with pytest.raises(SystemExit, match=f"error: .*{reason}"):
        show("srml", *words, **odd_rows)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--best_checkpoint.monitor=val_loss"], r"best_checkpoint\.monitor: no metric is called val_loss"),
        (
            ["--trainer.val_check_interval=1000", "--trainer.check_val_every_n_epoch=1"],
            r"trainer\.val_check_interval is 1000, and an epoch has \d+ steps",
        ),
    ],
)
def test_what_fit_refuses_before_weights_are_read_is_refused(show, words, reason):
    with pytest.raises(SystemExit, match=f"^error: {reason}"):
        show("srml", *words)


def test_options_are_those_of_fit(show, capsys):
    with pytest.raises(SystemExit):
        show("srml", "--model.init_args.learning_rat=1")
    assert "learning_rat" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"PretrainingDataModule has no rows with calls, .*: give XLAMS"):
        main(["show", "--config", "configs/pretrain.yaml"])
    main(["show", "--help"])
    assert "--row N" in capsys.readouterr().out

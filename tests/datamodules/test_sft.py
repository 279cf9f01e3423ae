import json
import shutil
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
from lightning.pytorch import Trainer
from recorder import Recorder, at_rank
from transformers import AutoTokenizer

from datamodules import PromptBatch, XLAMSFTDataModule, cache
from datamodules.chat.segments import encode_prompt, encode_texts, messages, prompt_text, target_text
from datamodules.chat.tokenizer import load_tokenizer
from datamodules.encoding import encoded_prompts
from datamodules.rows import to_example


@pytest.fixture
def rows_file(write_rows, make_row):
    return write_rows([make_row(i, cot="because " * (1 + i % 7)) for i in range(40)])


def encode(tokenizer, row):
    """A row by itself, without the data module."""
    example = to_example(row)
    return encode_texts(tokenizer, [prompt_text(tokenizer, example)], [target_text(example)])[0]


def documents(batches):
    """The documents of packed batches, cut out again by hand, as a sorted list of id tuples."""
    found = []
    for batch in batches:
        for r in range(len(batch["doc_ids"])):
            for sample in batch["doc_ids"][r].unique().tolist():
                if sample >= 0:
                    found.append(tuple(batch["input_ids"][r][batch["doc_ids"][r] == sample].tolist()))
    return sorted(found)


def test_an_epoch_trains_on_every_row_that_is_not_held_out(make_module, rows_file, tiny_tokenizer, make_row):
    module = make_module(rows_file, batch_size=8, val_fraction=0.2)
    module.setup("fit")
    steps = list(module.train_dataloader())
    held = [e.query for batch in module.val_dataloader() for e in batch.examples]
    rows = [make_row(i, cot="because " * (1 + i % 7)) for i in range(40)]
    expected = [tuple(encode(tiny_tokenizer, row).input_ids) for row in rows if row["query"] not in held]
    assert 0 < len(held) < 20
    assert sorted(d for batches in steps for d in documents(batches)) == sorted(expected)
    assert len(steps) == -(-len(expected) // 8)


DATED = (
    "{% if date_string is not defined and strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    '<|im_start|>system\nToday is {{ date_string }} ({{ strftime_now( "%Y-%m-%d" ) }}).<|im_end|>\n'
)


def on_day(monkeypatch, day):
    clock = SimpleNamespace(now=lambda: datetime.fromisoformat(day))
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", clock)


def test_prompts_of_a_template_that_prints_the_date_are_the_same_on_every_day(
    tmp_path, tiny_model_dir, rows_file, make_row, monkeypatch
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    plain = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(DATED + plain)
    example, present = to_example(make_row(0, cot="because ")), AutoTokenizer.from_pretrained(folder)
    prompts, cached = [], []
    for day in ("2025-03-01", "2025-03-02"):
        on_day(monkeypatch, day)
        assert f"({day})" in present.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
        tokenizer = load_tokenizer(folder)
        rows = cache.encode_rows(str(rows_file), tokenizer, cache_dir=tmp_path / "cache")
        cached.append(encoded_prompts(rows, [0])[0])
        prompts += [encode_prompt(tokenizer, example), encode_prompt(present, example)]
    assert prompts == cached * 2 and len(list((tmp_path / "cache").glob("*/rows.arrow"))) == 1
    text = tokenizer.decode(cached[0])
    assert text.startswith("<|im_start|>system\nToday is 26 Jul 2024 (2024-07-26).<|im_end|>\n<|im_start|>system\n")
    tokenizer.save_pretrained(tmp_path / "hf")  # as the export does
    served, turns = AutoTokenizer.from_pretrained(tmp_path / "hf"), messages(example)
    assert served.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == text
    assert "Today is 1 May" in served.apply_chat_template(turns, tokenize=False, date_string="1 May")
    assert load_tokenizer(tiny_model_dir).chat_template == plain  # which prints no date


def test_packed_segments_are_those_of_the_rows(make_module, rows_file, tiny_tokenizer, make_row):
    module = make_module(rows_file, batch_size=40, val_fraction=0)
    module.setup("fit")
    (batches,) = module.train_dataloader()
    for i in range(40):
        encoded = encode(tiny_tokenizer, make_row(i, cot="because " * (1 + i % 7)))
        for batch in batches:
            for r in range(len(batch["doc_ids"])):
                for sample in batch["doc_ids"][r].unique().tolist():
                    where = batch["doc_ids"][r] == sample
                    if batch["input_ids"][r][where].tolist() == encoded.input_ids:
                        assert batch["segments"][r][where].tolist() == [*encoded.segments[1:], 0]
                        break


def test_batches_are_global_whatever_the_ranks(make_module, rows_file):
    alone = at_rank(make_module(rows_file, batch_size=9), 0, 1)
    ranks = [at_rank(make_module(rows_file, batch_size=9), rank, 4) for rank in range(4)]
    for whole, *parts in zip(alone.train_dataloader(), *(module.train_dataloader() for module in ranks), strict=True):
        assert documents(whole) == sorted(d for part in parts for d in documents(part))
        assert sum(map(bool, parts)) == min(4, len(documents(whole)))


def test_micro_batches_keep_to_their_budget(make_module, rows_file):
    module = make_module(rows_file, batch_size=40, max_length=900, micro_batch_tokens=2000, val_fraction=0)
    module.setup("fit")
    (batches,) = module.train_dataloader()
    shapes = [tuple(batch["input_ids"].shape) for batch in batches]
    assert all(rows * width <= 2000 and width <= 900 for rows, width in shapes)
    assert sum(map(len, map(documents, [[b] for b in batches]))) == 40


def test_the_share_that_is_no_padding_is_that_of_the_first_batches(make_module, rows_file):
    module = make_module(rows_file, batch_size=8, max_length=400, micro_batch_tokens=1600)
    module.setup("fit")
    used = [batch["doc_ids"] >= 0 for batches in module.train_dataloader() for batch in batches]
    assert module.fill() == sum(int(one.sum()) for one in used) / sum(one.numel() for one in used) < 1


def test_calls_that_are_written_as_json_are_counted(make_module, write_rows, make_row):
    tools, answers = '[{"name": "get weather"}]', '[{"name": "get weather", "arguments": {}}]'
    odd = [make_row(i, tools=tools, answers=answers, cot=cot) for i, cot in enumerate([None, "Oslo."])]
    module = make_module(write_rows([*odd, make_row(2), make_row(3, answers="[]")]), val_fraction=0)
    module.setup("fit")
    assert module.rows.table["json_form"][:] == [True, True, False, False]


def test_the_digest_of_rows_is_of_those_that_are_trained_on_in_their_order(make_module, rows_file):
    module = make_module(rows_file)
    module.setup("fit")
    digests = [module.rows.digest(np.array(rows)) for rows in ([0, 1], [0, 2], [1, 0], [0, 1])]
    assert len(set(digests)) == 3 and digests[0] == digests[3]


def test_prompts_of_every_command(make_module, rows_file, tiny_tokenizer, make_row):
    module = make_module(rows_file, eval_batch_size=16)
    for stage, batches in (("validate", "val"), ("test", "test"), ("predict", "predict")):
        module.setup(stage)
        found = list(getattr(module, f"{batches}_dataloader")())
        assert [len(batch.examples) for batch in found] == [16, 16, 8]
        assert all(isinstance(batch, PromptBatch) for batch in found)
        example = to_example(make_row(17, cot="because " * 4))
        assert found[1].examples[1] == example
        assert found[1].prompt_ids[1] == encode_prompt(tiny_tokenizer, example)


def test_ranks_share_the_prompts_without_repeating_any(make_module, rows_file):
    shares = []
    for rank in range(3):
        module = at_rank(make_module(rows_file, eval_batch_size=19), rank, 3)
        module.setup("test")
        shares.append([[e.id for e in batch.examples] for batch in module.test_dataloader()])
    assert {len(share) for share in shares} == {3}  # 40 prompts in threes of 19, 19 and 2: as many on every rank
    # In turn, so that the rows of all ranks can be laid side by side again; the last two are the first two ranks'.
    for rank, share in enumerate(shares):
        assert share == [[str(i) for i in range(start, end)][rank::3] for start, end in ((0, 19), (19, 38), (38, 40))]


def test_held_out_rows_do_not_depend_on_the_order(make_module, write_rows, make_row):
    rows = [make_row(i) for i in range(60)]
    held = []
    for name, ordered in (("a.jsonl", rows), ("b.jsonl", rows[::-1])):
        module = make_module(write_rows(ordered, name), val_fraction=0.3, limit_val=5)
        module.setup("fit")
        held.append({e.id for batch in module.val_dataloader() for e in batch.examples})
    assert held[0] == held[1]
    assert len(held[0]) == 5


def test_validation_on_another_file(make_module, write_rows, make_row, rows_file):
    other = write_rows([make_row(i) for i in range(100, 103)], "val.jsonl")
    module = make_module(rows_file, val_path=other)
    module.setup("fit")
    assert len(module.train_indices) == 40
    assert [e.id for batch in module.val_dataloader() for e in batch.examples] == ["100", "101", "102"]
    module = make_module(rows_file, val_fraction=0)
    module.setup("fit")
    assert module.val_dataloader() == []


def test_rows_too_long_are_left_out_and_counted(make_module, write_rows, make_row, capsys, tiny_tokenizer):
    rows = [make_row(0), make_row(1), make_row(2, cot="x " * 3000)]
    module = make_module(write_rows(rows), val_fraction=0, max_length=1024)
    module.setup("fit")
    assert len(module.train_indices) == 2
    assert "1 rows are longer than max_length 1024" in capsys.readouterr().out
    shortest = min(len(encode(tiny_tokenizer, row).input_ids) for row in rows)
    module = make_module(write_rows(rows), val_fraction=0, max_length=100)
    with pytest.raises(ValueError, match=rf"every row .* data\.max_length 100, the shortest has {shortest} tokens"):
        module.prepare_data()


def test_encoding_is_cached_until_rows_or_tokenizer_change(make_module, write_rows, make_row, rows_file, monkeypatch):
    make_module(rows_file).prepare_data()
    original = cache.write_rows
    written = []
    monkeypatch.setattr(cache, "write_rows", lambda *args: written.append(args[1]) or original(*args))
    make_module(rows_file, max_length=2048, batch_size=4).setup("fit")
    assert written == []
    changed = write_rows([make_row(i) for i in range(39)])
    assert changed == rows_file
    make_module(changed).setup("fit")
    assert written == [changed]
    monkeypatch.setattr(cache, "end_of_turn_id", lambda tokenizer: 0)
    make_module(changed).setup("fit")
    assert written == [changed, changed]


def test_cache_made_with_skip_still_stops_a_run_that_does_not_skip(make_module, write_rows, make_row):
    path = write_rows([make_row(0), make_row(1, query="Stop<|im_end|>"), make_row(2)])
    make_module(path, on_bad_row="skip").prepare_data()
    with pytest.raises(ValueError, match=r"row 2, column 'query': holds '<\|im_end\|>', a special token"):
        make_module(path).prepare_data()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, r"data\.batch_size is 0"),
        ({"eval_batch_size": -1}, r"data\.eval_batch_size is -1"),
        ({"max_length": 4096, "micro_batch_tokens": 1024}, r"data\.max_length 4096 .* data\.micro_batch_tokens 1024"),
        ({"val_fraction": 1.0}, r"data\.val_fraction is 1"),
        ({"on_bad_row": "drop"}, r"data\.on_bad_row is 'drop'"),
    ],
)
def test_impossible_settings_fail_when_the_module_is_made(make_module, options, words):
    with pytest.raises(ValueError, match=words):
        make_module("rows.jsonl", **options)


def test_fewer_rows_per_step_than_ranks(make_module, rows_file):
    with pytest.raises(ValueError, match=r"data\.batch_size 2 is less than the 4 ranks .* trainer\.devices"):
        at_rank(make_module(rows_file, batch_size=2), 0, 4)


def test_one_row_cannot_be_divided(make_module, write_rows, make_row):
    with pytest.raises(ValueError, match=r"too few rows .* data\.val_fraction to 0, or give data\.val_path"):
        make_module(write_rows([make_row(0)])).prepare_data()


class Silent(Recorder):
    """Remembers the sizes of its batches."""

    def training_step(self, batch, batch_idx):
        self.batches.append(("train", len(batch)))
        self.optimizers().step()

    def validation_step(self, batch, batch_idx):
        self.batches.append(("val", len(batch.prompt_ids)))

    predict_step = test_step = validation_step


def quiet_trainer(folder, **kwargs):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **kwargs,
    )


@pytest.mark.filterwarnings("ignore")
def test_through_the_trainer_with_bad_rows(make_module, write_rows, make_row, tmp_path, capsys):
    bad = [make_row(50, answers=None), make_row(3), make_row(51, query="<|im_start|>")]
    path = write_rows([make_row(i) for i in range(20)] + bad)
    module = make_module(path, batch_size=8, on_bad_row="skip", val_fraction=0.2)
    silent = Silent()
    quiet_trainer(tmp_path / "run", max_epochs=2, num_sanity_val_steps=0).fit(silent, datamodule=module)
    held = len(module.val_indices)
    steps = -(-(20 - held) // 8)
    assert silent.batches == ([("train", 1)] * steps + [("val", held)]) * 2
    printed = capsys.readouterr().out
    assert "23 rows read, 3 bad" in printed
    assert f"{path}, row 21, column 'answers': is missing" in printed
    with open(tmp_path / "run" / "bad_rows.jsonl", encoding="utf-8") as lines:
        reported = [json.loads(line) for line in lines]
    assert [(row["row"], row["column"]) for row in reported] == [(21, "answers"), (22, "id"), (23, "query")]
    for command in ("validate", "test", "predict"):
        silent.batches = []
        getattr(quiet_trainer(tmp_path / command), command)(silent, datamodule=module)
        assert silent.batches == [("val", 20 + (command == "predict"))]  # which asks for the answer that row 21 lacks


@pytest.mark.filterwarnings("ignore")
def test_bad_row_stops_before_anything_is_written(make_module, write_rows, make_row, tmp_path):
    module = make_module(write_rows([make_row(0), make_row(1, cot="a </think> b")]))
    with pytest.raises(ValueError, match=r"row 2, column 'cot': holds </think>"):
        quiet_trainer(tmp_path / "run", max_epochs=1).fit(Silent(), datamodule=module)
    assert not (tmp_path / "run").exists()
    assert list((tmp_path / "cache").iterdir()) == []


def test_generated_corpus(make_module):
    module = make_module("toolbox:train:30", val_path="toolbox:heldout:10", max_length=4096)
    module.setup("fit")
    assert len(module.train_indices) + module.too_long == 30
    assert len(module.val_indices) == 10


@pytest.mark.slow
def test_real_rows_encode(make_module, shared_data, capsys):
    module = make_module(shared_data / "toolrl_r1_cot.jsonl", on_bad_row="skip", max_length=8192, val_fraction=0)
    module.setup("fit")
    assert len(module.train_indices) == 239
    printed = capsys.readouterr().out
    assert "240 rows read, 1 bad, 0 without chain of thought" in printed
    assert "The calls of 70 rows are written as JSON, for a name in them is no Python identifier." in printed
    assert "row 29, column 'answers': calls 'LastName varchar'" in printed
    module = make_module(shared_data / "bfcl_as_xlam.jsonl")
    module.setup("test")
    assert sum(len(batch.examples) for batch in module.test_dataloader()) == 600


def chat_rows(make_row):
    """A conversation of three answers, and a row with a call and a null that another row has left."""
    turns = [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "Thanks!"},
        {"role": "assistant", "content": "You are welcome."},
    ]
    answers = json.dumps([{"name": "get_weather", "arguments": {"city": "Oslo", "zone": None}}])
    return [{"messages": turns, "tools": make_row()["tools"]}, make_row(1, answers=answers, note="x")]


@pytest.mark.parametrize(("turns", "rows"), [("last", 2), ("every", 4)])
def test_the_summary_says_what_rows_were_read_as(make_module, write_rows, make_row, capsys, turns, rows):
    path = write_rows(chat_rows(make_row))
    for _ in range(2):  # read, and taken from the cache
        module = make_module(path, turns=turns, val_fraction=0)
        module.setup("fit")
        assert len(module.train_indices) == rows
        printed = capsys.readouterr().out
        assert "rows read as: chat in 'messages' with tool_calls 1, xLAM's columns 1" in printed
        answers = "in words 1, of one call 1" if turns == "last" else "in words 2, of one call 2"
        assert f"answers: {answers}" in printed
        assert f"chain of thought: without {rows - 1}, with 1" in printed or turns == "last"
        assert "repaired: nulls left out of arguments 1" in printed
        assert ("left out: assistant turns that are no target 2" in printed) == (turns == "last")
        assert "columns not used, rows: note 1" in printed


def test_turns_are_last_or_every(make_module, write_rows, make_row):
    with pytest.raises(ValueError, match=r"data\.turns is 'all'; give last or every"):
        make_module(write_rows([make_row(0)]), turns="all")


@pytest.mark.parametrize("key", ["path", "val_path"])
def test_a_list_of_files_is_told_where_they_go(tiny_model_dir, key):
    words = rf"^data\.{key} takes one file or folder, and got a list: put its files into a folder, and give that$"
    with pytest.raises(ValueError, match=words):
        XLAMSFTDataModule(str(tiny_model_dir), **{"path": "a.jsonl", key: ["a.jsonl", "b.jsonl"]})


def test_a_row_whose_turns_the_template_refuses_is_skipped(tmp_path, tiny_model_dir, write_rows, make_row):
    folder = tmp_path / "strict"
    shutil.copytree(tiny_model_dir, folder)
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{{ m.content }}"
    )
    (folder / "chat_template.jinja").write_text(template + "{% endfor %}")
    history = json.dumps([{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}])
    path = write_rows([make_row(0), make_row(1, history=history)])
    options = {"cache_dir": str(tmp_path / "cache"), "val_fraction": 0}
    with pytest.raises(ValueError, match=r"row 2, column 'history': the chat template of .* refuses the turns"):
        XLAMSFTDataModule(str(folder), path, **options).setup("fit")
    module = XLAMSFTDataModule(str(folder), path, on_bad_row="skip", **options)
    module.setup("fit")
    assert (len(module.train_indices), next(iter(module.rows.bad))["row"]) == (1, 2)

"""Batches of prompts to sample from: what is in them, how they are dealt and repeated, and how a run resumes."""

import inspect
import json

import pytest
from recorder import at_rank, batches_of_a_run

from datamodules import PromptBatch, XLAMPromptDataModule, XLAMSFTDataModule
from datamodules.base import XLAMDataModule
from datamodules.chat.segments import encode_prompt
from datamodules.loading import RepeatingLoader
from datamodules.rows import to_example


@pytest.fixture
def make_prompts(tmp_path, tiny_model_dir):
    """A data module with the tiny tokenizer and a cache of its own."""

    def make(path, **kwargs):
        return XLAMPromptDataModule(str(tiny_model_dir), str(path), cache_dir=str(tmp_path / "cache"), **kwargs)

    return make


@pytest.fixture
def rows_file(write_rows, make_row):
    """20 rows, of which the odd ones have no chain of thought."""
    return write_rows([make_row(i, cot="because" if i % 2 else None) for i in range(20)])


def ids(batches):
    return [[example.id for example in batch.examples] for batch in batches]


def flat(batches):
    return [id for batch in ids(batches) for id in batch]


def test_an_epoch_hands_out_every_prompt_that_is_not_held_out(make_prompts, rows_file, tiny_tokenizer, make_row):
    module = make_prompts(rows_file, prompts_per_step=4, val_fraction=0.3)
    module.setup("fit")
    batches, held = list(module.train_dataloader()), flat(module.val_dataloader())
    assert all(isinstance(batch, PromptBatch) for batch in batches)
    assert 0 < len(held) < 20 and sorted(flat(batches) + held) == sorted(str(i) for i in range(20))
    assert [len(batch.examples) for batch in batches[:-1]] == [4] * (len(batches) - 1)
    assert len(batches) == -(-(20 - len(held)) // 4) == len(module.train_dataloader())
    for batch in batches:
        for example, prompt_ids in zip(batch.examples, batch.prompt_ids, strict=True):
            number = int(example.id)
            assert example == to_example(make_row(number, cot="because" if number % 2 else None))
            assert prompt_ids == encode_prompt(tiny_tokenizer, example)


def test_every_batch_comes_as_often_as_it_is_learnt_from(make_prompts, rows_file):
    once, thrice = (make_prompts(rows_file, prompts_per_step=8, repeats=k, val_fraction=0, seed=3) for k in (1, 3))
    once.setup("fit")
    thrice.setup("fit")
    batches = ids(once.train_dataloader())
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert ids(thrice.train_dataloader()) == [batch for batch in batches for _ in range(3)]
    assert len(thrice.train_dataloader()) == 9


def test_batches_are_global_whatever_the_ranks(make_prompts, rows_file):
    options = {"prompts_per_step": 6, "repeats": 2, "val_fraction": 0}  # batches of 6, 6, 6, 2
    alone = ids(at_rank(make_prompts(rows_file, **options), 0, 1).train_dataloader())
    ranks = [ids(at_rank(make_prompts(rows_file, **options), rank, 4).train_dataloader()) for rank in range(4)]
    assert [len(batches) for batches in ranks] == [8] * 4
    for whole, *shares in zip(alone, *ranks, strict=True):
        assert [whole[rank::4] for rank in range(4)] == shares
        assert [len(share) for share in shares] == ([2, 2, 1, 1] if len(whole) == 6 else [1, 1, 0, 0])


def draws(batch):
    """Ids of the further prompts of a batch, draw by draw."""
    every = []
    while (more := batch.further(len(every) + 1)) is not None:
        every += ids([more])
    return every


def test_further_prompts_are_others_and_the_same_whatever_the_ranks_and_the_seed(make_prompts, rows_file):
    options = {"prompts_per_step": 6, "val_fraction": 0}  # batches of 6, 6, 6, 2 of 20 rows
    alone = list(at_rank(make_prompts(rows_file, **options), 0, 1).train_dataloader())
    ranks = [list(at_rank(make_prompts(rows_file, **options), rank, 4).train_dataloader()) for rank in range(4)]
    for place, batch in enumerate(alone):
        further, (own,) = draws(batch), ids([batch])
        assert [len(draw) for draw in further] == ([6, 6, 2] if len(own) == 6 else [2] * 9)
        assert sorted(sum(further, own)) == sorted(str(i) for i in range(20))  # every row once
        shares = [draws(rank[place]) for rank in ranks]
        for number, draw in enumerate(further):
            assert [draw[rank::4] for rank in range(4)] == [share[number] for share in shares]
    assert draws(alone[0]) != draws(alone[1])
    assert draws(alone[0])[1] != sorted(draws(alone[0])[1])
    resumed = at_rank(make_prompts(rows_file, seed=9, **options), 0, 1).train_dataloader()
    resumed.load_state_dict(at_rank(make_prompts(rows_file, **options), 0, 1).train_dataloader().state_dict())
    assert draws(next(iter(resumed))) == draws(alone[0])


def test_long_prompts_are_left_out_and_counted(make_prompts, write_rows, make_row, capsys, tiny_tokenizer):
    rows = [make_row(0), make_row(1, query="long " * 400), make_row(2, cot="a long thought " * 400)]
    path = write_rows(rows)
    lengths = [len(encode_prompt(tiny_tokenizer, to_example(row))) for row in rows]
    limit = max(lengths[0], lengths[2])  # a prompt of exactly the limit stays
    module = make_prompts(path, val_fraction=0, max_prompt_length=limit)
    module.setup("fit")
    assert sorted(flat(module.train_dataloader())) == ["0", "2"]
    assert f"1 prompts are longer than max_prompt_length {limit}" in capsys.readouterr().out
    module = make_prompts(path, val_fraction=0, max_prompt_length=10)
    with pytest.raises(
        ValueError, match=rf"every row .* data\.max_prompt_length 10, the shortest has {min(lengths)} tokens"
    ):
        module.prepare_data()


def test_the_longest_prompt_is_one_that_is_sampled_from_whatever_the_limit(
    make_prompts, write_rows, make_row, tiny_tokenizer
):
    rows = [make_row(i, query=f"{i} " + "word " * (1, 3, 2, 40)[i]) for i in range(4)]
    lengths = [len(encode_prompt(tiny_tokenizer, to_example(row))) for row in rows]
    module = make_prompts(write_rows(rows), prompts_per_step=1, max_prompt_length=lengths[1] + 2, val_fraction=0)
    module.setup("fit")
    assert module.longest_prompt == lengths[1] > max(lengths[0], lengths[2])
    module.setup("validate")
    assert module.longest_prompt == lengths[3]


def test_summary(make_prompts, rows_file, capsys):
    make_prompts(rows_file, prompts_per_step=8, repeats=2, val_fraction=0).setup("fit")
    printed = capsys.readouterr().out
    assert "20 rows read, 0 bad" in printed and "10 without chain of thought" in printed
    assert "Sampling from 20 prompts, 8 at a time for 2 optimizer steps, 6 steps an epoch; validating on 0." in printed


def test_evaluation_takes_all_rows_in_order(make_prompts, rows_file):
    module = make_prompts(rows_file, eval_batch_size=16, repeats=5, max_prompt_length=1)
    for stage in ("validate", "test", "predict"):
        module.setup(stage)
        batches = ids(getattr(module, f"{stage[:3] if stage == 'validate' else stage}_dataloader")())
        assert batches == [[str(i) for i in range(16)], [str(i) for i in range(16, 20)]]


def test_validation_on_another_file_and_on_none(make_prompts, write_rows, make_row, rows_file):
    other = write_rows([make_row(i) for i in range(100, 103)], "val.jsonl")
    module = make_prompts(rows_file, val_path=other, limit_val=2)
    module.setup("fit")
    assert len(module.train_indices) == 20 and len(ids(module.val_dataloader())[0]) == 2
    module = make_prompts(rows_file, val_fraction=0)
    module.setup("fit")
    assert module.val_dataloader() == []


def test_bad_rows_stop_the_run_or_are_counted(make_prompts, write_rows, make_row, capsys):
    path = write_rows([make_row(0), make_row(1, answers=None), make_row(2)])
    with pytest.raises(ValueError, match="row 2, column 'answers': is missing"):
        make_prompts(path).prepare_data()
    module = make_prompts(path, on_bad_row="skip", val_fraction=0)
    module.setup("fit")
    assert len(module.train_indices) == 2 and "3 rows read, 1 bad" in capsys.readouterr().out


@pytest.mark.parametrize("answer_form", ["python", "hermes"])
def test_rows_to_predict_need_no_answer(make_prompts, write_rows, make_row, capsys, answer_form):
    tools = json.loads(make_row(0)["tools"])
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    unasked = {"id": "3", "tools": tools, "messages": chat[:2]}
    path = write_rows([make_row(0, answers=None), make_row(1), {"id": "2", "tools": tools, "messages": chat}, unasked])
    module = make_prompts(path, answer_form=answer_form)
    module.setup("predict")
    (batch,) = module.predict_dataloader()
    assert "4 rows read, 0 bad" in capsys.readouterr().out and [len(e.answers) > 0 for e in batch.examples] == [
        0,
        1,
        0,
        1,
    ]
    same = to_example(make_row(0))  # the prompt of the row is the one that it has with its answer
    assert batch.prompt_ids[0] == encode_prompt(module.tokenizer, same, module.form)
    assert batch.examples[2].query == "c" and json.loads(batch.examples[2].history) == chat[:2]
    assert module.form.think  # nothing says that there is no chain of thought
    with pytest.raises(ValueError, match="row 1, column 'answers': is missing"):  # and no cache lets it through
        module.setup("test")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompts_per_step": 0}, r"data\.prompts_per_step is 0"),
        ({"repeats": 0}, r"data\.repeats is 0"),
        ({"max_prompt_length": 0}, r"data\.max_prompt_length is 0"),
        ({"limit_val": 0}, r"data\.limit_val is 0"),
        ({"val_fraction": 1.0}, r"data\.val_fraction is 1"),
        ({"on_bad_row": "drop"}, r"data\.on_bad_row is 'drop'; give raise or skip"),
        ({"packing": None}, r"data\.packing is None; give auto, on or off"),
        ({"packing": ["on"]}, r"data\.packing is \['on'\]; give auto, on or off"),
        ({"prompt": "papers"}, r"data\.prompt is 'papers'; give paper or template"),
        ({"answer_form": "xml"}, r"data\.answer_form is 'xml'; give python, json, hermes or template"),
        ({"think": True}, r"data\.think is True; give auto, require or none"),
        ({"tool_form": "yaml"}, r"data\.tool_form is 'yaml'; give json or bfcl"),
    ],
)
def test_impossible_settings_fail_when_the_module_is_made(make_prompts, options, words):
    with pytest.raises(ValueError, match=words):
        make_prompts("rows.jsonl", **options)


def test_fewer_prompts_per_step_than_ranks(make_prompts, rows_file):
    with pytest.raises(ValueError, match=r"data\.prompts_per_step 2 is less than the 4 ranks .* trainer\.devices"):
        at_rank(make_prompts(rows_file, prompts_per_step=2), 0, 4)


def loader(rows=10, batch_size=3, seed=0, repeats=2):
    return RepeatingLoader(rows, batch_size, list, seed, repeats)


def test_state_resumes_at_every_position_and_iterating_again_does_not_start_over():
    through = loader()
    expected = [batch for _ in range(3) for batch in through]  # three epochs of four batches, each twice
    assert expected[0:8:2] == expected[1:8:2] and expected[:8] != expected[8:16]
    for k in range(1, 20):
        first = loader()
        stream = iter(first)
        for n in range(k):
            if n and n % len(first) == 0:
                stream = iter(first)
            assert next(stream) == expected[n]
        second = loader(seed=99)
        second.load_state_dict(first.state_dict())
        iter(second)
        assert next(iter(second)) == expected[k]


def test_the_following_batch_is_the_one_that_is_handed_out_next():
    through = loader()
    expected = [batch for _ in range(3) for batch in through]
    through, seen = loader(), []
    for _ in range(2):
        for _ in through:
            position = through.state_dict()
            seen.append(through.following())
            assert through.state_dict() == position
    assert seen == [expected[n // 2 * 2 + 2] for n in range(16)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 11}, "training rows is 11 in this run and was 10 "),
        ({"batch_size": 2}, r"data\.prompts_per_step is 2 in this run and was 3 "),
        ({"repeats": 3}, r"data\.repeats is 3 in this run and was 2 "),
    ],
)
def test_state_of_other_batches_is_refused(change, words):
    with pytest.raises(ValueError, match=words) as refusal:
        loader(**change).load_state_dict(loader().state_dict())
    assert "data.batch_size" not in str(refusal.value)  # a key that these rows do not have


@pytest.mark.filterwarnings("ignore")
def test_resumed_trainer_takes_the_very_next_batch(make_prompts, rows_file, tmp_path):
    """Batches of 8, 8, 4 twice each: resumed between two repeats, between batches, and in the second epoch."""

    def run(steps, ckpt_path=None):
        data = make_prompts(rows_file, prompts_per_step=8, repeats=2, val_fraction=0)
        return ids(batches_of_a_run(data, tmp_path, steps, ckpt_path, max_epochs=-1))

    expected = run(10)
    assert len(expected) == 10 and expected[0] == expected[1] != expected[2]
    for k in (1, 2, 6, 9):
        assert run(10, tmp_path / f"step={k}.ckpt") == expected[k:], k


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        (XLAMSFTDataModule, {"batch_size": 32, "max_length": 4096, "micro_batch_tokens": 8192}),
        (XLAMPromptDataModule, {"prompts_per_step": 16, "repeats": 3, "max_prompt_length": 4096}),
    ],
)
def test_every_argument_is_a_hyperparameter(kind, own):
    given = {"val_fraction": 0.25, "seed": 7} | ({"repeats": 3} if "repeats" in own else {})
    shared = inspect.signature(XLAMDataModule).parameters
    defaults = {name: parameter.default for name, parameter in shared.items() if name not in ("tokenizer", "path")}
    expected = {"tokenizer": "model", "path": "rows.jsonl"} | defaults | given | own
    assert dict(kind("model", "rows.jsonl", **given).hparams) == expected


def test_an_argument_that_there_is_not_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'bach_size'"):
        XLAMSFTDataModule("model", "rows.jsonl", bach_size=8)

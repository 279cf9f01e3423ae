"""Gold answers that no run can reward, under tokenizers that change text and under the rewards of runs."""

import copy
import json
from types import SimpleNamespace

import pytest
from tokenizers import decoders, normalizers
from transformers import PreTrainedTokenizerFast

from datamodules import XLAMPromptDataModule, XLAMSFTDataModule
from datamodules.cache import encode_rows
from datamodules.gold import check_gold
from rewards import FunctionCallReward

NFD, NFC = "cafe\u0301", "caf\u00e9"
TEXT = FunctionCallReward(no_call="text")


def city(name):
    return json.dumps([{"name": "get_weather", "arguments": {"city": name, "days": 1}}])


@pytest.fixture
def encoded(write_rows, make_row, tmp_path):
    def encode(tokenizer, *changes):
        path = write_rows([make_row(i, **change) for i, change in enumerate(changes)])
        return encode_rows(path, tokenizer, cache_dir=str(tmp_path / "cache"))

    return encode


@pytest.fixture
def under(tiny_tokenizer):
    """The tiny tokenizer with another normaliser, and maybe another decoder after its own."""

    def make(normalizer, decoder=None):
        backend = copy.deepcopy(tiny_tokenizer.backend_tokenizer)
        backend.normalizer = normalizer
        if decoder:
            backend.decoder = decoders.Sequence([backend.decoder, decoder])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
        tokenizer.chat_template = tiny_tokenizer.chat_template
        return tokenizer

    return make


@pytest.mark.parametrize("learnt", [False, True])
def test_answers_that_a_normaliser_changes_are_bad_and_thoughts_are_not(encoded, under, learnt):
    changes = [{}, {"answers": city(NFD)}, {"answers": city(NFC)}, {"cot": NFD}]
    rows = encoded(under(normalizers.NFC()), *changes)
    assert rows.table["returned"][:] == [
        None,
        f"<think>They ask for City 1 and 1 days.</think>\n\n[get_weather(city='{NFC}', days=1)]",
        None,
        f"<think>{NFC}</think>\n\n[get_weather(city='City 3', days=3)]",
    ]
    checked = check_gold(rows, "rows.jsonl", [FunctionCallReward()], learnt)
    assert checked.table["id"][:] == ["0", "2", "3"] and checked.unrewarded == 0
    (bad,) = checked.bad
    assert (bad["file"], bad["row"], bad["column"], bad["content"]["id"]) == ("rows.jsonl", 2, "answers", "1")
    assert "tokenizer returns the gold answer changed" in bad["reason"] and NFC in bad["reason"]
    # What is left is read by place among the good rows.
    assert [example.id for example in checked.examples([1, 2])] == ["2", "3"]
    assert checked.documents([2]) == rows.documents([3])


def test_the_underline_that_sentencepiece_writes_spaces_as_is_bad(encoded, under):
    """As in Gemma: encoding makes every space U+2581, decoding every U+2581 a space."""
    tokenizer = under(normalizers.Replace(" ", "\u2581"), decoders.Replace("\u2581", " "))
    rows = encoded(tokenizer, {"answers": city("New York")}, {"answers": city("New\u2581York")})
    checked = check_gold(rows, "rows.jsonl", [FunctionCallReward()], learnt=False)
    assert checked.table["id"][:] == ["0"] and next(iter(checked.bad))["row"] == 2


def test_text_for_an_answer_is_judged_by_the_runs_own_reward(encoded, tiny_tokenizer):
    rows = encoded(tiny_tokenizer, {}, {"answers": "[]", "response": "I cannot."}, {"answers": "[]"})
    for rewards in ([TEXT], [FunctionCallReward(), TEXT], [FunctionCallReward(no_call="text", answer_tags="answer")]):
        checked = check_gold(rows, "rows.jsonl", rewards, learnt=True)
        assert (len(checked.table), list(checked.bad), checked.unrewarded) == (3, [], 0)
    kept = check_gold(rows, "rows.jsonl", [FunctionCallReward()], learnt=False)
    assert (len(kept.table), list(kept.bad), kept.unrewarded) == (3, [], 1)
    dropped = check_gold(rows, "rows.jsonl", [FunctionCallReward(format_bonus=0.5)], learnt=True)
    assert dropped.table["id"][:] == ["0", "2"] and dropped.unrewarded == 0
    assert (next(iter(dropped.bad))["row"], next(iter(dropped.bad))["column"]) == (2, "response")
    assert "model.reward.no_call empty" in next(iter(dropped.bad))["reason"]


@pytest.fixture
def text_rows(write_rows, make_row):
    rows = [make_row(i) for i in range(8)]
    return write_rows([*rows, make_row(8, answers="[]", response="I cannot.", query="Sing")])


def attached(data, **rewards):
    """A data module in a trainer whose module has these rewards."""
    module = SimpleNamespace(**rewards) if rewards else None
    data.trainer = SimpleNamespace(
        lightning_module=module, global_rank=0, world_size=1, log_dir=None, state=SimpleNamespace(fn="fit")
    )
    return data


def test_supervised_training_keeps_text_and_says_how_many_rows_validation_will_not_accept(
    make_module, text_rows, capsys
):
    data = attached(make_module(text_rows, val_fraction=0.0), reward_functions=[FunctionCallReward()])
    data.setup("fit")
    assert len(data.train_indices) == 9
    assert f"The gold answers of 1 rows of {text_rows} earn nothing under model.reward." in capsys.readouterr().out
    data = attached(make_module(text_rows, val_fraction=0.0), reward_functions=[TEXT])
    data.setup("fit")
    assert "earn nothing" not in capsys.readouterr().out


def test_reinforcement_learning_leaves_out_rows_that_can_earn_nothing(text_rows, tiny_model_dir, tmp_path, capsys):
    def prompts(stage="fit", on_bad_row="raise", **rewards):
        data = XLAMPromptDataModule(
            str(tiny_model_dir),
            text_rows,
            val_fraction=0.0,
            prompts_per_step=1,
            on_bad_row=on_bad_row,
            cache_dir=str(tmp_path / "cache"),
        )
        attached(data, **rewards).setup(stage)
        return data

    strict = FunctionCallReward()
    for rewards in ({}, {"reward_functions": [strict]}):
        with pytest.raises(ValueError, match=r"row 9, column 'response': as gold answer it earns no reward") as error:
            prompts(**rewards)
        assert str(error.value).startswith(text_rows) and "on_bad_row: skip" in str(error.value)
        assert "under model.reward.no_call empty (text accepts words): " in str(error.value)
    data = prompts(on_bad_row="skip", reward_functions=[strict])
    assert len(data.train_indices) == len(data.lengths) == 8 and "9 rows read, 1 bad" in capsys.readouterr().out
    assert len(prompts(reward_functions=[TEXT]).train_indices) == 9
    # Another function may pay for it, and an evaluation learns from nothing.
    assert len(prompts(reward_functions=[strict, len]).train_indices) == 9
    assert len(prompts(reward_functions=[len], reward=strict).train_indices) == 9
    assert len(prompts(stage="test", reward_functions=[strict]).val_indices) == 9


def test_no_row_left_is_one_sentence(write_rows, make_row, tiny_model_dir, tmp_path):
    path = write_rows([make_row(0, answers=city(NFD))])
    data = XLAMSFTDataModule(str(tiny_model_dir), path, on_bad_row="skip", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"none of the 1 rows of .* can be used; the first: .*row 1, column 'answers'"):
        data.setup("fit")  # Qwen's own tokenizer normalises to NFC

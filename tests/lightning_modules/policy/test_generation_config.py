"""What ends a completion, and generation configs that transformers loads and does not save."""

import copy
import json
import shutil

import pytest
from transformers import GenerationConfig

from lightning_modules.policy.generation_config import stop_ids
from lightning_modules.policy.model import build_policy

END, TEXT, START = 2, 0, 1  # <|im_end|>, <|endoftext|>, <|im_start|> of the tiny tokenizer


@pytest.fixture
def with_config(tiny_model_dir, tmp_path):
    """The tiny model with other values in generation_config.json, or without the file."""

    def make(**values):
        folder = tmp_path / "model"
        shutil.copytree(tiny_model_dir, folder, dirs_exist_ok=True)
        file = folder / "generation_config.json"
        file.write_text(json.dumps(values)) if values else file.unlink()
        return folder

    return make


def test_training_stops_where_serving_does_the_taught_end_first(tiny_tokenizer):
    base = copy.deepcopy(tiny_tokenizer)
    assert stop_ids(base, GenerationConfig(eos_token_id=END)) == [END]
    base.eos_token = "<|endoftext|>"  # Qwen2.5 base
    assert stop_ids(base, GenerationConfig(eos_token_id=TEXT)) == [END, TEXT]
    assert stop_ids(base, GenerationConfig(eos_token_id=[7, END, 9])) == [END, 7, 9, TEXT]  # Llama 3 has a list
    assert stop_ids(base, GenerationConfig()) == [END, TEXT]


@pytest.mark.parametrize("empty", [False, True])
def test_every_rank_reads_the_file_also_one_that_loads_no_weights(with_config, empty):
    """Rank 1 of FSDP2 makes its model from config.json alone, and must stop at the same ids as rank 0."""
    config = build_policy(str(with_config(eos_token_id=[2, 0])), empty=empty).causal_lm.generation_config
    assert config.eos_token_id == [2, 0]


def test_without_a_file_or_an_end_in_it_the_models_config_says_what_ends(with_config):
    assert build_policy(str(with_config())).causal_lm.generation_config.eos_token_id == END
    assert build_policy(str(with_config(top_k=50))).causal_lm.generation_config.eos_token_id == END


@pytest.mark.parametrize(
    ("faulty", "kept", "words"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}, "do_sample true"),
        ({"do_sample": False, "top_k": 20}, {"do_sample": True, "top_k": 20}, "do_sample true"),
        ({"temperature": 0.0, "top_p": 0.9}, {"do_sample": False}, "has a temperature of 0"),
        ({"do_sample": True, "temperature": 0}, {"do_sample": False}, "has a temperature of 0"),
        ({"pad_token_id": -1}, {}, ""),
        ({"early_stopping": True, "top_k": 50}, {}, "`early_stopping`"),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}, ""),
    ],
)
def test_what_transformers_would_not_save_is_mended_and_said(with_config, tmp_path, caplog, faulty, kept, words):
    folder = with_config(eos_token_id=[2, 0], bos_token_id=1, **faulty)
    policy = build_policy(str(folder))
    policy.causal_lm.generation_config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    del saved["transformers_version"]
    assert saved == {"eos_token_id": [2, 0], "bos_token_id": 1} | kept
    said = [record.getMessage() for record in caplog.records if "generation config of" in record.getMessage()]
    assert len(said) == bool(words) and all(str(folder) in line and words in line for line in said)


def test_one_that_cannot_be_read_is_named_in_a_sentence(with_config):
    with pytest.raises(ValueError, match=r"init_from: .*`early_stopping` must be"):
        build_policy(str(with_config(early_stopping="soon")), empty=True)


@pytest.mark.parametrize("end", [1.5, [END, "x"]])
def test_an_end_that_is_no_number_is_refused(with_config, end):
    with pytest.raises(ValueError, match=r"eos_token_id .* is no id"):
        build_policy(str(with_config(eos_token_id=end)), empty=True)


@pytest.mark.parametrize(("end", "kept"), [(10**9, END), (2**70, END), (-1, END), ([TEXT, 320], [TEXT]), (319, 319)])
def test_ends_that_the_model_has_not_are_left_out_and_said(with_config, caplog, end, kept):
    """The tiny model has 320 tokens and ends with END; GPT-2's config says 50256 of a model of any size."""
    policy = build_policy(str(with_config(eos_token_id=end)))
    assert policy.causal_lm.generation_config.eos_token_id == kept
    said = [line for record in caplog.records if "is none of the 320 tokens" in (line := record.getMessage())]
    assert len(said) == (end != kept) and all(str(end if isinstance(end, int) else 320) in line for line in said)

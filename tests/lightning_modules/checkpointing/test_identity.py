"""Which run a checkpoint belongs to."""

import pytest
import torch
from torch import nn

from datamodules.chat.form import ChatForm
from datamodules.chat.tokenizer import load_tokenizer
from lightning_modules.checkpointing.identity import check_run, check_same_model, check_settings, fingerprint, identity


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ({"w": (2, 3)}, r"b is absent there and \(3,\) here"),
        ({"w": (2, 4), "b": (3,)}, r"w is \(2, 4\) there and \(2, 3\) here"),
        ({"w": (2, 3), "b": (3,), "x": (1,)}, r"x is \(1,\) there and absent here"),
    ],
)
def test_another_model_is_named_by_its_first_weight_that_differs(theirs, words):
    ours = {"w": (2, 3), "b": (3,)}
    check_same_model(dict(ours), ours, "m")
    with pytest.raises(ValueError, match=words):
        check_same_model(theirs, ours, "m")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fingerprint_sees_one_bit_and_no_more(dtype):
    torch.manual_seed(0)
    weights = nn.Linear(5, 7).to(dtype).state_dict()
    before = fingerprint(weights)
    assert fingerprint({name: weight.clone() for name, weight in weights.items()}) == before
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[weights["weight"].element_size()]
    weights["weight"].view(bits)[3, 2] ^= 1
    assert fingerprint(weights) != before


@pytest.mark.parametrize(
    ("init_from", "form", "derived", "words"),
    [
        ("elsewhere", None, "ab", None),  # the same weights, wherever they lie
        ("m", None, "cd", r"m does not hold the weights that the checkpoint's run started from \(m\)"),
        ("m", ChatForm(prompt="template"), "ab", "data.prompt is 'template' in this run and was 'paper'"),
    ],
)
def test_a_run_goes_on_from_its_own_checkpoints_alone(tiny_model_dir, init_from, form, derived, words):
    tokenizer = load_tokenizer(str(tiny_model_dir))
    checkpoint = identity("m", tokenizer, ChatForm(), "ab")
    if words is None:
        check_run(checkpoint, identity(init_from, tokenizer, form, derived))
        return
    with pytest.raises(ValueError, match=words):
        check_run(checkpoint, identity(init_from, tokenizer, form, derived))


def test_a_checkpoint_that_names_no_initial_weights_is_refused(tiny_model_dir):
    with pytest.raises(ValueError, match=r"does not say which weights its run started from: .* give the hf/ folder of"):
        check_run({"state_dict": {}}, identity("m", load_tokenizer(str(tiny_model_dir)), ChatForm(), "ab"))


def test_settings_that_a_checkpoint_has_learnt_with_are_kept():
    check_settings({}, {"lora.alpha": 64})  # an earlier version has written it
    check_settings({"lora.alpha": 64, "epsilon": 1.0}, {"lora.alpha": 64})
    with pytest.raises(ValueError, match=r"model\.lora\.alpha is 64 in this run and was 32 in the one that wrote"):
        check_settings({"lora.alpha": 32}, {"lora.alpha": 64})


def test_weights_that_a_run_does_not_need_are_not_compared(tiny_model_dir):
    tokenizer = load_tokenizer(str(tiny_model_dir))
    checkpoint = identity("m", tokenizer, None, "ab")
    check_run(checkpoint, identity("other", tokenizer, None, derived=None))
    tokenizer.chat_template += " "
    with pytest.raises(ValueError, match=r"The tokenizer of .* other is not the one"):
        check_run(checkpoint, identity("other", tokenizer, None, derived=None))

"""Whether the head can tell the token that ends an answer from others."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_modules.cli import main
from lightning_modules.policy.end_token import rows_near, unlearnt_end

END = 2  # <|im_end|> of the tiny tokenizer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1, 100])
def test_rows_near_are_counted_by_their_distance_in_lengths_of_a_row(scale, dtype):
    weight = scale * torch.tensor([[1.0, 0.0], [0.96, 0.28], [0.8, 0.6], [0.0, 1.0], [1.5, 0.0]], dtype=dtype)
    # the median length is 1; from the first row sqrt(.04^2 + .28^2) = .28, sqrt(.2^2 + .6^2) = .63, sqrt(2) and .5
    assert rows_near(weight, 0) == 1
    # from the third sqrt(.16^2 + .32^2) = .36 to the second, and sqrt(.8^2 + .4^2) = .89 to the fourth
    assert rows_near(weight, 2) == 1
    assert rows_near(weight, 3) == 0


def test_rows_of_nothing_are_near_one_another():
    weight = torch.cat([torch.eye(8), torch.zeros(4, 8)])
    assert rows_near(weight, 9) == 3


@pytest.fixture
def unlearnt(tiny_model_dir, tiny_tokenizer, tmp_path):
    """The tiny model with an end of turns like twelve other tokens, as one that met none of them; and its folder."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    weight, draw = model.get_output_embeddings().weight.data, torch.Generator().manual_seed(0)
    noise = torch.randn(13, weight.shape[1], generator=draw)
    weight[[END, *range(20, 32)]] = weight[END] + 0.05 * weight[END].norm() * noise / weight.shape[1] ** 0.5
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    return model, tmp_path / "base"


def test_an_end_that_the_model_never_met_is_named_with_what_to_do(unlearnt, tiny_model_dir, tiny_tokenizer):
    model, _ = unlearnt
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = "<|endoftext|>"
    said = unlearnt_end(tokenizer, model)
    assert "has not learnt '<|im_end|>'" in said and " 12 other tokens" in said
    assert "end answers with '<|endoftext|>'" in said and "chatml" in said and "model.lora null" in said
    tokenizer.eos_token = "<|im_end|>"
    assert "chatml" not in unlearnt_end(tokenizer, model)  # which would end them with the same token
    assert unlearnt_end(tokenizer, AutoModelForCausalLM.from_pretrained(tiny_model_dir)) == ""


def test_a_run_warns_of_it_where_adapters_leave_the_head_alone_and_the_model_is_new(
    unlearnt, base_args, tmp_path, recwarn
):
    whole = {"trainer.max_steps": 1, "trainer.limit_val_batches": 0, "model.init_args.init_from": unlearnt[1]}
    adapters = whole | {"model.init_args.lora.r": 2}
    taught = adapters | {"model.init_args.init_from": tmp_path / "1" / "srml-fit-0"}
    for at, (options, told) in enumerate(((whole, False), (adapters, True), (taught, False))):
        recwarn.clear()
        main(["fit", "--config", "configs/srml.yaml", *base_args(tmp_path / str(at), **options)])
        assert any("has not learnt" in str(warning.message) for warning in recwarn) == told

"""What a model is sharded into, and what one without weights is given before."""

import pytest
import torch
from families import seeing_model

from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.shard import allocate, blocks_of


@pytest.mark.parametrize("lora", [None, LoRA(r=2)])
def test_an_empty_model_gets_memory_and_keeps_what_is_shared_and_what_is_no_weight(tiny_model_dir, lora):
    whole, empty = (build_policy(str(tiny_model_dir), lora=lora, empty=empty) for empty in (False, True))
    assert all(parameter.is_meta for parameter in empty.parameters())
    allocate(empty, torch.device("cpu"))
    shapes = [[(n, p.shape, p.requires_grad) for n, p in policy.named_parameters()] for policy in (whole, empty)]
    assert shapes[0] == shapes[1]  # a tied head is not named apart
    empty.load_state_dict(whole.state_dict())
    ids = torch.arange(3, 20)[None]
    arguments = (ids, torch.arange(17)[None], ids.roll(-1))
    assert torch.equal(whole(*arguments).logprobs, empty(*arguments).logprobs)


def test_layers_that_transformers_names_and_a_model_lacks_are_passed_over(tmp_path):
    """It names SiglipTextEmbeddings for every Gemma 3 that can see."""
    policy = build_policy(seeing_model(tmp_path))
    kinds = {
        "Gemma3DecoderLayer",
        "SiglipEncoderLayer",
        "SiglipVisionEmbeddings",
        "SiglipMultiheadAttentionPoolingHead",
    }
    assert {type(block).__name__ for block in blocks_of(policy, None)} == kinds
    with pytest.raises(
        ValueError, match="wrap names SiglipTextEmbeddings, and Gemma3ForConditionalGeneration has no such"
    ):
        blocks_of(policy, ["Gemma3DecoderLayer", "SiglipTextEmbeddings"])

import torch

from lightning_modules.policy.model import build_policy
from lightning_modules.policy.weight_blocks import block_of, by_blocks


def test_a_layer_comes_as_soon_as_all_of_it_is_there(tiny_model_dir):
    names = ["model.layers.0.a.weight", "model.norm.weight", "model.layers.1.a.weight", "model.layers.0.b.weight"]
    come = []

    def weights():
        for name in names:
            come.append(name)
            yield name, torch.tensor(len(come))

    policy = build_policy(str(tiny_model_dir))
    assert [(block, list(layer), len(come)) for block, layer in by_blocks(policy, names, weights())] == [
        ("model.norm.weight", ["model.norm.weight"], 2),
        ("model.layers.1", ["model.layers.1.a.weight"], 3),
        ("model.layers.0", ["model.layers.0.a.weight", "model.layers.0.b.weight"], 4),
    ]


def test_experts_are_of_the_layer_that_they_lie_in():
    assert block_of("model.layers.12.mlp.experts.3.up_proj.weight") == "model.layers.12"
    assert block_of("lm_head.weight") == "lm_head.weight"

"""Layers that compute their activations again: which of them, from where, and that gradients stay what they are."""

from functools import partial

import pytest
import torch
from torch.autograd.graph import save_on_cpu
from transformers import AutoModelForCausalLM, CTRLConfig, Qwen2Config, Qwen2ForCausalLM, modeling_utils
from transformers.modeling_layers import GradientCheckpointingLayer

from lightning_modules.cli import main
from lightning_modules.policy.gradient_checkpointing import (
    GradientCheckpointing,
    enable,
    resolve_gradient_checkpointing,
)
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy

LAYERS = 5


@pytest.fixture(scope="module")
def folder(make_model_dir):
    """A model of five layers."""
    made = make_model_dir(hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    config = Qwen2Config.from_pretrained(made, num_hidden_layers=LAYERS, layer_types=["full_attention"] * LAYERS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(made)
    return str(made)


def gradients(policy, calls):
    """Gradients of a packed row, and how often each layer was run for them."""
    layers = [module for module in policy.modules() if isinstance(module, GradientCheckpointingLayer)]
    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda *_, number=number: calls.append(number))
    ids = torch.randint(3, 300, (2, 40), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(25), torch.arange(15)]).expand(2, -1)
    policy(ids, positions, ids.roll(-1, 1)).logprobs.sum().backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [None, LoRA(r=2)])
@pytest.mark.parametrize("every", [1, 2, 3, 9])
def test_every_so_many_layers_are_run_again_for_the_same_gradients(folder, every, lora):
    plain, some = [], []
    torch.manual_seed(0)
    want = gradients(build_policy(folder, lora), plain)
    torch.manual_seed(0)
    got = gradients(build_policy(folder, lora, GradientCheckpointing(every_n_layers=every)), some)
    assert plain == list(range(LAYERS))
    assert some[:LAYERS] == plain and some[LAYERS:] == list(range(0, LAYERS, every))[::-1]
    assert want.keys() == got.keys()
    for name, gradient in want.items():
        assert torch.equal(got[name], gradient), name


def test_what_is_offloaded_comes_back(folder, monkeypatch):
    saved = []

    class Host(save_on_cpu):
        """As on a GPU, but for pages that only a GPU's driver can lock."""

        def __init__(self, pin_memory, device_type):
            assert pin_memory
            super().__init__(pin_memory=False, device_type=device_type)
            pack = self.pack_hook
            self.pack_hook = lambda tensor: saved.append(tensor.shape) or pack(tensor)

    monkeypatch.setattr(modeling_utils, "save_on_cpu", Host)
    want = gradients(build_policy(folder), [])
    got = gradients(build_policy(folder, gradient_checkpointing=GradientCheckpointing(2, offload=True)), [])
    assert saved.count(torch.Size([2, 40, 32])) >= 3  # what layers 0, 2 and 4 were given
    assert all(torch.equal(got[name], gradient) for name, gradient in want.items())


def test_settings_of_a_switch():
    assert resolve_gradient_checkpointing(False) is None
    assert resolve_gradient_checkpointing(True) == GradientCheckpointing()
    assert resolve_gradient_checkpointing(GradientCheckpointing(3)).every_n_layers == 3


def test_an_older_transformers_is_named_in_one_sentence():
    class Older:  # 5.16
        supports_gradient_checkpointing = True

        def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs=None, every_n_layers=1):
            self.options = gradient_checkpointing_kwargs, every_n_layers

    older = Older()
    enable(older, GradientCheckpointing(3))
    assert older.options == ({"use_reentrant": False}, 3)
    with pytest.raises(ValueError, match=r"transformers 5\.\d+\.\d+ knows no offload: install 5\.17 or newer"):
        enable(older, GradientCheckpointing(offload=True))


def test_a_family_that_computes_nothing_again_is_refused():
    model = AutoModelForCausalLM.from_config(
        CTRLConfig(vocab_size=8, n_positions=8, n_embd=8, dff=8, n_layer=1, n_head=2)
    )
    with pytest.raises(ValueError, match=r"^model\.gradient_checkpointing: CTRLLMHeadModel .*: set it to false"):
        enable(model, GradientCheckpointing())


def test_a_run_takes_the_settings_and_says_what_they_need(base_args, tmp_path, capsys):
    run = partial(base_args, tmp_path / "runs", **{"trainer.max_steps": 1, "trainer.limit_val_batches": 0})
    main(["fit", "--config=configs/srml.yaml", *run(), "--model.gradient_checkpointing.every_n_layers=2"])
    assert "computed again layer by layer in 1 of 2 layers" in capsys.readouterr().out
    (saved,) = (tmp_path / "runs").glob("*/config.yaml")
    assert "gradient_checkpointing:\n      every_n_layers: 2\n      offload: false\n" in saved.read_text()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("every_n_layers=0", "every_n_layers must be at least 1, got 0"),
        ("offload=true", "offload keeps activations in"),
    ],
)
def test_settings_without_a_meaning_end_in_a_sentence(key, reason, base_args, tmp_path, capsys):
    words = ["fit", "--config=configs/srml.yaml", *base_args(tmp_path), f"--model.gradient_checkpointing.{key}"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert reason in f"{ended.value}{capsys.readouterr().err}"

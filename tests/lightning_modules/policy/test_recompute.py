"""Norms and gated MLPs that keep their inputs alone: the values of transformers' own modules, and their gradients."""

import copy

import pytest
import torch
from families import FAMILIES
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM

from lightning_modules.policy import recompute
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.recompute import by_blocks, keep_inputs_alone

pytestmark = pytest.mark.usefixtures("small_blocks")
BY_KIND = {family.kind: family for family in FAMILIES}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(recompute, "BLOCK", 2 * 3 * 2 * 16)  # of 7 tokens few at a time


def both(kind):
    """Changed modules of a family beside what they were; with weights drawn at random, of norms too."""
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(BY_KIND[kind].config())
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    changed = copy.deepcopy(plain)
    keep_inputs_alone(changed)
    pairs = zip(plain.modules(), changed.modules(), strict=True)
    return [(was, now) for was, now in pairs if type(was) is not type(now)]


def states_of(module, dtype):
    """[2, 3, 7, D] as heads lie in memory, tokens before heads."""
    size = module.weight.shape[0] if hasattr(module, "weight") else module.gate_proj.in_features
    return torch.randn(2, 7, 3, size).transpose(1, 2).to(dtype).detach().requires_grad_()


def result(module, states, mixed):
    """Value, gradient of the states, gradients of the weights."""
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False):
        value = module(states)
    weights = list(module.parameters())
    towards = torch.linspace(-1, 2, value.numel()).view(value.shape).to(value.dtype)
    of_states, *of_weights = torch.autograd.grad(value, [states, *weights], towards)
    return value, of_states, of_weights


TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2}  # norms are float32 in float64, too


def close(got, want):
    tolerance = TOLERANCES[want.dtype]
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * float(want.detach().abs().max()))


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "gemma3_text", "gpt_oss", "olmo2", "qwen3_next", "nemotron_h"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_values_and_gradients_are_those_of_the_module_itself(kind, precision):
    dtype = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    mixed = precision == "bf16-mixed"
    pairs = both(kind)
    assert pairs
    for was, now in pairs:
        for states_dtype in {dtype, torch.bfloat16} if mixed else {dtype}:
            states = states_of(was.to(dtype), states_dtype)
            want, got = result(was, states, mixed), result(now.to(dtype), states, mixed)
            close(got[0], want[0])
            close(got[1], want[1])
            for a, b in zip(got[2], want[2], strict=True):
                close(a, b)


def kept(module, states):
    """Bytes that the graph of a call keeps, each tensor once; weights not among them."""
    sizes = {}
    own = {p.data_ptr() for p in module.parameters()}

    def note(x):
        if x.data_ptr() not in own:
            sizes[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(note, lambda x: x):
        value = module(states)
    return sum(sizes.values()), value


def test_a_norm_keeps_its_input_and_a_gated_mlp_gate_up_and_their_product():
    pairs = {type(now).__name__: (was, now) for was, now in both("gemma3_text")}
    was, now = pairs["Gemma3RMSNorm"]
    states = torch.randn(1, 50, was.weight.shape[0], requires_grad=True)
    assert kept(now, states)[0] == states.nbytes < kept(was, states)[0]
    was, now = pairs["Gemma3MLP"]
    states = torch.randn(1, 50, 32, requires_grad=True)  # 50 x 32 inputs, 50 x 64 each of gate, up, product, activation
    assert kept(now, states)[0] == 4 * 50 * (32 + 3 * 64)
    assert kept(was, states)[0] == 4 * 50 * (32 + 4 * 64)


def test_what_a_block_holds_is_left_to_the_module_itself(monkeypatch):
    monkeypatch.setattr(recompute, "BLOCK", 2**18)
    was, now = both("qwen3")[0]
    states = states_of(now, torch.float32)  # far fewer than 2^18 numbers
    assert kept(now, states)[0] == kept(was, states)[0] > states.nbytes


def test_modules_keep_name_weights_and_kind():
    for was, now in both("qwen3"):
        assert type(now).__name__ == type(was).__name__ and isinstance(now, type(was)) and repr(now) == repr(was)
        assert now.state_dict().keys() == was.state_dict().keys()


def test_a_copy_has_weights_of_its_own():
    norm = both("qwen3")[0][1]
    states, other = states_of(norm, torch.float32), copy.deepcopy(norm)
    nn.init.zeros_(other.weight)
    assert not other(states).any() and norm(states).all()


def test_without_a_backward_pass_the_module_itself_computes(monkeypatch):
    monkeypatch.setattr(recompute, "by_blocks", None)
    for was, now in both("gemma3_text"):
        states = states_of(was, torch.float32)
        with torch.no_grad():
            assert torch.equal(now(states), was(states))


class Sparse(nn.Module):
    """As a gated MLP, but for what it does to the gate."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))


def test_an_mlp_that_computes_something_else_stays_what_it_is():
    model = nn.Sequential(Sparse())
    keep_inputs_alone(model)
    assert type(model[0]) is Sparse


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [None, LoRA(r=2)])
@pytest.mark.parametrize("kind", ["qwen3", "gemma3_text", "llama"])
def test_a_model_learns_what_it_learns_without(kind, lora, checkpointing, monkeypatch, tmp_path, tiny_tokenizer):
    folder = str(BY_KIND[kind].save(tmp_path, tiny_tokenizer))
    gradients = []
    for block in (64, 2**18):
        monkeypatch.setattr(recompute, "BLOCK", block)
        torch.manual_seed(0)
        policy = build_policy(folder, lora=lora, gradient_checkpointing=checkpointing)
        ids = torch.arange(5, 25)[None]
        policy(ids, torch.arange(20)[None], ids.roll(-1)).logprobs.sum().backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, gradient in gradients[0].items():
        close(gradient, gradients[1][name])


def test_gradients_that_nobody_needs_are_not_made():
    states, weight = torch.randn(5, 3), torch.randn(3, requires_grad=True)  # frozen below, as the first norm with LoRA
    out = by_blocks(torch.mul, [states], [weight])
    out.sum().backward()
    torch.testing.assert_close(weight.grad, states.sum(0))  # d sum(x w) / dw = sum of x over tokens
    assert states.grad is None

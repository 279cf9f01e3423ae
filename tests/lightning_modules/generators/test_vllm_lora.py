"""Adapters that an engine applies itself: they go over alone, and what cannot be is refused before a model loads.

A stand-in for the engine computes with transformers and peft what it was given; `make test-vllm` runs a real one.
"""

import sys
import warnings
from copy import deepcopy
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lightning_modules import SRMLModule
from lightning_modules.evaluation import EvaluationModule
from lightning_modules.generators import VLLMGenerator
from lightning_modules.generators.vllm_lora import lora_options
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class StandIn:
    """Notes in `given` the bytes of weights and of adapters that each call of `load` brings."""

    def __init__(self, folder, device, *rest, **options):
        self.options, self.given, self.rested, self.emptied = options, [], [], True

    def load(self, weights, adapters=None):
        self.given.append((size_of(weights), size_of(adapters)))
        if weights is not None:
            self.base = AutoModelForCausalLM.from_pretrained(weights)
        self.model = deepcopy(self.base)
        if adapters is not None:
            self.model = PeftModel.from_pretrained(self.model, adapters)
        self.emptied = False

    @torch.no_grad()
    def score(self, ids):
        every = self.model(torch.tensor([ids])).logits.float().log_softmax(-1)[0, :-1]
        return every.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]

    def rest(self, level):
        self.rested.append(level)


def size_of(folder):
    """Bytes of the tensors in a folder's files, None without a folder."""
    files = [] if folder is None else Path(folder).glob("*.safetensors")
    return folder and sum(tensor.nbytes for file in files for tensor in load_file(file).values())


@pytest.fixture
def generator(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    module = ModuleType("vllm")
    module.envs, module.__spec__ = SimpleNamespace(VLLM_CACHE_ROOT=str(tmp_path)), ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr("lightning_modules.generators.vllm.Engine", StandIn)
    return VLLMGenerator(enable_lora=True)


def learn(policy, size=0.3):
    """Move the factors that begin as zeros."""
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if ".lora_B." in name:
                weight.normal_(std=size)


def test_weights_go_over_once_and_then_adapters_alone(generator, tiny_model_dir):
    policy = build_policy(str(tiny_model_dir), LoRA(r=4))
    config = policy.causal_lm.config
    # Adapters of 4 x (in + out) numbers on seven layers: q, o and two of k and v in attention, three in the MLP.
    hidden, inner = config.hidden_size, config.intermediate_size
    narrow = hidden // config.num_attention_heads * config.num_key_value_heads
    layer = 2 * (hidden + hidden) + 2 * (hidden + narrow) + 3 * (hidden + inner)
    adapters = 4 * config.num_hidden_layers * layer * 4  # bytes of float32
    head = policy.causal_lm.get_output_embeddings().weight.nbytes  # tied in the policy, and not in the engine
    weights = head + sum(weight.nbytes for name, weight in policy.named_parameters() if ".lora_" not in name)
    generator.sync(policy)
    for _ in range(2):
        learn(policy)
        with torch.inference_mode():  # as validation does
            generator.sync(policy)  # compares the scores of both
    assert generator.engine.given == [(weights, adapters), (None, adapters), (None, adapters)]
    assert all(weight.requires_grad == (".lora_" in name) for name, weight in policy.named_parameters())


def test_weights_that_are_others_go_over_again(generator, tiny_model_dir):
    policy = build_policy(str(tiny_model_dir), LoRA(r=4))
    generator.sync(policy)
    with torch.no_grad():
        policy.causal_lm.model.norm.weight.mul_(2)
    generator.sync(policy)
    generator.sync(build_policy(str(tiny_model_dir), LoRA(r=4)))
    assert [weights is not None for weights, _ in generator.engine.given] == [True, True, True]


def test_an_engine_that_applies_adapters_keeps_its_weights_while_the_policy_learns(generator, tiny_model_dir):
    generator.sync(build_policy(str(tiny_model_dir), LoRA(r=4)))
    generator.rest(stale=True)
    generator.enable_lora = False
    generator.rest(stale=True)
    assert generator.engine.rested == [1, 2]


@pytest.mark.parametrize(("r", "room"), [(1, 8), (8, 8), (9, 16), (300, 320), (512, 512)])
def test_the_engine_has_room_for_the_rank_and_wraps_the_layers_that_have_adapters(tiny_model_dir, r, room):
    policy = build_policy(str(tiny_model_dir), LoRA(r=r, target_modules=["v_proj", "down_proj"]))
    assert lora_options(policy) == {
        "enable_lora": True,
        "max_lora_rank": room,
        "lora_target_modules": ["down_proj", "v_proj"],
    }


@pytest.mark.parametrize(
    ("lora", "precision", "device", "dtype", "words"),
    [
        (None, "bf16-mixed", CPU, None, "the policy's adapters, and it has none: set model.lora, or enable_lora to"),
        (LoRA(r=513), "bf16-mixed", CPU, None, "up to rank 512, and model.lora.r is 513"),
        (LoRA(), "32-true", GPU, None, "bfloat16 or float16, .*: set the generator's dtype or trainer.precision bf16"),
        (LoRA(), "bf16-mixed", GPU, "float32", "bfloat16 or float16"),
    ],
)
def test_what_the_engine_cannot_apply_is_refused(generator, lora, precision, device, dtype, words):
    generator.dtype = dtype
    with pytest.raises(ValueError, match=rf"^model\.generator: enable_lora .*{words}"):
        generator.check(lora, precision, device)
    generator.enable_lora = False
    generator.check(lora, precision, device)


@pytest.mark.parametrize(
    ("precision", "device", "dtype"),
    [("bf16-mixed", GPU, None), ("bf16-true", GPU, None), ("32-true", GPU, "bfloat16"), ("32-true", CPU, None)],
)
def test_what_the_engine_can_apply_is_not(generator, precision, device, dtype):
    generator.dtype = dtype
    generator.check(LoRA(r=512), precision, device)


@pytest.mark.parametrize(
    ("precision", "dtype", "coarse"), [("bf16-mixed", None, "bfloat16"), ("32-true", "float16", "float16")]
)
def test_adapters_merged_into_coarse_weights_are_warned_of(generator, precision, dtype, coarse):
    generator.enable_lora, generator.dtype = False, dtype
    with pytest.warns(UserWarning, match=f"into weights in {coarse}.*enable_lora to true"):
        generator.check(LoRA(), precision, CPU)
    with warnings.catch_warnings(action="error"):
        generator.check(None, precision, CPU)
        generator.dtype = "float32"
        generator.check(LoRA(), precision, CPU)


@pytest.mark.parametrize("module", [SRMLModule, EvaluationModule])
def test_a_run_without_adapters_is_refused_before_its_model_loads(generator, module):
    run = module(init_from="nowhere", generator=generator)
    run._trainer = SimpleNamespace(precision="32-true", strategy=SimpleNamespace(root_device=CPU))
    with pytest.raises(ValueError, match=r"set model\.lora, or enable_lora to false"):
        run.setup("validate")


def test_outside_of_a_run_a_policy_without_adapters_is_refused(generator, tiny_model_dir):
    with pytest.raises(ValueError, match=r"set model\.lora, or enable_lora to false"):
        generator.sync(build_policy(str(tiny_model_dir)))
    assert generator.engine is None

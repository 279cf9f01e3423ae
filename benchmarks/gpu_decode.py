"""The step of `gpu_session` that times decoding by rows of a batch."""

from functools import partial

import torch
from transformers import PreTrainedConfig

from benchmarks.gpu_device import Measurements, device_of, machine, seconds
from benchmarks.gpu_models import LAYERS, config_of, policy_of
from benchmarks.sharded_step import Case
from lightning_modules.generators import HFGenerator
from lightning_modules.policy.model import ScoredCausalLM


def decode(small: bool) -> Measurements:
    """Milliseconds of a decode step by rows of a batch, prompts read before."""
    device = device_of(small)
    yield "machine", partial(machine, device)
    tokens = 4 if small else 64
    kept: list[ScoredCausalLM] = []

    def make(shape: str) -> dict[str, int]:
        kept.clear()
        kept.append(policy_of(_seven(small) if shape == "7B" else _gemma(small), device).eval())
        return {"parameters": sum(p.numel() for p in kept[0].parameters())}

    for shape, batches in (("7B", (2,) if small else (1, 16, 64)), ("Gemma 3 270M", (2,) if small else (64,))):
        yield f"{shape}: weights", partial(make, shape)
        for rows in batches:
            yield f"{shape}: {rows} rows", lambda rows=rows: _decoded(kept[0], rows, tokens, device)


def _seven(small: bool) -> PreTrainedConfig:
    return Case("SRML", "small" if small else "7B", layers=2 if small else LAYERS).config


def _gemma(small: bool) -> PreTrainedConfig:
    """Of Gemma 3 270M."""
    layers = 6 if small else 18
    return config_of(
        "gemma3_text",
        vocab_size=2048 if small else 262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=layers,
        sliding_window=512,
        layer_types=["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)],
        initializer_range=0.02,
        eos_token_id=1,
    )


def _decoded(policy: ScoredCausalLM, rows: int, tokens: int, device: torch.device) -> dict[str, float]:
    draw = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(3, 2000, (16 if device.type == "cpu" else 256 - i % 32,), generator=draw).tolist()
        for i in range(rows)
    ]

    def take(new: int) -> float:
        generator = HFGenerator(max_new_tokens=new, seed=0)
        with torch.autocast(device.type, torch.bfloat16):
            return seconds(lambda: generator(policy, prompts, stop_ids=[]), device, 2)

    short, long = take(1), take(tokens)
    return {
        "prompts, ms": 1e3 * short,
        "a step, ms": 1e3 * (long - short) / (tokens - 1),
        "tokens/s": rows * tokens / long,
    }

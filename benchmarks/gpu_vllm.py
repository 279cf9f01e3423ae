"""The step of `gpu_session` that samples with vLLM and gives it new weights: through files, and over CUDA IPC."""

import importlib.util
import time
import traceback
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig

from benchmarks.gpu_device import Measurements, device_of, machine
from benchmarks.gpu_models import BASE, config_of, policy_of
from lightning_modules.generators import VLLMGenerator
from lightning_modules.generators.vllm_probe import distance, probe_ids, probe_scores
from lightning_modules.policy.model import ScoredCausalLM

TIMEOUT = 90.0  # seconds that a call of an engine may take, so that one which hangs leaves time for the next

LARGER = {  # heads are of 64 with it and without
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "initializer_range": 0.04,
}


def vllm(small: bool) -> Measurements:
    """Engines that sample, sleep while the policy takes a step, and sample from the new weights."""
    device = device_of(small)
    yield "machine", partial(machine, device)
    if importlib.util.find_spec("vllm") is None:
        said = "vLLM is not installed here, so nothing was measured: pip install -e '.[vllm]' -c constraints-gpu.txt"
        yield "not measured", lambda: said
        return
    for transfer in ("folder",) if small else ("folder", "ipc"):  # IPC is between processes on one GPU
        yield f"transfer: {transfer}", partial(_sampled, transfer, device)


def _sampled(transfer: str, device: torch.device) -> dict[str, Any]:
    """Seconds of each sync, how far the engine is from the policy after it, and tokens a second; eager, both times."""
    small = device.type == "cpu"
    vocabulary = AutoConfig.from_pretrained(BASE).vocab_size
    sizes = {} if small else LARGER
    policy = policy_of(config_of("qwen2", vocab_size=vocabulary, **sizes), device)
    tokens, n = (8, 2) if small else (128, 8)
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, vocabulary, (16,), generator=draw).tolist() for _ in range(2 if small else 32)]
    generator = VLLMGenerator(
        max_new_tokens=tokens,
        temperature=1.0,
        seed=0,
        timeout=TIMEOUT * (4 if small else 1),
        max_model_len=256,
        kv_cache_gib=0.1 if small else 1,
        enforce_eager=True,
        transfer=transfer,
    )
    generator.prepare("32-true" if small else "bf16-mixed", None)
    values: dict[str, Any] = {}
    try:
        for name in ("start and first sync", "sync after a step"):
            before = probe_scores(policy) if values else None
            if values:
                generator.rest(stale=True)
                _step(policy, prompts[0], device)
            found = values[name] = {"probe passed": False}
            begun = time.perf_counter()
            generator.sync(policy)  # raises where the probe does not pass
            found |= {"seconds": time.perf_counter() - begun, "probe passed": True}
            scores = probe_scores(policy)
            found["from the policy, nats"] = distance(scores, generator.engine.score(probe_ids(policy)))
            if before is not None:
                found["the policy moved, nats"] = distance(scores, before)
            begun = time.perf_counter()
            completions = generator(policy, prompts, n=n, stop_ids=[])
            sampled = sum(len(completion.token_ids) for samples in completions for completion in samples)
            found |= {"tokens": sampled, "tokens/s": sampled / (time.perf_counter() - begun)}
    except (RuntimeError, OSError, ValueError) as error:  # what was found before it is kept
        traceback.print_exc()
        values["error"] = f"{type(error).__name__}: {error}"
    finally:
        if generator.engine is not None:
            generator.engine.close()
    return values


def _step(policy: ScoredCausalLM, prompt: list[int], device: torch.device) -> None:
    """An optimizer step that makes some ids likelier."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    ids = torch.tensor([prompt], device=device)
    positions = torch.arange(ids.shape[1] - 1, device=device)[None]
    policy(ids[:, :-1], positions, ids[:, 1:]).logprobs.mean().neg().backward()
    optimizer.step()
    policy.zero_grad()

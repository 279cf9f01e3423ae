"""The step of `gpu_session` that holds scores and gradients, by every path of attention, against float64."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu_device import Measurements, device_of, machine
from benchmarks.gpu_models import FAMILIES, IDS, config_of, policy_of
from benchmarks.gpu_operations import adamw_error, head_errors, kernel_errors
from datamodules.packing import PackedBatch
from lightning_modules.generators import HFGenerator
from lightning_modules.policy import attention
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.probe import probe
from lightning_modules.rollout.batching import pack_rollouts

LENGTHS = (70, 300, 33, 5, 1, 128, 257, 64)  # tokens of documents


def correct(small: bool) -> Measurements:
    """Scores and gradients by every path against float64; probe and generation; the head; the optimizer."""
    device = device_of(small)
    yield "machine", partial(machine, device)
    for name in FAMILIES:
        policy = policy_of(config_of(name), device)
        for dtype in ("float32", "bf16-mixed"):
            yield f"{name}, {dtype}: probe", partial(_probe, policy, dtype)
            yield f"{name}, {dtype}: packed rows", partial(_packed, policy, dtype, 8 if small else 1)
            yield f"{name}, {dtype}: shared prefixes", partial(_shared, policy, dtype, 8 if small else 1)
        yield f"{name}: generation", partial(_generation, policy, 4 if small else 24)
    for dtype in ("float32", "bf16-mixed"):
        yield f"head, {dtype}", partial(head_errors, device, dtype, 700 if small else 40_000)
    yield "AdamW", partial(adamw_error, device)
    if not small:
        for size in (64, 128, 256):
            yield f"kernels of attention, heads of {size}", partial(kernel_errors, device, size)


@contextmanager
def attending(policy: ScoredCausalLM, path: str) -> Iterator[None]:
    """Attention of packed rows by one of its paths: "mask", "each document" or "one kernel"."""
    policy.by_document = path != "mask"
    takes_all = (lambda *_: False) if path == "each document" else attention.takes_all
    with patch.object(attention, "takes_all", takes_all):
        yield
    policy.by_document = False


def paths(policy: ScoredCausalLM, dtype: str) -> list[str]:
    """The paths of attention that differ from each other on this device."""
    one = ["one kernel"] if policy.causal_lm.device.type == "cuda" and dtype != "float32" else []
    return ["mask", "each document", *one]


def _autocast(policy: ScoredCausalLM, dtype: str) -> torch.autocast:
    return torch.autocast(policy.causal_lm.device.type, torch.bfloat16, enabled=dtype != "float32")


def _exact(policy: ScoredCausalLM) -> ScoredCausalLM:
    return copy.deepcopy(policy).double()


def _learned(policy: ScoredCausalLM, batches: Sequence[PackedBatch], dtype: str) -> tuple[Tensor, Tensor]:
    """Log-probabilities in the order of `tokens`, and all gradients of their sum under weights, both float64."""
    policy.zero_grad()
    count = 1 + max(int(batch["tokens"].max()) for batch in batches)
    found = torch.zeros(count, dtype=torch.float64, device=policy.causal_lm.device)
    for batch in batches:
        batch = {name: tensor.to(found.device) for name, tensor in batch.items()}
        with _autocast(policy, dtype):
            scores = policy(batch["input_ids"], batch["position_ids"], batch["targets"]).logprobs
        places = batch["tokens"][batch["tokens"] >= 0]
        found[places] = scores.detach().double()
        (scores * (places % 3 - 1.2)).sum().div(count).backward()
    gradients = [p.grad.double().flatten() for p in policy.parameters() if p.grad is not None]
    return found, torch.cat(gradients)


def _errors(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> dict[str, float]:
    scores, gradient = got[0] - want[0], got[1] - want[1]
    return {
        "largest error, nats": float(scores.abs().max()),
        "mean error, nats": float(scores.abs().mean()),
        "gradient, relative": float(gradient.norm() / want[1].norm()),
    }


def _pack(prompts: list[list[int]], completions: list[list[int]], row: int, **how: bool) -> list[PackedBatch]:
    cot = [[False] * len(completion) for completion in completions]
    return pack_rollouts(prompts, completions, cot, row, 2 * row, **how)


def _compared(
    policy: ScoredCausalLM, dtype: str, alone: list[PackedBatch], packed: list[PackedBatch], among: Sequence[str]
) -> dict[str, Any]:
    """Documents in rows by paths of attention, and each alone, against each alone in float64."""
    want = _learned(_exact(policy), alone, "float32")
    values: dict[str, Any] = {"alone": _errors(_learned(policy, alone, dtype), want)}
    for path in among:
        with attending(policy, path):
            values[path] = _errors(_learned(policy, packed, dtype), want)
    return values


def _packed(policy: ScoredCausalLM, dtype: str, shrink: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, IDS, (max(2, n // shrink),), generator=draw).tolist() for n in LENGTHS]
    documents = [row[:1] for row in ids], [row[1:] for row in ids]
    alone, packed = (_pack(*documents, 512 // shrink, packed=together) for together in (False, True))
    return _compared(policy, dtype, alone, packed, paths(policy, dtype))


def _shared(policy: ScoredCausalLM, dtype: str, shrink: int) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, IDS, (n // shrink,), generator=draw).tolist() for n in (120, 90) for _ in range(4)]
    prompts = [prompts[i // 4 * 4] for i in range(8)]
    sizes = (90, 17, 40, 8, 64, 33, 8, 25)
    completions = [torch.randint(3, IDS, (max(1, n // shrink),), generator=draw).tolist() for n in sizes]
    alone = _pack(prompts, completions, 512 // shrink, packed=False)
    shared = _pack(prompts, completions, 512 // shrink, shared=True)
    return _compared(policy, dtype, alone, shared, paths(policy, dtype)[1:])


def _probe(policy: ScoredCausalLM, dtype: str) -> dict[str, Any]:
    with _autocast(policy, dtype):
        leak = probe(policy)
    found = {"leak": leak, "by document": policy.by_document, "shares prefixes": policy.shares_prefixes}
    policy.by_document = False
    return found


def _generation(policy: ScoredCausalLM, tokens: int) -> dict[str, Any]:
    """Greedy tokens beside those of `generate`, in float32, and whether samples depend on their batch."""
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, IDS, (n,), generator=draw).tolist() for n in (60, 17, 33, 5, 60, 80)]
    make = partial(HFGenerator, max_new_tokens=tokens, seed=0)
    policy.eval()
    with torch.no_grad():
        greedy = [rows[0].token_ids for rows in make()(policy, prompts, stop_ids=[])]
        model, same = policy.causal_lm, []
        for prompt, ids in zip(prompts, greedy, strict=True):
            given = torch.tensor([prompt], device=model.device)
            options = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            own = model.generate(given, attention_mask=torch.ones_like(given), **options)[0, len(prompt) :].tolist()
            same.append(own == ids)
        drawn = [make(temperature=1.0)(policy, prompts, n=3, stop_ids=[]) for _ in range(2)]
        few = make(temperature=1.0, token_budget=200)(policy, prompts, n=3, stop_ids=[])
    policy.train()
    return {"greedy as generate": sum(same), "of": len(same), "again": drawn[0] == drawn[1], "few": drawn[0] == few}

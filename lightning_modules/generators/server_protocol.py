"""What a vLLM server is asked for: its settings, weights from a folder, scores of ids, completions in its answers."""

import ipaddress
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datamodules.refinement.exchange import Failed
from datamodules.refinement.servers import Server
from lightning_modules.generators.base import Completion
from lightning_modules.generators.server_requests import Ask

GENERATE = "/inference/v1/generate"
"""vLLM's endpoint of token ids; its answers say which weights sampled them, and the completions endpoint's do not."""


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's own loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def describe(server: Server, ask: Ask) -> dict[str, Any]:
    """The settings of the model that a server has, which must be such that rollouts are what they say.

    Raises:
        ValueError: Its log-probabilities are not those of the distribution sampled from.
    """
    settings: dict[str, Any] = (await ask("/server_info?config_format=json"))["vllm_config"]["model_config"]
    if settings["logprobs_mode"] != "processed_logprobs":
        raise ValueError(
            f"The vLLM server at {server.url} reports {settings['logprobs_mode']}, which are not those of the "
            "distribution that it samples from: start it with --logprobs-mode processed_logprobs."
        )
    return settings


async def load(server: Server, ask: Ask, folder: str) -> None:
    """Have a server load weights from a folder that it sees."""
    overrides = {"load_config": {"load_format": "auto"}}  # of one that was started with dummy weights
    await ask("/collective_rpc", {"method": "update_config", "kwargs": {"overrides": overrides}})
    await ask("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})


async def settle(server: Server, ask: Ask, version: str, ids: Sequence[int]) -> Tensor:
    """Name the weights that a server was given, and have it score ids with them.

    Returns:
        Log-probability of each of T ids but the first, given those before it, at temperature 1, [T - 1], float32.

    Raises:
        RuntimeError: It has kept what was computed with the weights before.
    """
    if not (await ask("/reset_prefix_cache", {}))["success"]:
        raise RuntimeError(
            f"The vLLM server at {server.url} kept a prefix cache that was computed with the old weights: it "
            "must serve nobody else."
        )
    await ask("/update_weight_version", {"new_version": version})
    settings = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
    scored = (await ask(GENERATE, {"token_ids": list(ids), "sampling_params": settings}))["prompt_logprobs"]
    return torch.tensor([scored[i][str(ids[i])]["logprob"] for i in range(1, len(ids))], dtype=torch.float32)


def read_completion(answer: Any, version: str) -> Completion:
    """The completion in a server's answer.

    Raises:
        Failed: It holds none, or other weights than the last sync's have sampled it.
    """
    try:
        (choice,) = answer["choices"]
        ids, reason, spans = choice["token_ids"], choice["finish_reason"], choice["weight_versions"]
        logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        versions = {span["version"] for span in spans}
    except (KeyError, TypeError, ValueError) as error:
        raise Failed(f"{GENERATE} gave no completion") from error
    if versions != {version}:
        raise Failed("it holds other weights than it was given: it was started again, or another run uses it")
    if reason not in ("stop", "length") or len(ids) != len(logprobs):
        raise Failed(f"it gave up a completion, whose finish reason is {reason}")
    return Completion(ids, reason, logprobs)

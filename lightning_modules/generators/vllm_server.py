"""Generation by vLLM servers of one's own, on any nodes, which are given the policy's weights."""

import importlib.util
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.loading import resolve_seed
from datamodules.refinement.exchange import check_addresses
from datamodules.system.arguments import declared
from lightning_modules.generators.base import Completion, check_limits, check_sampling, config_stop_ids, names_of
from lightning_modules.generators.nccl_transfer import NCCLTransfer
from lightning_modules.generators.server_protocol import GENERATE, describe, is_loopback, load, read_completion, settle
from lightning_modules.generators.server_requests import Servers
from lightning_modules.generators.vllm_lora import MERGED
from lightning_modules.generators.vllm_probe import check_scores, probe_ids, probe_scores
from lightning_modules.generators.vllm_sampling import sampling_params
from lightning_modules.generators.weight_folder import temporary_folder, write_weights
from lightning_modules.generators.weight_source import PolicyWeights
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.unshard import is_sharded
from lightning_modules.ranks import of_every_rank

Outcome = TypeVar("Outcome")


class Synced(NamedTuple):
    """What every rank knows of the servers after a sync.

    Attributes:
        version: The name that the weights have on the servers.
        urls: Servers that hold them.
        max_model_len: Tokens that prompt and completion may have together.
        scores: By the policy, of the probe; a rank's own.
    """

    version: str
    urls: list[str]
    max_model_len: int
    scores: Tensor


@declared
class VLLMServerGenerator:
    """Generates with vLLM servers (arXiv 2309.06180) of one's own, any number of them, on this node or others.

    Every rank sends its own requests, to whichever server has room. The first rank gives the servers the weights,
    adapters merged, before the first call and whenever the policy scores a few ids otherwise than before; then every
    server scores them, too, and one that disagrees with the policy ends the run. All servers have to answer at the
    start. The run goes on without a server that is lost later, or holds weights of another sync, and asks it again at
    the next sync; when none is left the run ends.

    A completion depends on the weights, `seed`, its prompt's name and its number among the prompt's samples, up to the
    rounding of logits, in which the rows that happen to be computed together, or servers of unlike hardware, can
    differ. `Completion.logprobs` are those of the distribution sampled from, at the temperature.

    `transfer` "folder" writes safetensors that the servers load through `/collective_rpc`, for servers on the loopback,
    CPUs among them. "nccl" sends the weights from the first rank's GPU to theirs with vLLM's own engine; it has not run
    on a GPU. How the servers are started is in `docs/vllm.md`.

    Args:
        servers: Base addresses, `http://host:8000`. A key is taken from the environment (`VLLM_API_KEY`).
        max_new_tokens: Tokens after which a completion is cut.
        temperature: Divides the logits; 0 takes the most likely token.
        top_p: Sample only from the smallest set of tokens with this probability; 1 is all of them.
        seed: Of the sampling noise; that of the run (`seed_everything`) when None.
        timeout: Seconds that a completion, and each part of a sync, may take.
        probe_tolerance: Greatest mean difference, in nats, between the log-probabilities of server and policy; as for
            `VLLMGenerator` when None.
        transfer: How the weights reach the servers.
        weights_dir: Where the folder of weights is made, which the servers must see. Python's choice when None.
        per_server: Requests that each rank may have in flight at each server.

    Raises:
        ValueError: If a setting is out of its range, aiohttp is not installed, or the transfer cannot reach a server.
    """

    reports_logprobs = True

    def __init__(
        self,
        servers: list[str],
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        timeout: float = 1800.0,
        probe_tolerance: float | None = None,
        transfer: Literal["folder", "nccl"] = "folder",
        weights_dir: str | None = None,
        per_server: int = 64,
    ) -> None:
        check_sampling(temperature, top_p)
        check_limits(timeout, probe_tolerance, max_new_tokens=max_new_tokens, per_server=per_server)
        check_servers(servers, transfer)
        self.max_new_tokens, self.temperature, self.top_p = max_new_tokens, temperature, top_p
        self.seed = resolve_seed(seed)
        self.timeout, self.probe_tolerance, self.weights_dir = timeout, probe_tolerance, weights_dir
        self.servers = Servers(servers, timeout, per_server)
        self.nccl = NCCLTransfer(self.servers, timeout) if transfer == "nccl" else None
        self.synced: Synced | None = None
        self._half = False
        self._probed: dict[str, tuple[Tensor, Tensor]] = {}  # scores by policy and server, by its address
        self._group: dist.ProcessGroup | None = None

    def __call__(
        self,
        policy: ScoredCausalLM,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str | int] | None = None,
        n: int = 1,
        stop_ids: Collection[int] | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> list[list[Completion]]:
        """Sample `n` completions of each prompt; see `Generator`. The first call after an update is a collective.

        Raises:
            ValueError: If a prompt is empty or too long, `names` are not one per prompt, no stop id is known, or
                a setting is out of its range.
            RuntimeError: If the servers refuse requests or do not answer any more, or a sync does not work.
        """
        stop = config_stop_ids(policy) if stop_ids is None else stop_ids
        behind = self.synced is None or not torch.equal(self.synced.scores, probe_scores(policy))
        if is_sharded(policy):  # every rank has called this, to score the probe
            behind = any(of_every_rank(behind))
        if behind:
            self.sync(policy)
        return self.sample(prompts, names, n, stop, temperature, top_p)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str | int] | None,
        n: int,
        stop_ids: Collection[int],
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> list[list[Completion]]:
        """As a call does, but from the weights of the last sync, whatever the policy is now; no collective.

        Raises:
            ValueError: See `__call__`.
            RuntimeError: See `__call__`.
        """
        temperature = self.temperature if temperature is None else temperature
        top_p = self.top_p if top_p is None else top_p
        check_sampling(temperature, top_p)
        names = names_of(prompts, names)
        longest = max(map(len, prompts), default=0) + self.max_new_tokens
        if longest > self.synced.max_model_len:
            raise ValueError(
                f"A prompt and its completion may be {longest} tokens long, and a vLLM server takes "
                f"{self.synced.max_model_len}: start it with a larger --max-model-len, or lower max_new_tokens or the "
                "length of prompts."
            )
        rows = [list(prompt) for prompt in prompts for _ in range(n)]
        params = sampling_params(names, n, self.seed, self.max_new_tokens, stop_ids, temperature, top_p)
        bodies = [{"token_ids": ids, "sampling_params": each} for ids, each in zip(rows, params, strict=True)]
        read = partial(read_completion, version=self.synced.version)
        completions = self.servers.answer(GENERATE, bodies, read, _rank())
        return [completions[i * n : (i + 1) * n] for i in range(len(prompts))]

    def sync(self, policy: ScoredCausalLM) -> None:
        """Have the first rank give the servers the policy's weights and check that they have them; a collective.

        Raises:
            RuntimeError: If the servers refuse or fail, none answers any more, one does not score ids as the policy
                does, or, on other ranks, whatever the first one has raised.
            ValueError: If a weight is not finite, or a server's settings are not those that rollouts need.
            TimeoutError: If a transfer over NCCL hangs.
        """
        self._meet()
        scores = probe_scores(policy)
        dtype, max_model_len = self._first(self._find)
        if self.synced is None and policy.has_adapters and dtype != torch.float32:
            told = MERGED.format(str(dtype).removeprefix("torch."))
            rank_zero_warn(f"{told}start the servers with --dtype float32, or take VLLMGenerator with enable_lora.")
        if self.nccl is not None:
            self._send(self.nccl, policy, dtype)
        else:
            self._write(policy, dtype)
        version, urls = self._first(partial(self._settle, policy, scores, dtype))
        self.synced = Synced(version, urls, max_model_len, scores)
        self.servers.keep(urls)

    def prepare(self, precision: str, longest_prompt: int | None) -> None:
        """Note what the policy computes in: servers were started with settings of their own. See `HoldsWeights`."""
        self._half = "16" in precision

    def rest(self, stale: bool = False) -> None:
        """Do nothing: servers have GPUs of their own. See `HoldsWeights`."""

    def _write(self, policy: ScoredCausalLM, dtype: torch.dtype) -> None:
        """Have the first rank write the weights to a folder, and the servers load it."""
        with ExitStack() as stack:
            folder = self._first(lambda: stack.enter_context(temporary_folder(self.weights_dir)))
            if is_sharded(policy):  # all ranks gather
                write_weights(policy, folder, dtype, write=_rank() == 0)
            else:
                self._first(partial(write_weights, policy, folder, dtype))
            self._first(partial(self.servers.everywhere, partial(load, folder=folder)))

    def _send(self, nccl: NCCLTransfer, policy: ScoredCausalLM, dtype: torch.dtype) -> None:
        """Have the first rank send the weights; where they are sharded, all ranks gather each."""
        weights = PolicyWeights(policy, dtype)
        self._first(partial(nccl.join, weights, self.synced.version if self.synced else None))
        if _rank() > 0:
            weights.gather()
        self._first(partial(nccl.send, weights))

    def _meet(self) -> None:
        """Wait until no rank samples any more, in a group that waits as long as the first rank's sync may take."""
        if self._group is None and dist.is_initialized():
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=8 * self.timeout))
        if self._group is not None:
            dist.barrier(self._group)

    def _first(self, call: Callable[[], Outcome]) -> Outcome:
        """What a call on the first rank gives, on every rank; a collective. What it raises there is raised by all."""
        outcome: list[Any] = [None, ""]
        error: Exception | None = None
        if _rank() == 0:
            try:
                outcome[0] = call()
            except (OSError, RuntimeError, ValueError) as own:
                error, outcome[1] = own, str(own) or type(own).__name__
        if self._group is not None:
            dist.broadcast_object_list(outcome, src=0, group=self._group)
        if outcome[1]:
            raise error or RuntimeError(outcome[1])
        return outcome[0]  # type: ignore[no-any-return]

    def _find(self) -> tuple[torch.dtype, int]:
        """Find the servers that answer: the dtype of their weights, and tokens of prompt and completion at most."""
        self.servers.alive = list(self.servers.every)
        found = list(self.servers.everywhere(describe).values())
        if self.synced is None and self.servers.lost:
            why = "; ".join(f"{url}: {problem}" for url, problem in self.servers.lost.items())
            raise RuntimeError(f"All of the generator's servers have to answer at the start ({why}).")
        if len(dtypes := {settings["dtype"] for settings in found}) > 1:
            raise ValueError(f"The vLLM servers have weights in {', '.join(sorted(dtypes))}: give all one --dtype.")
        dtype = getattr(torch, dtypes.pop().removeprefix("torch."))
        return dtype, min(settings["max_model_len"] for settings in found)

    def _settle(self, policy: ScoredCausalLM, scores: Tensor, dtype: torch.dtype) -> tuple[str, list[str]]:
        """Name the weights that the servers were given and compare them: their version, and who has them."""
        version = uuid4().hex
        answers = self.servers.everywhere(partial(settle, version=version, ids=probe_ids(policy)))
        coarse = torch.bfloat16 if self._half and is_sharded(policy) else dtype  # FSDP rounds the policy's products
        for url, got in answers.items():
            name, before = f"the vLLM server at {url}", self._probed.get(url)
            check_scores(name, scores, got, before, coarse, self.probe_tolerance)
        self._probed = {url: (scores, got) for url, got in answers.items()}
        return version, list(answers)


def check_servers(urls: Sequence[str], transfer: str) -> None:
    """Raise ValueError unless the servers are addresses that weights can be sent to, and what sends them is there."""
    if importlib.util.find_spec("aiohttp") is None:
        raise ValueError("VLLMServerGenerator needs aiohttp: pip install -e '.[judge]'")
    if transfer == "nccl" and importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "VLLMServerGenerator sends weights over NCCL with vLLM's own code: "
            "pip install -e '.[vllm]' -c constraints-gpu.txt"
        )
    check_addresses(urls, "addresses such as http://localhost:8000")
    for url in urls:
        parts, shown = urlsplit(url), url.rpartition("@")[2]  # what stands before may be a password
        if parts.path not in ("", "/"):
            raise ValueError(f"servers must be addresses without a path, not {shown}")
        if transfer == "folder" and not is_loopback(parts.hostname or ""):
            raise ValueError(
                f"A server takes weights from a folder over the loopback alone, for the endpoint that loads them asks "
                f"nobody for a key, and {shown} is no loopback: give transfer nccl, or 127.0.0.1 or localhost."
            )


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0

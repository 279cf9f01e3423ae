"""Generation with vLLM: an engine beside the trainer that is given the policy's weights."""

import hashlib
import importlib.util
from collections.abc import Collection, Sequence
from contextlib import ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import PreTrainedConfig

from datamodules.loading import resolve_seed
from datamodules.system.arguments import declared
from datamodules.system.files import write_text
from lightning_modules.generators.base import Completion, check_limits, check_sampling, config_stop_ids, names_of
from lightning_modules.generators.engine_group import EngineGroup, ranks_of_node
from lightning_modules.generators.ipc_transfer import send_over_ipc
from lightning_modules.generators.vllm_engine import Engine, gpus_of_engine
from lightning_modules.generators.vllm_lora import MERGED, base_scores, check_lora, lora_options, write_apart
from lightning_modules.generators.vllm_probe import check_scores, probe_ids, probe_scores
from lightning_modules.generators.vllm_sampling import sampling_params
from lightning_modules.generators.weight_folder import temporary_folder, untied_config, write_weights
from lightning_modules.generators.weight_source import PolicyWeights
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.unshard import computing_device, is_sharded
from lightning_modules.ranks import failing_together, of_every_rank

CALLS = 6
"""Calls of an engine that ranks may wait for one after the other: start, wake, load, wake, empty the cache, score."""
UTILIZATION = 0.3
"""Share of a GPU that an engine has unless told otherwise."""


@declared
class VLLMGenerator:
    """Generates with a vLLM engine (arXiv 2309.06180), one per rank or group of ranks, started when first needed.

    The weights, adapters merged, reach the engines of a node through one folder of safetensors, which its first rank
    writes, or through the memory of the GPUs (`transfer`), at their start and whenever the policy scores a few ids
    otherwise than before; those of a sharded policy one after the other, without a whole copy of it anywhere. Then the
    engine scores the ids, too: if it disagrees with the policy, or the policy has moved and the engine has not, the run
    ends with a sentence. On a GPU the engine frees its memory when a batch of rollouts or an evaluation is over.

    With `enable_lora` nothing is merged: the weights go there once, and then adapters alone, which the engine applies.

    A completion depends on the weights, `seed`, its prompt's name and its number among the prompt's samples, up to the
    rounding of logits, in which the rows that happen to be computed together can differ. `Completion.logprobs` are
    those of the distribution sampled from: at the temperature, and renormalised where `top_p` is below 1.

    Args:
        max_new_tokens: Tokens after which a completion is cut.
        temperature: Divides the logits; 0 takes the most likely token.
        top_p: Sample only from the smallest set of tokens with this probability; 1 is all of them.
        seed: Of the sampling noise; that of the run (`seed_everything`) when None.
        progress: Whether to show a progress bar.
        timeout: Seconds that the engine's start, each part of a sync, and each call may take.
        probe_tolerance: Greatest mean difference, in nats, between the log-probabilities of engine and policy. When
            None: 0.005 for an engine in float32; for others 0.25 or, where that is more, what rounding may do by the
            spread of the policy's (`policy.probe.rounding`; 0.088 of it in bfloat16).
        sleep: Whether the engine frees its GPU memory while the policy learns; without effect on the CPU.
        weights_dir: Where each node's folder of weights is made; a file system in memory is fastest. Python's choice
            when None.
        dtype: Of the engine's weights; when None bfloat16 if `trainer.precision` has 16 in it, else the policy's.
        max_model_len: Tokens that prompt and completion may have together; when None those of the run's longest prompt
            and completion, or outside of a run as many as there is memory for.
        tensor_parallel_size: GPUs of one engine: so many neighbouring ranks of a node share it, for models that are too
            large for one of them.
        gpu_memory_utilization: Share of the device's memory that the engine may use (of the machine's, on the CPU).
        kv_cache_gib: GiB of its key-value cache; what that share leaves room for when None.
        enforce_eager: Neither compile nor capture graphs: starts sooner, generates more slowly.
        enable_lora: Send adapters alone (`model.lora`), which the engine applies: a sync is of megabytes, and what they
            have learnt is not rounded with bfloat16 weights; the engine generates more slowly, and keeps its weights in
            the machine's memory while it sleeps. False merges them and sends all weights.
        transfer: "folder" sends weights through files, "ipc" through the memory of the GPUs that policy and engine are
            on, which is to be faster; no GPU has run it.

    Raises:
        ValueError: If a setting is out of its range or does not go with another, or vLLM is not installed.
    """

    reports_logprobs = True

    def __init__(
        self,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        progress: bool = False,
        timeout: float = 1800.0,
        probe_tolerance: float | None = None,
        sleep: bool = True,
        weights_dir: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        max_model_len: int | None = None,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = UTILIZATION,
        kv_cache_gib: float | None = None,
        enforce_eager: bool = False,
        enable_lora: bool = False,
        transfer: Literal["folder", "ipc"] = "folder",
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(
                "VLLMGenerator needs vLLM: pip install -e '.[vllm]' -c constraints-gpu.txt, or use HFGenerator."
            )
        check_limits(timeout, probe_tolerance, max_new_tokens=max_new_tokens, tensor_parallel_size=tensor_parallel_size)
        if enable_lora and transfer == "ipc":
            raise ValueError(
                "transfer ipc sends all weights, and enable_lora adapters alone, as files: give one of both."
            )
        check_sampling(temperature, top_p)
        self.max_new_tokens, self.temperature, self.top_p = max_new_tokens, temperature, top_p
        self.seed = resolve_seed(seed)
        self.progress, self.timeout, self.probe_tolerance = progress, timeout, probe_tolerance
        self.sleep, self.weights_dir, self.dtype = sleep, weights_dir, dtype
        self.options = {
            "max_model_len": max_model_len,
            "gpu_memory_utilization": gpu_memory_utilization,
            "kv_cache_memory_bytes": None if kv_cache_gib is None else int(kv_cache_gib * 2**30),
            "enforce_eager": enforce_eager,
        }
        self.tensor_parallel_size = tensor_parallel_size
        self.enable_lora, self.transfer = enable_lora, transfer
        self.group: EngineGroup | None = None
        self.node: EngineGroup | None = None
        self.engine: Engine | None = None
        self._half, self._longest_prompt = False, None  # see `prepare`
        self._rests = False  # whether the engine has freed its GPU memory
        self._probed: tuple[Tensor, Tensor] | None = None  # scores by the policy and the engine after the last sync
        self._base: Tensor | None = None  # scores by the weights that adapters sit on, after the last sync

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
        """Sample `n` completions of each prompt; see `Generator`. A collective, for all ranks sync together.

        Raises:
            ValueError: If a prompt is empty or too long, `names` are not one per prompt, no stop id is known, or
                a setting is out of its range.
            TimeoutError: If the engine hangs.
            RuntimeError: If the engine fails or dies, or a sync does not work.
        """
        from vllm import SamplingParams

        temperature = self.temperature if temperature is None else temperature
        top_p = self.top_p if top_p is None else top_p
        check_sampling(temperature, top_p)
        names = names_of(prompts, names)
        stop = config_stop_ids(policy) if stop_ids is None else list(stop_ids)
        self._share()
        if self._is_behind(policy):
            self.sync(policy)
        if self._rests:  # the engine wakes up, on the GPUs of all ranks that share it
            torch.cuda.empty_cache()
            self._rests = False
        params = sampling_params(names, n, self.seed, self.max_new_tokens, stop, temperature, top_p)
        settings = [SamplingParams(**each) for each in params]
        rows = [prompt for prompt in prompts for _ in range(n)]
        completions = self.group.ask((rows, settings), self._answer)
        return [completions[i * n : (i + 1) * n] for i in range(len(prompts))]

    def sync(self, policy: ScoredCausalLM) -> None:
        """Give the engine the policy's weights, starting it where there is none, and check that it has them.

        Every rank calls it. The first one of each node writes the weights. Those that share an engine with another that
        runs it help to gather a sharded policy, make room for the engine, and wait until it is done.

        Raises:
            OSError: If there is no room for the weights; a ValueError on ranks that do not write them.
            ValueError: If a weight is not finite, or there are no adapters to `enable_lora` for; the engine is left as
                it was.
            TimeoutError: If the engine hangs.
            RuntimeError: If the engine fails or dies, or does not score ids as the policy does.
        """
        self._share()
        takes_part = self.group.leads or is_sharded(policy)
        want = probe_scores(policy) if takes_part else torch.empty(0)
        if self.transfer == "ipc":
            self._send(policy)
        else:
            self._load(policy, takes_part)
        self._rests = False
        if self.group.leads:
            self._check(policy, want)
        else:
            self._probed = want, want
        self._wait()  # their GPUs are the engine's as it starts, loads and scores: what they compute next comes after

    def check(self, lora: LoRA | None, precision: str, device: torch.device) -> None:
        """Raise where the engine has too few GPUs or cannot apply the adapters, before any weight is loaded.

        Warns where they are merged into weights that are too coarse for what they learn at first.

        Raises:
            ValueError: See `gpus_of_engine` and `check_lora`; or there is no GPU whose memory `transfer` could go by.
        """
        if self.transfer == "ipc" and device.type != "cuda":
            raise ValueError(
                "The generator's transfer ipc sends weights through a GPU's memory, and this run has no GPU: give "
                "transfer folder."
            )
        if device.type == "cuda":
            shared = self.tensor_parallel_size
            gpus_of_engine((device.index or 0) // shared * shared, shared)  # from the rank's on that runs it
        dtype = self.dtype or ("bfloat16" if "16" in precision else "float32")
        if self.enable_lora:
            check_lora(lora, getattr(torch, dtype), device)
        elif lora is not None and dtype != "float32":
            rank_zero_warn(
                MERGED.format(dtype) + "set model.generator.enable_lora to true: the engine applies them then."
            )

    def prepare(self, precision: str, longest_prompt: int | None) -> None:
        """Take from the run what the settings leave open; see `HoldsWeights`."""
        self._half, self._longest_prompt = "16" in precision, longest_prompt

    def longest_row(self, config: PreTrainedConfig, longest_prompt: int) -> int:
        """Tokens that a prompt and its completion may have together, where the longest prompt has so many."""
        wanted = longest_prompt + self.max_new_tokens
        positions = getattr(config.get_text_config(), "max_position_embeddings", None) or wanted
        return self.options["max_model_len"] or min(wanted, positions)

    def rest(self, stale: bool = False) -> None:
        """Free the engine's GPU memory until the next call; see `HoldsWeights`."""
        if self.engine is not None:
            self.engine.rest(level=2 if stale and not self.enable_lora else 1)
        self._wait()
        self._rests = True

    def _share(self) -> None:
        if self.group is None:
            size, timeout = self.tensor_parallel_size, CALLS * self.timeout
            self.group, self.node = EngineGroup(size, timeout), EngineGroup(ranks_of_node(size), timeout)

    def _wait(self) -> None:
        """Wait for the ranks that share the engine; a collective."""
        if self.group is not None:
            self.group.wait()

    def _is_behind(self, policy: ScoredCausalLM) -> bool:
        """Whether the engine of any rank needs a sync, in which all take part."""
        behind = self._probed is None or (self.engine is not None and self.engine.emptied)
        if self._probed is not None and (is_sharded(policy) or self.group.leads):
            behind |= not torch.equal(self._probed[0], probe_scores(policy))
        return any(of_every_rank(behind))

    def _answer(self, requests: list[tuple[list[Sequence[int]], list[Any]]]) -> list[list[Completion]]:
        """Completions for the rows of every rank that shares the engine."""
        rows = [row for rows, _ in requests for row in rows]
        settings = [each for _, settings in requests for each in settings]
        longest = max(map(len, rows), default=0) + self.max_new_tokens
        if longest > self.engine.max_model_len:
            raise ValueError(
                f"A prompt and its completion may be {longest} tokens long, and the vLLM engine takes "
                f"{self.engine.max_model_len}: raise the generator's max_model_len, or lower max_new_tokens or the "
                "length of prompts."
            )
        completions = iter([_completion(row.outputs[0]) for row in self.engine.generate(rows, settings, self.progress)])
        return [list(islice(completions, len(request[0]))) for request in requests]

    def _send(self, policy: ScoredCausalLM) -> None:
        """Give the engine weights through the memory of the GPUs."""
        weights = PolicyWeights(policy, self._engine_dtype(policy))
        torch.cuda.empty_cache()  # without effect where there is no GPU
        self._wait()  # by now the GPU of each has room
        self._start_if_first(policy)
        self.node.wait()  # on the CPU: the collectives that follow would wait on GPUs
        with self.engine.loading() if self.group.leads else nullcontext():
            send_over_ipc(weights, self.engine)

    def _load(self, policy: ScoredCausalLM, takes_part: bool) -> None:
        """Give the engine weights, adapters or both through files."""
        base = base_scores(policy) if takes_part and self.enable_lora else None
        changed = takes_part and (base is None or self._base is None or not torch.equal(base, self._base))
        changed = any(of_every_rank(changed))  # adapters alone would not do
        with ExitStack() as stack:
            with failing_together():
                folder = stack.enter_context(temporary_folder(self.weights_dir)) if self.node.leads else ""
            with failing_together():
                folders = self._write(policy, folder, changed) if self.node.leads or is_sharded(policy) else ()
            folders = of_every_rank(folders)[self.node.first]
            torch.cuda.empty_cache()  # without effect where there is no GPU
            self._wait()  # by now the GPU of each has room
            self._start_if_first(policy)
            if self.engine is not None:
                self.engine.load(*folders)
            self.node.wait()  # all have read the folder, which is removed now
        self._base = base

    def _write(self, policy: ScoredCausalLM, folder: str, weights: bool) -> Sequence[str | None]:
        """Write what engines are to load; gives the folders of weights (None without `weights`) and of adapters."""
        dtype, write = self._engine_dtype(policy), self.node.leads
        if self.enable_lora:
            return folder if weights else None, write_apart(policy, folder, dtype, weights, write)
        write_weights(policy, folder, dtype, write)
        return folder, None

    def _engine_dtype(self, policy: ScoredCausalLM) -> torch.dtype:
        if self.dtype is not None:
            return getattr(torch, self.dtype)
        return torch.bfloat16 if self._half else policy.causal_lm.dtype

    def _max_model_len(self, config: PreTrainedConfig) -> int:
        if self._longest_prompt is None:
            return self.options["max_model_len"] or -1  # for vLLM: as many as there is memory for
        return self.longest_row(config, self._longest_prompt)

    def _start_if_first(self, policy: ScoredCausalLM) -> None:
        if self.group.leads and self.engine is None:
            self.engine = self._start(policy, _config_folder(untied_config(policy, self._engine_dtype(policy))))

    def _start(self, policy: ScoredCausalLM, folder: str) -> Engine:
        options = self.options | {"dtype": self._engine_dtype(policy), "seed": self.seed, "load_format": "dummy"}
        options |= {"tensor_parallel_size": self.tensor_parallel_size}
        options |= {"max_model_len": self._max_model_len(policy.causal_lm.config)}
        options |= lora_options(policy) if self.enable_lora else {}
        options |= {"weight_transfer_config": {"backend": "ipc"}} if self.transfer == "ipc" else {}
        return Engine(folder, computing_device(policy), self.timeout, self.sleep, **options)

    def _check(self, policy: ScoredCausalLM, want: Tensor) -> None:
        """Compare the engine with the policy's scores, and how far both have moved since the last sync."""
        got = self.engine.score(probe_ids(policy))
        coarse = torch.bfloat16 if self._half and is_sharded(policy) else self._engine_dtype(policy)  # FSDP rounds, too
        check_scores("the vLLM engine", want, got, self._probed, coarse, self.probe_tolerance)
        self._probed = want, got


def _config_folder(config: PreTrainedConfig) -> str:
    """A folder of a config alone, the same one for the same config: vLLM's compiled code is found by the path."""
    from vllm import envs

    text = config.to_json_string()
    folder = Path(envs.VLLM_CACHE_ROOT) / "funreason" / hashlib.sha256(text.encode()).hexdigest()[:16]
    write_text(folder / "config.json", text, fsync=False)
    return str(folder)


def _completion(output: Any) -> Completion:
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"The vLLM engine gave up a completion: its finish reason is {output.finish_reason}.")
    ids = list(output.token_ids)
    logprobs = [entry[token].logprob for token, entry in zip(ids, output.logprobs, strict=True)]
    return Completion(ids, output.finish_reason, logprobs)

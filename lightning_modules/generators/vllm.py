"""Generation with vLLM: an engine beside the trainer that is given the policy's weights."""

import importlib.util
import tempfile
from collections.abc import Collection, Sequence
from copy import deepcopy
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from datamodules.loading import resolve_seed
from lightning_modules.generators.base import Completion, check_sampling, config_stop_ids, names_of
from lightning_modules.generators.engine_group import EngineGroup
from lightning_modules.generators.probe import check_scores, probe_ids, probe_scores
from lightning_modules.generators.sampling import row_key
from lightning_modules.generators.vllm_engine import Engine
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.unshard import merged_weights


class VLLMGenerator:
    """Generates with a vLLM engine (arXiv 2309.06180), one per rank or group of ranks, started when first needed.

    The weights, adapters merged, reach the engine through a folder of safetensors, at its start and whenever the policy
    scores a few ids otherwise than before. Then the engine scores them, too: if it disagrees with the policy, or the
    policy has moved and the engine has not, the run ends with a sentence. On a GPU the engine frees its memory whenever
    a call of it is over.

    A completion depends on the weights, `seed`, its prompt's id and its number among the prompt's samples, up to the
    rounding of logits, in which the rows that happen to be computed together can differ. `Completion.logprobs` are
    those of the distribution sampled from: at the temperature, and renormalised where `top_p` is below 1.

    Args:
        max_new_tokens: Tokens after which a completion is cut.
        temperature: Divides the logits; 0 takes the most likely token.
        top_p: Sample only from the smallest set of tokens with this probability; 1 is all of them.
        seed: Of the sampling noise; that of the run (`seed_everything`) when None.
        progress: Whether to show a progress bar.
        timeout: Seconds that the engine's start, each part of a sync, and each call may take.
        probe_tolerance: Greatest mean difference, in nats, between the log-probabilities of engine and policy; 0.005
            for an engine in float32 and 0.25 for others when None.
        sleep: Whether the engine frees its GPU memory after a call; without effect on the CPU.
        weights_dir: Where the folder of weights is made; a file system in memory is fastest. Python's choice when None.
        dtype: Of the engine's weights; the policy's when None.
        max_model_len: Tokens that prompt and completion may have together; as many as the model has when None.
        tensor_parallel_size: GPUs of one engine: so many neighbouring ranks of a node share it, for models that are too
            large for one of them.
        gpu_memory_utilization: Share of the device's memory that the engine may use (of the machine's, on the CPU).
        kv_cache_gib: GiB of its key-value cache; what that share leaves room for when None.
        enforce_eager: Neither compile nor capture graphs: starts sooner, generates more slowly.

    Raises:
        ValueError: If a setting is out of its range, or vLLM is not installed.
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
        gpu_memory_utilization: float = 0.3,
        kv_cache_gib: float | None = None,
        enforce_eager: bool = False,
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ValueError("VLLMGenerator needs vLLM: pip install -e '.[vllm]', or use HFGenerator.")
        if (
            min(max_new_tokens, tensor_parallel_size) < 1
            or timeout <= 0
            or (probe_tolerance is not None and probe_tolerance <= 0)
        ):
            raise ValueError(
                "max_new_tokens and tensor_parallel_size must be at least 1, timeout and probe_tolerance greater than "
                f"0, got {max_new_tokens}, {tensor_parallel_size}, {timeout} and {probe_tolerance}."
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
        self.group: EngineGroup | None = None
        self.engine: Engine | None = None
        self._probed: tuple[Tensor, Tensor] | None = None  # scores by the policy and the engine after the last sync

    def __call__(
        self,
        policy: ScoredCausalLM,
        prompts: Sequence[Sequence[int]],
        prompt_ids: Sequence[str | int] | None = None,
        n: int = 1,
        stop_ids: Collection[int] | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> list[list[Completion]]:
        """Sample `n` completions of each prompt; see `Generator`.

        Raises:
            ValueError: If a prompt is empty or too long, `prompt_ids` are not one per prompt, no stop id is known, or
                a setting is out of its range.
            TimeoutError: If the engine hangs.
            RuntimeError: If the engine fails or dies, or a sync does not work.
        """
        from vllm import SamplingParams

        temperature = self.temperature if temperature is None else temperature
        top_p = self.top_p if top_p is None else top_p
        check_sampling(temperature, top_p)
        names = names_of(prompts, prompt_ids)
        stop = config_stop_ids(policy) if stop_ids is None else list(stop_ids)
        self._share()
        if self.group.leads and (self._probed is None or not torch.equal(self._probed[0], probe_scores(policy))):
            self.sync(policy)
        settings = [
            SamplingParams(
                max_tokens=self.max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=row_key(self.seed, name, sample) % 2**63,
                stop_token_ids=stop,
                ignore_eos=True,  # what ends a completion are the ids above
                detokenize=False,
                logprobs=0,  # of the sampled id alone
            )
            for name in names
            for sample in range(n)
        ]
        rows = [prompt for prompt in prompts for _ in range(n)]
        completions = self.group.ask((rows, settings), self._answer)
        return [completions[i * n : (i + 1) * n] for i in range(len(prompts))]

    def _share(self) -> None:
        if self.group is None:
            self.group = EngineGroup(self.tensor_parallel_size)

    def _answer(self, requests: list[tuple[list[Sequence[int]], list[Any]]]) -> list[list[Completion]]:
        """Completions for the rows of every rank that shares the engine."""
        rows, settings = ([item for request in requests for item in request[part]] for part in (0, 1))
        longest = max(map(len, rows), default=0) + self.max_new_tokens
        if longest > self.engine.max_model_len:
            raise ValueError(
                f"A prompt and its completion may be {longest} tokens long, and the vLLM engine takes "
                f"{self.engine.max_model_len}: raise the generator's max_model_len, or lower max_new_tokens or the "
                "length of prompts."
            )
        completions = iter([_completion(row.outputs[0]) for row in self.engine.generate(rows, settings, self.progress)])
        self.engine.rest()
        return [list(islice(completions, len(request[0]))) for request in requests]

    def sync(self, policy: ScoredCausalLM) -> None:
        """Give the engine the policy's weights, starting it where there is none, and check that it has them.

        Ranks that share an engine with another that runs it have nothing to do.

        Raises:
            ValueError: If a weight is not finite; the engine is left as it was.
            TimeoutError: If the engine hangs.
            RuntimeError: If the engine fails or dies, or does not score ids as the policy does.
        """
        self._share()
        if not self.group.leads:
            return
        with tempfile.TemporaryDirectory(prefix="funreason-weights-", dir=self.weights_dir) as folder:
            write_weights(policy, folder, self._engine_dtype(policy))
            if self.engine is None:
                self.engine = self._start(policy, folder)
            else:
                self.engine.load(folder)
        self._check(policy)

    def _engine_dtype(self, policy: ScoredCausalLM) -> torch.dtype:
        return policy.causal_lm.dtype if self.dtype is None else getattr(torch, self.dtype)

    def _start(self, policy: ScoredCausalLM, folder: str) -> Engine:
        options = self.options | {"dtype": self._engine_dtype(policy), "seed": self.seed}
        options |= {"tensor_parallel_size": self.tensor_parallel_size}
        return Engine(folder, policy.causal_lm.device, self.timeout, self.sleep, **options)

    def _check(self, policy: ScoredCausalLM) -> None:
        """Compare the engine with the policy, and how far both have moved since the last sync."""
        want, got = probe_scores(policy), self.engine.score(probe_ids(policy))
        check_scores("the vLLM engine", want, got, self._probed, self._engine_dtype(policy), self.probe_tolerance)
        self._probed = want, got


def write_weights(policy: ScoredCausalLM, folder: str, dtype: torch.dtype) -> None:
    """Write the weights, adapters merged, as those of a model whose head is not tied to its embedding.

    vLLM on the CPU keeps a packed copy of the head, and leaves the old one in place where weights are tied.

    Args:
        policy: Whose weights.
        folder: An empty one; it then holds safetensors and the model's config.
        dtype: In which they are written.

    Raises:
        ValueError: If a weight is not finite.
    """
    model = policy.causal_lm
    state = {name: tensor.to("cpu", dtype) for name, tensor in merged_weights(policy)}
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise ValueError(f"The weight {name} is not finite in {dtype}: the vLLM engine was not given it.")
    head = model.get_output_embeddings()
    name = next(f"{name}.weight" for name, module in model.named_modules() if module is head)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    model.should_save_on_this_rank = lambda _: True  # transformers saves on the first rank; each may have an engine
    model.save_pretrained(folder, state_dict=state | {name: state[name].clone()})
    del model.should_save_on_this_rank
    if bars:
        transformers_logging.enable_progress_bar()
    config = deepcopy(model.config)
    config.tie_word_embeddings = False
    config.save_pretrained(folder)


def _completion(output: Any) -> Completion:
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"The vLLM engine gave up a completion: its finish reason is {output.finish_reason}.")
    ids = list(output.token_ids)
    logprobs = [entry[token].logprob for token, entry in zip(ids, output.logprobs, strict=True)]
    return Completion(ids, output.finish_reason, logprobs)

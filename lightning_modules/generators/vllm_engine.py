"""A vLLM engine in processes of its own; a call that fails or runs out of time raises a sentence that says so."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from datamodules.system.guard import environment_of_children, kill_at_exit
from datamodules.system.threads import in_thread

AFTERWARDS = "resume from the last checkpoint with --ckpt_path."


class Engine:
    """A running `vllm.LLM` that samples and scores token ids; it needs no tokenizer.

    The `LLM` lives here and computes in child processes: if they hang or die this one can say so, and the random
    generators that vLLM seeds, and the distributed groups that it sets up, are not the trainer's.

    Args:
        folder: Hugging Face folder of the weights to start with.
        device: Of the rank that starts it.
        timeout: Seconds that the start and each call may take.
        sleep: Whether `rest` frees GPU memory; without effect on the CPU, where vLLM cannot.
        **options: Of `vllm.LLM`. With `load_format="dummy"` the folder needs no weights but its config.json: `load`
            gives them.

    Attributes:
        emptied: Whether its weights were let go of: it has to `load` some before it generates.

    Raises:
        TimeoutError: If the start, or a call, takes longer; the engine is gone then.
        RuntimeError: If the engine cannot start, or, in a call, fails or dies.
    """

    def __init__(self, folder: str, device: torch.device, timeout: float, sleep: bool, **options: Any) -> None:
        self.timeout = timeout
        self._sleeps = sleep and device.type == "cuda"
        self._asleep: list[str] = []  # parts of its GPU memory that are freed
        self._adapters: Any = None  # the `LoRARequest` that names them
        self.emptied = options.get("load_format") == "dummy"
        self._llm: Any = None
        torch.cuda.empty_cache()  # without effect where there is no GPU
        if "weight_transfer_config" in options:  # its processes unpickle where weights are; both sides must know
            os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        with _own_environment(device, options.get("tensor_parallel_size", 1)):
            from vllm import LLM

            self._llm = self._ask(
                "starting",
                LLM,
                folder,
                skip_tokenizer_init=True,
                generation_config="vllm",  # none of the model's own sampling settings
                logprobs_mode="processed_logprobs",  # after temperature and top-p, as it samples
                enable_sleep_mode=self._sleeps,
                sleep_mode_offload_cudagraph=self._sleeps,  # graphs would stay on the GPU
                use_tqdm_on_load=False,
                **options,
            )
        self.max_model_len: int = self._llm.model_config.max_model_len
        processes = self._llm.llm_engine.engine_core.resources.engine_manager.processes
        self._guard = kill_at_exit([process.pid for process in processes])
        if self.emptied:  # a loader of that format knows no files to reload
            overrides = {"load_config": {"load_format": "auto"}}
            self._ask("starting", self._llm.collective_rpc, "update_config", kwargs={"overrides": overrides})

    def load(self, weights: str | None, adapters: str | None = None) -> None:
        """Take over weights and adapters, and forget what was computed with the old ones.

        Args:
            weights: Their folder; None keeps those that the engine has.
            adapters: Folder, as peft writes it, of those that it applies from now on, in an engine that was started
                with `enable_lora`.
        """
        with self.loading():
            if weights is not None:
                self.tell("reload_weights", weights_path=weights)
            if adapters is not None:
                self._apply(adapters)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Context in which the engine takes over weights; after it what was computed with the old ones is forgotten."""
        self._wake("weights")  # the cache later: it would be in the way while old and new weights are in memory
        yield
        self._wake("kv_cache")
        if not self._ask("emptying its prefix cache", self._llm.reset_prefix_cache):
            raise RuntimeError("The vLLM engine kept a prefix cache that was computed with the old weights.")
        self.emptied = False

    def tell(self, method: str, **arguments: Any) -> None:
        """Call a method of the engine's workers that has to do with weights."""
        self._ask("loading weights", self._llm.collective_rpc, method, kwargs=arguments)

    def generate(self, prompts: Sequence[Sequence[int]], settings: Sequence[Any], progress: bool = False) -> list[Any]:
        """Run each prompt with its `vllm.SamplingParams`; gives a `vllm.RequestOutput` for each."""
        self._wake("weights", "kv_cache")
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        doing = f"generating {len(requests)} completions"
        options = {"use_tqdm": progress, "lora_request": self._adapters}
        return self._ask(doing, self._llm.generate, requests, list(settings), **options)

    def score(self, ids: Sequence[int]) -> Tensor:
        """Log-probability of each of T ids but the first, given those before it, at temperature 1, [T - 1], float32."""
        from vllm import SamplingParams

        setting = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        scored = self.generate([ids], [setting])[0].prompt_logprobs
        return torch.tensor([scored[i][ids[i]].logprob for i in range(1, len(ids))], dtype=torch.float32)

    def rest(self, level: int = 1) -> None:
        """Free the GPU memory until the next call.

        Args:
            level: 1 keeps the weights in the machine's memory; 2 lets go of them, for those who `load` others next.
        """
        if self._sleeps and not self._asleep:
            self._ask("going to sleep", self._llm.sleep, level=level)
            self._asleep, self.emptied = ["weights", "kv_cache"], level == 2

    def close(self) -> None:
        """End the engine's processes, by force after a second; Python's exit does it too."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown(timeout=1)
            self._guard.communicate()

    def _apply(self, adapters: str) -> None:
        from vllm.lora.request import LoRARequest

        request = LoRARequest("policy", 1, adapters, load_inplace=True)  # in place of those of the same number
        self._ask("loading adapters", self._llm.llm_engine.add_lora, request)
        self._adapters = LoRARequest("policy", 1, adapters)  # which are there already: the folder is not read again

    def _wake(self, *parts: str) -> None:
        for part in parts:
            if part in self._asleep:
                torch.cuda.empty_cache()  # what this process keeps for later is not free for the engine
                self._ask(f"waking up its {part}", self._llm.wake_up, [part])
                self._asleep.remove(part)

    def _is_dead(self) -> bool:
        return self._llm is not None and self._llm.llm_engine.engine_core.resources.engine_dead

    def _ask(self, doing: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Make a call from another thread, for nothing stops one that waits for a process that hangs."""
        outcome = in_thread(call, *args, **kwargs)
        deadline = time.monotonic() + self.timeout
        while not (outcome.done() or self._is_dead()) and (left := deadline - time.monotonic()) > 0:
            wait([outcome], min(left, 1.0))  # vLLM itself waits for ever for an engine that was killed
        error = outcome.exception() if outcome.done() else None
        if self._is_dead():
            raise RuntimeError(
                f"The vLLM engine died while {doing}: its own output above says why; {AFTERWARDS}"
            ) from error
        if not outcome.done():
            self.close()
            raise TimeoutError(
                f"The vLLM engine was {doing} for more than {self.timeout:g} s and was stopped: raise the generator's "
                f"timeout if that is too little; {AFTERWARDS}"
            )
        if error is not None:
            raise RuntimeError(f"The vLLM engine failed while {doing}: {str(error).strip()}") from error
        return outcome.result()


def gpus_of_engine(first: int, count: int) -> list[str]:
    """The GPUs of an engine, as `CUDA_VISIBLE_DEVICES` names them.

    Args:
        first: Number of the first one among those that this process sees.
        count: How many; the others are the next ones.

    Raises:
        ValueError: If the process sees too few.
    """
    seen = torch.cuda.device_count()
    if first + count > seen:
        raise ValueError(
            f"An engine with the generator's tensor_parallel_size {count} takes GPUs {first} to {first + count - 1}, "
            f"and this rank sees {seen} in all: start the ranks so that each sees every GPU of its node (SLURM's "
            "--gpus-per-node, without --gpus-per-task and --gpu-bind), and give a divisor of their number."
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = visible.split(",") if visible else [str(number) for number in range(seen)]
    return named[first : first + count]


@contextmanager
def _own_environment(device: torch.device, count: int) -> Iterator[None]:
    """What the engine's processes inherit: this rank's GPU and the next ones, no usage reports, no distributed run."""
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn", "VLLM_NO_USAGE_STATS": "1"}
    own["VLLM_LOGGING_LEVEL"] = os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")
    if device.type == "cuda":
        own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus_of_engine(device.index or 0, count))
    with environment_of_children(own):
        yield

"""A judge in this process: vLLM's offline engine, which answers in batches whatever is waiting for an answer."""

import asyncio
import importlib.util
import os
from typing import Any

from datamodules.refinement.judging import JudgesLost, Question, finished_reply
from datamodules.system.guard import environment_of_children, kill_at_exit


class VLLMJudge:
    """Asks a model that runs in a vLLM engine on this machine's GPUs.

    Questions that arrive while the engine works wait, and are its next batch: give the run as many rows `in_flight` as
    the engine is to work on at a time.

    Args:
        model: A Hugging Face folder or a hub id, with a chat template.
        temperature: Of sampling.
        max_tokens: Longest reply.
        seed: Of sampling, mixed with what the question is.
        options: Further arguments of `vllm.LLM`, such as `tensor_parallel_size` and `max_model_len`.

    Raises:
        ValueError: vLLM is not installed.
    """

    def __init__(
        self,
        model: str,
        temperature: float = 0.0,
        max_tokens: int = 4096,
        seed: int = 0,
        options: dict[str, Any] | None = None,
    ) -> None:
        if importlib.util.find_spec("vllm") is None:
            raise ValueError(
                "VLLMJudge needs vLLM: pip install -e '.[vllm]' -c constraints-gpu.txt, or use OpenAIJudge"
            )
        self.model, self.temperature, self.max_tokens, self.seed = model, temperature, max_tokens, seed
        self.options = options or {}
        self._llm: Any = None
        self._guard: Any = None  # kills the engine if this process is killed
        self._waiting: list[tuple[Question, asyncio.Future[tuple[str, str | None]]]] = []
        self._working: asyncio.Task[None] | None = None

    async def __call__(self, question: Question) -> str:
        """The model's reply; see `Judge`.

        Raises:
            Unfinished: The reply was cut.
            JudgesLost: The engine fails.
        """
        reply: asyncio.Future[tuple[str, str | None]] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, reply))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
            self._working.add_done_callback(self._end)
        text, reason = await reply
        return finished_reply(text, reason or "none")  # the engine always gives one, of what has ended

    async def close(self) -> None:
        """End the engine's processes, by force after a second."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown(timeout=1)
            self._guard.communicate()
            self._llm = None

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # lets all who have just been answered ask their next question
            batch = list(self._waiting)
            replies = await asyncio.to_thread(self._generate, [question for question, _ in batch])
            for (_, waiting), reply in zip(batch, replies, strict=True):
                if not waiting.done():
                    waiting.set_result(reply)
            del self._waiting[: len(batch)]

    def _end(self, task: asyncio.Task[None]) -> None:
        """Whoever waits is told of the task's failure: nobody works for them any more."""
        if not task.cancelled() and (error := task.exception()) is not None:
            failure = JudgesLost(f"the vLLM engine of {self.model} fails: {error}")
            for _, waiting in self._waiting:
                if not waiting.done():
                    waiting.set_exception(failure)
            self._waiting.clear()

    def _generate(self, questions: list[Question]) -> list[tuple[str, str | None]]:
        from vllm import SamplingParams

        if self._llm is None:
            self._llm = self._start()
            processes = self._llm.llm_engine.engine_core.resources.engine_manager.processes
            self._guard = kill_at_exit([process.pid for process in processes])
        settings = [
            SamplingParams(temperature=self.temperature, max_tokens=self.max_tokens, seed=question.seed(self.seed))
            for question in questions
        ]
        outputs = self._llm.chat([question.messages for question in questions], settings, use_tqdm=False)
        return [(output.outputs[0].text, output.outputs[0].finish_reason) for output in outputs]

    def _start(self) -> Any:
        # Processes of its own, not forked: they must not hold the pipe that another judge's guard waits for.
        own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
        own["VLLM_NO_USAGE_STATS"] = os.environ.get("VLLM_NO_USAGE_STATS", "1")
        with environment_of_children(own):
            from vllm import LLM

            return LLM(self.model, use_tqdm_on_load=False, **self.options)

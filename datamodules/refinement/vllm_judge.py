"""A judge in this process: vLLM's offline engine, which answers in batches whatever is waiting for an answer."""

import asyncio
import importlib.util
import os
import zlib
from typing import Any

from datamodules.refinement.guard import kill_at_exit
from datamodules.refinement.judging import JudgesLost, Question


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
            raise ValueError("VLLMJudge needs vLLM: pip install -e '.[vllm]', or use OpenAIJudge")
        self.model, self.temperature, self.max_tokens, self.seed = model, temperature, max_tokens, seed
        self.options = options or {}
        self._llm: Any = None
        self._guard: Any = None  # kills the engine if this process is killed
        self._waiting: list[tuple[Question, asyncio.Future[str]]] = []
        self._working: asyncio.Task[None] | None = None

    async def __call__(self, question: Question) -> str:
        """The model's reply; see `Judge`.

        Raises:
            JudgesLost: The engine fails.
        """
        reply: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, reply))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await reply

    async def close(self) -> None:
        """End the engine's processes, by force after a second."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown(timeout=1)
            self._guard.communicate()
            self._llm = None

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # lets all who have just been answered ask their next question
            batch, self._waiting = self._waiting, []
            try:
                texts = await asyncio.to_thread(self._generate, [question for question, _ in batch])
            except Exception as error:  # whatever it is belongs to those who wait
                failure = JudgesLost(f"the vLLM engine of {self.model} fails: {error}")
                for _, reply in batch:
                    reply.set_exception(failure)
                return
            for (_, reply), text in zip(batch, texts, strict=True):
                if not reply.done():
                    reply.set_result(text)

    def _generate(self, questions: list[Question]) -> list[str]:
        from vllm import SamplingParams

        if self._llm is None:
            self._llm = self._start()
            processes = self._llm.llm_engine.engine_core.resources.engine_manager.processes
            self._guard = kill_at_exit([process.pid for process in processes])
        settings = [
            SamplingParams(temperature=self.temperature, max_tokens=self.max_tokens, seed=self._seed(question))
            for question in questions
        ]
        outputs = self._llm.chat([question.messages for question in questions], settings, use_tqdm=False)
        return [output.outputs[0].text for output in outputs]

    def _seed(self, question: Question) -> int:
        return zlib.crc32(f"{self.seed}\0{question.example.id}\0{question.stage}\0{question.attempt}".encode())

    def _start(self) -> Any:
        # Processes of its own, not forked: they must not hold the pipe that another judge's guard waits for.
        os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="1", VLLM_WORKER_MULTIPROC_METHOD="spawn")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm import LLM

        return LLM(self.model, use_tqdm_on_load=False, **self.options)

"""The judge's part in the life of its engine, whose place a process that sleeps takes; tests/vllm has a real one."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from datamodules.example import Example
from datamodules.refinement import Question, VLLMJudge
from datamodules.refinement.judging import JudgesLost, Unfinished

ROOT = Path(__file__).parents[3]
ENGINE = """
import os, subprocess
from types import SimpleNamespace as Namespace

class SamplingParams:
    def __init__(self, **options): pass

class LLM:
    def __init__(self, *arguments, **options):
        assert "RANK" not in os.environ and "MASTER_PORT" not in os.environ
        self.process = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL)
        resources = Namespace(engine_manager=Namespace(processes=[self.process]))
        core = Namespace(resources=resources, shutdown=lambda timeout: self.process.terminate())
        self.llm_engine = Namespace(engine_core=core)

    def chat(self, messages, settings, use_tqdm):
        return [Namespace(outputs=[Namespace(text="fine", finish_reason="stop")]) for _ in messages]
"""
ASKING = """
import asyncio, os, signal, sys
from datamodules.refinement import Question, VLLMJudge
from datamodules.example import Example

async def ask():
    judge = VLLMJudge("model")
    assert await judge(Question("query", Example("1", "request", "[]", "[f()]"))) == "fine"
    print(judge._llm.process.pid, flush=True)
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    await judge.close()

asyncio.run(ask())
"""


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # where nobody reaps it
    except psutil.NoSuchProcess:
        return False


@pytest.mark.kills
@pytest.mark.parametrize("end, code", [("killed", -signal.SIGKILL), ("closed", 0)])
def test_the_engine_ends_with_the_judge(end, code, tmp_path):
    (tmp_path / "vllm.py").write_text(ENGINE)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "RANK": "0", "MASTER_PORT": "1"}  # of the process alone
    command = [sys.executable, "-c", ASKING, end]
    asked = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    assert asked.returncode == code
    deadline = time.monotonic() + 60
    while is_running(int(asked.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(asked.stdout))


@pytest.fixture
def ask(monkeypatch):
    """What three questions come to where the engine's part is this function."""

    async def all_of_them():
        judge = VLLMJudge("model")
        questions = [Question("query", Example(str(n), f"request {n}", "[]", "[f()]")) for n in range(3)]
        async with asyncio.timeout(30):
            return await asyncio.gather(*map(judge, questions), return_exceptions=True)

    def run(generate):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
        monkeypatch.setattr(VLLMJudge, "_generate", generate)
        return asyncio.run(all_of_them())

    return run


def test_a_reply_that_is_cut_is_none(ask):
    reasons = ["stop", "length", None]  # an engine that gives no reason has not finished
    replies = ask(lambda judge, questions: [("fine", reason) for reason in reasons])
    assert replies[0] == "fine" and [type(reply) for reply in replies[1:]] == [Unfinished] * 2


def test_an_engine_that_fails_leaves_nobody_waiting(ask):
    def fail(judge, questions):
        raise MemoryError("no blocks")

    errors = ask(fail)
    assert [type(error) for error in errors] == [JudgesLost] * 3
    assert str(errors[0]) == "the vLLM engine of model fails: no blocks"


def test_an_engine_that_answers_too_little_leaves_nobody_waiting(ask):
    replies = ask(lambda judge, questions: [("fine", "stop")])
    assert replies[0] == "fine" and [type(reply) for reply in replies[1:]] == [JudgesLost] * 2

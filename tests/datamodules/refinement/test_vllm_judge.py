"""The judge's part in the life of its engine, whose place a process that sleeps takes; tests/vllm has a real one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[3]
ENGINE = """
import subprocess
from types import SimpleNamespace as Namespace

class SamplingParams:
    def __init__(self, **options): pass

class LLM:
    def __init__(self, *arguments, **options):
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
from datamodules.rows import Example

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


@pytest.mark.parametrize("end, code", [("killed", -signal.SIGKILL), ("closed", 0)])
def test_the_engine_ends_with_the_judge(end, code, tmp_path):
    (tmp_path / "vllm.py").write_text(ENGINE)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", ASKING, end]
    asked = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    assert asked.returncode == code
    deadline = time.monotonic() + 60
    while is_running(int(asked.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(asked.stdout))

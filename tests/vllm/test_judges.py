"""Judges against a real vLLM, its OpenAI-compatible server and its offline engine.

The model is random, so what it says is no judgement and ends where it is cut; this is about how it is asked.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from datamodules.example import Example
from datamodules.refinement import OpenAIJudge, Panel, Question, VLLMJudge, fcdr
from datamodules.refinement.judging import Unfinished
from datamodules.rows import to_example
from datamodules.toolbox.rows import make_corpus

QUESTIONS = [Question("query", Example(str(n), f"request {n}", "[]", "[f()]")) for n in range(6)]
OPTIONS = {"dtype": "float32", "max_model_len": 4096, "max_num_seqs": 8, "enforce_eager": True}
KILLED = """
import asyncio, contextlib, json, os, signal, sys
import psutil
from datamodules.refinement import Question, VLLMJudge
from datamodules.refinement.judging import Unfinished
from datamodules.example import Example

judge = VLLMJudge(sys.argv[1], max_tokens=4, options=json.loads(sys.argv[2]))
with contextlib.suppress(Unfinished):  # four tokens end nothing
    asyncio.run(judge(Question("query", Example("1", "request", "[]", "[f()]"))))
print("PIDS", *(process.pid for process in psutil.Process().children(recursive=True)), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
START = 500.0  # seconds that the server may take; half a minute where nothing else runs


@pytest.fixture(scope="module")
def server(small_heads_dir, tmp_path_factory):
    """The address of a vLLM server with the tiny model, on a free port of the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(small_heads_dir)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "4096", "--max-num-seqs", "8", "--enforce-eager"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    yield f"http://127.0.0.1:{port}/v1"
    print(log.read_text()[-2000:])  # shown where a test has failed
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ask(judge, questions=QUESTIONS):
    """Replies, or what is said of those that were cut; other exceptions take the place of a reply."""

    async def one(question):
        try:
            return await judge(question)
        except Unfinished as cut:
            return str(cut)

    async def all_of_them():
        try:
            return await asyncio.gather(*map(one, questions), return_exceptions=True)
        finally:
            await judge.close()

    return asyncio.run(all_of_them())


@pytest.mark.slow
def test_a_server_answers(server):
    """The judge waits for a server that is still loading its model: its patience is what the start takes."""
    replies = ask(OpenAIJudge("tiny", [server], max_tokens=16, patience=START))
    assert all(isinstance(reply, str) for reply in replies), replies
    assert any(replies)
    assert ask(OpenAIJudge("tiny", [server], max_tokens=16)) == replies  # greedy, and the same seeds
    warm = [ask(OpenAIJudge("tiny", [server], max_tokens=16, temperature=1.0, seed=seed)) for seed in (0, 0, 1)]
    assert warm[0] == warm[1] != warm[2]


@pytest.mark.slow
def test_what_the_server_refuses(server):
    (error,) = ask(OpenAIJudge("no such model", [server]), QUESTIONS[:1])
    assert isinstance(error, RuntimeError) and "has no model no such model" in str(error)
    long = Question("query", Example("1", "word " * 9000, "[]", "[f()]"))
    refused, answered = ask(OpenAIJudge("tiny", [server], max_tokens=16), [long, QUESTIONS[0]])
    assert type(refused).__name__ == "Unanswered" and "(400)" in str(refused) and isinstance(answered, str)


@pytest.mark.slow
def test_a_row_goes_through_the_stages(server):
    row = to_example(make_corpus("train", 1, 5)[0])
    judge = Panel([OpenAIJudge("tiny", [server], max_tokens=16)])

    async def refine():
        try:
            return await fcdr(row, judge)
        finally:
            await judge.close()

    outcome = asyncio.run(refine())
    last = outcome.verdicts[-1]
    assert not outcome.kept and last.passed is None and last.words and last.replies == 2
    assert json.loads(outcome.example.answers)


@pytest.mark.slow
def test_the_offline_engine_answers_as_the_server_does(server, small_heads_dir, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    replies = ask(VLLMJudge(str(small_heads_dir), max_tokens=16, options=OPTIONS))
    assert replies == ask(OpenAIJudge("tiny", [server], max_tokens=16))


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_the_engine_does_not_outlive_a_refinement_that_is_killed(small_heads_dir):
    command = [sys.executable, "-c", KILLED, str(small_heads_dir), json.dumps(OPTIONS)]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}
    killed = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, timeout=START, check=False)
    assert killed.returncode == -signal.SIGKILL
    pids = [int(pid) for line in killed.stdout.splitlines() if line.startswith("PIDS") for pid in line.split()[1:]]
    deadline = time.monotonic() + 60
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(pids) >= 3 and not any(map(is_running, pids))  # the engine's core, the guard and its `cat` at least

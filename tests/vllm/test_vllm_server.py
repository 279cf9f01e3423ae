"""Rollouts by two real vLLM servers on the CPU: completions, scores, weight syncs, a whole run; one is killed."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from itertools import chain, dropwhile
from pathlib import Path
from threading import Timer

import pytest
import torch
from training_runs import free_port, metrics, rewards_module

from datamodules.system.guard import kill_at_exit
from lightning_modules.cli import main
from lightning_modules.generators import HFGenerator, VLLMGenerator, VLLMServerGenerator
from lightning_modules.policy.model import LoRA, build_policy

ROOT = Path(__file__).resolve().parents[2]
MODEL = str(ROOT / "assets/tiny-base")
START = 500.0  # seconds that the servers may take; half a minute where nothing else runs
PROMPTS = [[5, 6, 7], [100, 200, 300, 8], [9] * 40, [11, 12], [1250, 40, 7]]
SMALL = ["--max-model-len", "2048", "--max-num-seqs", "8", "--enforce-eager"]
VOWELS = "def vowels(completion, tools, answers):\n    return sum(c in 'aeiou' for c in completion)\n"


@contextmanager
def serving(log):
    """A server of the tiny model, started as docs/vllm.md says: its address and its process, which leads a group."""
    port, environment = free_port(), {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    (line,) = re.findall(r"^```\n([^`]*api_server[^`]*)^```$", (ROOT / "docs/vllm.md").read_text(), re.MULTILINE)
    words = shlex.split(line.replace("\\\n", " ").replace("8000", str(port)).replace("MODEL", MODEL))
    command = list(dropwhile(lambda word: "=" in word, words))
    environment |= dict(word.split("=") for word in words[: -len(command)])
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command[1:], *SMALL],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )
    guard = kill_at_exit([-process.pid])  # the whole group, be these tests killed
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        print(log.read_text()[-2000:])  # shown where a test has failed
        guard.communicate()
        process.wait(30)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:
        started = [stack.enter_context(serving(folder / f"{i}.log")) for i in range(2)]
        deadline = time.monotonic() + START
        for url, process in started:
            while not answers(url):
                assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
                time.sleep(0.5)
        yield started


def answers(url):
    try:
        return urllib.request.urlopen(f"{url}/health", timeout=10).status == 200
    except OSError:
        return False


@pytest.fixture
def policy():
    return build_policy(MODEL)


@pytest.fixture
def generator(servers):
    return VLLMServerGenerator([url for url, _ in servers], max_new_tokens=8, timeout=300.0)


def ids(completions):
    return [[completion.token_ids for completion in samples] for samples in completions]


def gap(policy, prompts, completions, temperature):
    """Greatest difference between reported log-probabilities and those of the policy's full logits."""
    gaps = []
    for prompt, samples in zip(prompts, completions, strict=True):
        for sample in samples:
            with torch.no_grad():
                logits = policy.causal_lm(torch.tensor([prompt + sample.token_ids])).logits[0, len(prompt) - 1 : -1]
            scores = (logits / temperature).log_softmax(-1)[range(len(sample.token_ids)), sample.token_ids]
            gaps.append((scores - torch.tensor(sample.logprobs)).abs().max().item())
    return max(gaps)


def update(policy):
    """An optimizer step that makes some ids likelier."""
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    row = torch.tensor([PROMPTS[1] + PROMPTS[4]])
    policy(row[:, :-1], torch.arange(row.shape[1] - 1)[None], row[:, 1:]).logprobs.sum().neg().backward()
    optimizer.step()


def test_greedy_completions_end_where_those_of_transformers_do(generator, policy):
    plain = HFGenerator(max_new_tokens=8)
    free = generator(policy, PROMPTS, stop_ids=[])
    assert ids(free) == ids(plain(policy, PROMPTS, stop_ids=[]))
    assert {samples[0].finish_reason for samples in free} == {"length"}
    stop = [free[0][0].token_ids[4], free[2][0].token_ids[0]]
    ours, theirs = generator(policy, PROMPTS, stop_ids=stop), plain(policy, PROMPTS, stop_ids=stop)
    assert ids(ours) == ids(theirs)
    reasons = [samples[0].finish_reason for samples in ours]
    assert reasons == [samples[0].finish_reason for samples in theirs] and set(reasons) == {"stop", "length"}
    assert ours[2][0].token_ids == stop[1:] and len(ours[2][0].logprobs) == 1


def test_samples_are_those_of_an_engine_of_ones_own(generator, policy):
    """The same seeds draw the same noise, whichever server it is."""
    options = {"kv_cache_gib": 0.1, "max_model_len": 256, "enforce_eager": True}
    engine = VLLMGenerator(max_new_tokens=8, seed=generator.seed, **options)
    want = engine(policy, PROMPTS, "abcde", n=3, temperature=1.5, top_p=0.9)
    engine.engine.close()
    got = generator(policy, PROMPTS, "abcde", n=3, temperature=1.5, top_p=0.9)
    assert ids(got) == ids(want) and len({tuple(sample) for samples in ids(got) for sample in samples}) > 10
    pairs = zip(chain(*got), chain(*want), strict=True)
    assert all(mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-3) for mine, theirs in pairs)
    assert ids(generator(policy, PROMPTS[::-1], "edcba", n=3, temperature=1.5, top_p=0.9)) == ids(got)[::-1]


@pytest.mark.parametrize("lora", [None, LoRA(r=4)], ids=["full", "lora"])
def test_new_weights_reach_every_server(generator, lora):
    policy = build_policy(MODEL, lora=lora)
    before = generator(policy, PROMPTS, n=4, temperature=1.0)
    assert gap(policy, PROMPTS, before, 1.0) <= 5e-3
    for _ in range(2):  # the second step also moves the factor of an adapter whose other factor began as zero
        update(policy)
        assert gap(policy, PROMPTS, before, 1.0) > 5e-3
        after = generator(policy, PROMPTS, n=4, temperature=1.7)
        assert gap(policy, PROMPTS, after, 1.7) <= 5e-3
    assert ids(generator(policy, PROMPTS)) == ids(HFGenerator(max_new_tokens=8)(policy, PROMPTS)) and len(before) == 5


@pytest.mark.parametrize("ahead", [False, True])
def test_the_shipped_experiment_learns_from_samples_of_its_own(servers, tmp_path, monkeypatch, ahead):
    options = {
        "model.generator.init_args.servers": [url for url, _ in servers],
        "model.generator.init_args.max_new_tokens": 16,
        "model.sampling.ahead": str(ahead).lower(),
        "model.sampling.group_size": 4,
        "model.learning_rate": 0.001,
        "model.rewards": '{"vowels": {"function": "toy_rewards.vowels"}}',
        "model.reward_timeout": "null",
        "data.path": "toolbox:train:24",
        "data.val_path": "toolbox:heldout:2",
        "data.cache_dir": tmp_path / "cache",
        "data.prompts_per_step": 2,
        "trainer.default_root_dir": tmp_path / "run",
        "trainer.max_steps": 3,
        "trainer.val_check_interval": 2,
        "trainer.enable_progress_bar": "false",
    }
    monkeypatch.chdir(ROOT)
    files = ("configs/grpo.yaml", "configs/variants/grpo_vllm_server.yaml")
    with rewards_module(tmp_path, VOWELS):
        main(["fit", *(f"--config={file}" for file in files), *(f"--{key}={value}" for key, value in options.items())])
    logged = metrics(tmp_path / "run" / "egpo-fit-0", ("sampling/", "train/grad_norm", "time/"))
    for step in (1, 2, 3):  # all but the first sample from a policy that has been updated, or is going to be
        late = ahead and step > 1
        assert (logged[step, "sampling/logp_diff_max"] > 5e-3) == late
        assert logged[step, "sampling/is_ratio_raw_mean"] == pytest.approx(1, abs=0.2 if late else 1e-3)
        assert logged[step, "time/weight_sync"] > 0 and logged[step, "train/grad_norm"] > 0


def test_a_server_that_is_killed_is_done_without(servers, generator, policy):
    """The last test: it leaves one server, and then none."""
    generator.max_new_tokens, names = 256, range(160)  # seconds of work on an idle machine: the kill comes amid it
    prompts = [[5 + name, 6, 7] for name in names]
    generator.sync(policy)
    for url, _ in servers:  # by which a server that is started again is known
        with urllib.request.urlopen(f"{url}/weight_info", timeout=10) as answer:
            assert json.load(answer) == {"weight_version": generator.synced.version}
    (one, first), (other, second) = servers
    killing = Timer(0.5, os.killpg, (second.pid, signal.SIGKILL))
    killing.start()
    with pytest.warns(UserWarning, match=f"The vLLM server at {other} is lost") as warned:
        completions = generator(policy, prompts, stop_ids=[])
    killing.join()
    assert len(warned) == 1 and [server.url for server in generator.servers.alive] == [one]
    assert {len(sample.token_ids) for (sample,) in completions} == {256}
    assert gap(policy, prompts, completions, 1.0) <= 5e-3
    update(policy)
    completions = generator(policy, PROMPTS, n=2, temperature=1.0)
    assert gap(policy, PROMPTS, completions, 1.0) <= 5e-3
    os.killpg(first.pid, signal.SIGKILL)
    with (
        pytest.warns(UserWarning, match=f"{one} is lost"),
        pytest.raises(RuntimeError, match=f"No vLLM server answers any more .*{one}"),
    ):
        generator(policy, PROMPTS)

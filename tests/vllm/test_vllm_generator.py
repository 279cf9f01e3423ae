"""A real engine: it holds the policy's weights when it should, samples as told, and fails with a sentence."""

import inspect
import os
import signal
from pathlib import Path
from typing import get_args

import psutil
import pytest
import torch
from vllm import LLM
from vllm.config.lora import MaxLoRARanks
from vllm.device_allocator import DEFERRABLE_TAGS
from vllm.device_allocator.sleep_mode_backend import CuMemBackend
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as GPUModelRunnerV2
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from lightning_modules.generators import HFGenerator, VLLMGenerator
from lightning_modules.generators.vllm_engine import Engine
from lightning_modules.generators.vllm_lora import RANKS
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy

PROMPTS = [[5, 6, 7], [9], [30, 31, 32, 33, 34, 35, 36], [12, 13], [50, 60, 70, 80, 90]]
SCORED = [5, 6, 7, 100, 200, 300, 8, 9, 10, 11, 250, 40]
SMALL = {"max_new_tokens": 8, "max_model_len": 256, "kv_cache_gib": 0.1, "enforce_eager": True}


@pytest.fixture(scope="module")
def policy(small_heads_dir):
    return build_policy(str(small_heads_dir))


@pytest.fixture(scope="module")
def generator(policy):
    """Its engine starts inside what looks like a rank of two, to whose processes it must not belong."""
    with pytest.MonkeyPatch.context() as patch:
        torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "1", "WORLD_SIZE": "2"}
        for name, value in (torchrun | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
            patch.setenv(name, value)
        environment = dict(os.environ)
        generator = VLLMGenerator(**SMALL)
        generator.sync(policy)
        assert dict(os.environ) == environment
    yield generator
    generator.engine.close()


def scores(policy, prompt, completion, temperature=1.0):
    """The oracle: log-probabilities of a completion from the policy's full logits."""
    with torch.no_grad():
        logits = policy.causal_lm(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)[range(len(completion)), completion]


def gap(policy, prompts, completions, temperature=1.0):
    """Greatest difference between reported log-probabilities and the policy's."""
    return max(
        (scores(policy, prompt, sample.token_ids, temperature) - torch.tensor(sample.logprobs)).abs().max().item()
        for prompt, samples in zip(prompts, completions, strict=True)
        for sample in samples
    )


def update(policy, learning_rate):
    """An optimizer step that makes some ids likelier."""
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=learning_rate)
    ids = torch.tensor([SCORED])
    policy(ids[:, :-1], torch.arange(ids.shape[1] - 1)[None], ids[:, 1:]).logprobs.sum().neg().backward()
    optimizer.step()
    policy.zero_grad()


def ids(completions):
    return [[completion.token_ids for completion in samples] for samples in completions]


@pytest.fixture
def given(monkeypatch):
    """Bytes of the files of weights and of adapters that engines have loaded."""
    sizes, load = [], Engine.load

    def counted(engine, *folders):
        files = [Path(folder).glob("*.safetensors") if folder else [] for folder in folders]
        sizes.append(tuple(sum(file.stat().st_size for file in each) for each in files))
        load(engine, *folders)

    monkeypatch.setattr(Engine, "load", counted)
    return sizes


@pytest.mark.parametrize("target", ["all-linear", ["q_proj", "down_proj"]])
def test_adapters_go_over_alone_and_are_sampled_from_as_the_policy_has_them(small_heads_dir, given, target):
    """In vLLM q, k and v are one layer, of which a part may have an adapter."""
    policy = build_policy(str(small_heads_dir), lora=LoRA(r=4, target_modules=target))
    generator = VLLMGenerator(**SMALL, enable_lora=True)
    before = generator(policy, PROMPTS, n=2, temperature=1.0)
    assert gap(policy, PROMPTS, before) <= 5e-3
    for _ in range(2):
        update(policy, 1e-2)
        assert gap(policy, PROMPTS, before) > 5e-3
        before = generator(policy, PROMPTS, n=2, temperature=1.0)
        assert gap(policy, PROMPTS, before) <= 5e-3
    assert ids(generator(policy, PROMPTS, stop_ids=[])) == ids(HFGenerator(8)(policy, PROMPTS, stop_ids=[]))
    (weights, adapters), *later = given
    assert later == [(0, adapters)] * 2 and 0 < adapters < weights
    with torch.no_grad():
        policy.causal_lm.model.norm.weight.mul_(1.5)  # of what adapters sit on
    assert gap(policy, PROMPTS, before) > 5e-3
    assert gap(policy, PROMPTS, generator(policy, PROMPTS, n=2, temperature=1.0)) <= 5e-3
    assert given[3:] == [(weights, adapters)]
    generator.engine.close()


@pytest.mark.parametrize("lora", [None, LoRA(r=4)], ids=["full", "lora"])
def test_engine_scores_as_the_policy_after_a_sync_and_not_before(generator, small_heads_dir, lora):
    policy = build_policy(str(small_heads_dir), lora=lora)

    def difference():
        return (generator.engine.score(SCORED) - scores(policy, SCORED[:1], SCORED[1:])).abs().max().item()

    generator.sync(policy)
    assert difference() <= 5e-3
    for _ in range(2):  # the second step also moves the factor of an adapter whose other factor began as zero
        update(policy, 1e-2)
        assert difference() > 5e-3
        generator.sync(policy)
        assert difference() <= 5e-3


def test_a_policy_that_changed_is_synced_before_it_is_sampled_from(generator, small_heads_dir):
    policy = build_policy(str(small_heads_dir))
    before = generator(policy, PROMPTS, n=2, temperature=1.0)
    update(policy, 1e-2)
    assert gap(policy, PROMPTS, before) > 5e-3
    with torch.autocast("cpu", torch.bfloat16):  # as in a run of bf16-mixed, whose weights are float32
        after = generator(policy, PROMPTS, n=2, temperature=1.0)
    assert gap(policy, PROMPTS, after) <= 5e-3


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_reported_logprobs_are_those_at_the_temperature(generator, policy, temperature):
    completions = generator(policy, PROMPTS, n=3, temperature=temperature)
    assert gap(policy, PROMPTS, completions, temperature) <= 5e-3
    assert gap(policy, PROMPTS, completions, temperature * 1.2) > 5e-3


def test_samples_follow_the_temperature_and_stay_in_the_nucleus(generator, policy, monkeypatch):
    n, temperature, top_p = 600, 1.5, 0.8
    with torch.no_grad():
        p = (policy.causal_lm(torch.tensor(PROMPTS[:1])).logits[0, -1].double() / temperature).softmax(0)
    ordered, order = p.sort(descending=True)
    p[order[ordered.cumsum(0) - ordered >= top_p]] = 0.0
    p /= p.sum()
    monkeypatch.setattr(generator, "max_new_tokens", 1)
    samples = generator(policy, PROMPTS[:1], n=n, stop_ids=[], temperature=temperature, top_p=top_p)[0]
    drawn = torch.tensor([sample.token_ids[0] for sample in samples])
    assert (p[drawn] > 0).all()
    torch.testing.assert_close(
        torch.tensor([s.logprobs[0] for s in samples]), p[drawn].log().float(), atol=5e-3, rtol=0
    )
    likely = p.argmax()
    deviation = (p[likely] * (1 - p[likely]) / n) ** 0.5
    assert abs((drawn == likely).double().mean() - p[likely]) < 5 * deviation


def test_samples_depend_on_seed_and_prompt_id_alone(generator, policy):
    names = ["a", "b", "c", "d", "e"]
    want = ids(generator(policy, PROMPTS, names, n=3, temperature=1.0))
    torch.manual_seed(123)
    assert ids(generator(policy, PROMPTS[::-1], names[::-1], n=3, temperature=1.0)) == want[::-1]
    assert ids(generator(policy, PROMPTS[2:3], ["c"], n=2, temperature=1.0)) == [want[2][:2]]
    assert len({tuple(sample) for samples in want for sample in samples}) == 15
    assert ids(generator(policy, PROMPTS[:1], ["z"], n=3, temperature=1.0)) != want[:1]
    generator.seed = 1
    other = ids(generator(policy, PROMPTS, names, n=3, temperature=1.0))
    generator.seed = 0
    assert all(mine != theirs for mine, theirs in zip(want, other, strict=True))


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
    assert generator(policy, []) == []


def test_stop_ids_default_to_those_of_the_generation_config(generator, policy):
    free = generator(policy, PROMPTS[:1], stop_ids=[])[0][0].token_ids
    config = policy.causal_lm.generation_config
    previous, config.eos_token_id = config.eos_token_id, free[3]
    assert generator(policy, PROMPTS[:1])[0][0].token_ids == free[: free.index(free[3]) + 1]
    config.eos_token_id = previous


def test_a_prompt_too_long_for_the_engine_is_refused(generator, policy):
    with pytest.raises(
        ValueError, match=r"may be 257 tokens long, and the vLLM engine takes 256: raise .*max_model_len"
    ):
        generator(policy, [[5] * 249])
    assert len(generator(policy, [[5] * 248], stop_ids=[])[0][0].token_ids) == 8


def test_a_sync_without_effect_is_noticed(generator, small_heads_dir, monkeypatch):
    policy = build_policy(str(small_heads_dir))
    generator.sync(policy)
    monkeypatch.setattr(generator.engine, "load", lambda *folders: None)
    generator.sync(policy)  # nothing to change, so nothing is missing
    update(policy, 1e-7)
    with pytest.raises(
        RuntimeError, match=r"A weight sync changed nothing: the policy's .* moved by .* not moved at all"
    ):
        generator.sync(policy)
    update(policy, 1e-1)
    with pytest.raises(RuntimeError, match=r"nats from the policy's on average, more than probe_tolerance 0\.005"):
        generator.sync(policy)
    monkeypatch.undo()
    generator.sync(policy)


def test_a_weight_that_is_not_finite_does_not_reach_the_engine(generator, small_heads_dir):
    policy = build_policy(str(small_heads_dir))
    generator.sync(policy)
    before = generator.engine.score(SCORED)
    with torch.no_grad():
        policy.causal_lm.model.norm.weight[3] = torch.nan
    with pytest.raises(ValueError, match=r"The weight model\.norm\.weight is not finite"):
        generator.sync(policy)
    assert torch.equal(generator.engine.score(SCORED), before)


def test_vllm_takes_the_calls_that_only_a_gpu_makes():
    inspect.signature(LLM.sleep).bind(None, level=2)
    inspect.signature(LLM.wake_up).bind(None, ["weights"])
    assert "level == 2" in inspect.getsource(Worker.sleep)  # keeps the buffers, and nothing else
    # Graphs wait in the machine's memory at each level, and are back with whichever part wakes first.
    assert "sleep_mode_offload_cudagraph" in inspect.signature(EngineArgs).parameters
    assert '"cudagraph"' in inspect.getsource(CuMemBackend.suspend) and "cudagraph" not in DEFERRABLE_TAGS
    inspect.signature(Worker.update_config).bind(None, overrides={"load_config": {"load_format": "auto"}})
    for runner in (GPUModelRunner, GPUModelRunnerV2):
        inspect.signature(runner.reload_weights).bind(None, weights_path="folder")
        inspect.signature(runner.add_lora).bind(None, None)
    assert get_args(MaxLoRARanks)[-len(RANKS) :] == RANKS


def test_an_engine_finds_how_many_tokens_there_is_memory_for(policy):
    """Outside of a run nobody knows how long prompts will be, and the model could read 4,096 tokens."""
    generator = VLLMGenerator(**SMALL | {"max_model_len": None, "kv_cache_gib": 0.0005})
    completion = generator(policy, [[5, 6, 7]], stop_ids=[])
    # Keys and values of 2 layers x 1 head x 32 numbers x 4 bytes: 512 bytes a token, 1,048 tokens at most.
    assert len(completion[0][0].token_ids) == 8 and 8 < generator.engine.max_model_len < 1048
    generator.engine.close()


def test_an_engine_that_hangs_ends_in_time_with_a_sentence(policy):
    generator = VLLMGenerator(**SMALL)
    others = set(psutil.Process().children(recursive=True))
    generator.sync(policy)
    started = [p for p in psutil.Process().children(recursive=True) if p not in others]
    core = next(p for p in started if p.ppid() == os.getpid() and "resource_tracker" not in " ".join(p.cmdline()))
    workers = core.children(recursive=True)
    core.send_signal(signal.SIGSTOP)
    generator.engine.timeout = 5.0
    with pytest.raises(TimeoutError, match="The vLLM engine was loading weights for more than 5 s and was stopped"):
        generator.sync(policy)
    _, left = psutil.wait_procs([core, *workers], timeout=60)
    assert not left

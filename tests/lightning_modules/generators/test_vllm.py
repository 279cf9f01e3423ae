"""What of the vLLM generator needs no vLLM: settings, its processes' environment, sleep and wake, ways to fail.

A stand-in for `vllm.LLM` records what it is told; `make test-vllm` runs a real engine.
"""

import os
import signal
import subprocess
import sys
from collections import namedtuple
from importlib.machinery import ModuleSpec
from pathlib import Path
from threading import Event
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch
from transformers import AutoConfig

from datamodules.loading import PromptBatch
from lightning_modules import SRMLModule
from lightning_modules.generators import VLLMGenerator
from lightning_modules.generators.ipc_transfer import EngineClient
from lightning_modules.generators.vllm import _config_folder
from lightning_modules.generators.vllm_engine import Engine
from lightning_modules.generators.weight_folder import untied_config
from lightning_modules.policy.model import build_policy

ROOT = Path(__file__).resolve().parents[3]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


class StandIn:
    """Records calls in `log`; `fail` and `hang` name a call that does so, the latter until `end`."""

    fail: ClassVar[dict[str, Exception]] = {}
    hang = ""
    keeps_cache = False
    end: ClassVar[Event]

    def __init__(self, folder, **options):
        self.log = []
        self.options = options | {"folder": folder}
        self.environment = dict(os.environ)
        self.model_config = SimpleNamespace(max_model_len=100)
        resources = SimpleNamespace(engine_dead=False, engine_manager=SimpleNamespace(processes=[]))
        core = SimpleNamespace(resources=resources, shutdown=lambda timeout: self.note("shutdown"))
        self.llm_engine = SimpleNamespace(engine_core=core, add_lora=self.add_lora)
        self.note("start")

    def note(self, *call):
        self.log.append(call)
        if call[0] in self.fail:
            raise self.fail[call[0]]
        if call[0] == self.hang:
            self.end.wait()

    def generate(self, requests, settings, use_tqdm, lora_request):
        assert [list(request) for request in requests] == [["prompt_token_ids"]] * len(settings)
        adapters = () if lora_request is None else lora_request
        self.note("generate", len(requests), *adapters)
        return ["output"] * len(requests)

    def add_lora(self, request):
        self.note("add_lora", *request)

    def collective_rpc(self, method, kwargs):
        self.note(method, *kwargs.values())

    def reset_prefix_cache(self):
        self.note("reset_prefix_cache")
        return not self.keeps_cache

    def sleep(self, level):
        self.note("sleep", level)

    def wake_up(self, parts):
        self.note("wake_up", *parts)


@pytest.fixture
def llm(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    module = ModuleType("vllm")
    module.LLM = type("LLM", (StandIn,), {"end": Event()})
    monkeypatch.setitem(sys.modules, "vllm", module)
    for name in ("vllm.lora", "vllm.lora.request"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    request = namedtuple("LoRARequest", "lora_name lora_int_id lora_path load_inplace", defaults=[False])
    sys.modules["vllm.lora.request"].LoRARequest = request
    yield module.LLM
    module.LLM.end.set()


def engine(device=CPU, timeout=30.0, sleep=True, **options):
    return Engine("first", device, timeout, sleep, **options)


def test_without_vllm_the_settings_are_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"VLLMGenerator needs vLLM: pip install -e '\.\[vllm\]' -c constraints-gpu"):
        VLLMGenerator()


@pytest.mark.parametrize(
    "bad", [{"max_new_tokens": 0}, {"timeout": 0}, {"probe_tolerance": 0.0}, {"temperature": -1.0}, {"top_p": 0.0}]
)
def test_impossible_settings_are_refused(monkeypatch, bad):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(ValueError, match=next(iter(bad))):
        VLLMGenerator(**bad)


def test_on_a_gpu_the_engine_sleeps_between_calls_and_wakes_its_cache_after_new_weights(llm):
    running = engine(GPU)
    llm_log = running._llm.log
    running.generate([[1]], [None])
    running.rest()
    running.rest()
    running.load("second")
    running.generate([[1], [2]], [None, None])
    assert llm_log == [
        ("start",),
        ("generate", 1),
        ("sleep", 1),
        ("wake_up", "weights"),
        ("reload_weights", "second"),
        ("wake_up", "kv_cache"),
        ("reset_prefix_cache",),
        ("generate", 2),
    ]


def test_an_engine_that_is_handed_weights_wakes_its_cache_after_them(llm, monkeypatch):
    monkeypatch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "0")
    running = engine(GPU, load_format="dummy", weight_transfer_config={"backend": "ipc"})
    assert running._llm.environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"
    assert os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"  # or what the engine answers is not understood
    running.rest(level=2)
    with running.loading():
        EngineClient(running).finish_weight_update()
    assert running._llm.log[2:] == [
        ("sleep", 2),
        ("wake_up", "weights"),
        ("finish_weight_update",),
        ("wake_up", "kv_cache"),
        ("reset_prefix_cache",),
    ]
    assert not running.emptied


def test_a_transfer_by_the_memory_of_a_gpu_needs_one_and_sends_all_weights(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(ValueError, match="enable_lora adapters alone, as files: give one of both"):
        VLLMGenerator(transfer="ipc", enable_lora=True)
    with pytest.raises(ValueError, match="this run has no GPU: give transfer folder"):
        VLLMGenerator(transfer="ipc").check(None, "bf16-mixed", CPU)


def test_an_engine_that_lets_go_of_its_weights_needs_others(llm):
    running = engine(GPU)
    assert not running.emptied
    running.rest(level=2)
    assert running.emptied and running._llm.log[-1] == ("sleep", 2)
    running.load("second")
    assert not running.emptied
    running.rest()
    assert not running.emptied and running._llm.log[-1] == ("sleep", 1)


def test_an_engine_that_starts_without_weights_reads_them_from_files(llm):
    running = engine(load_format="dummy")
    assert running.emptied
    running.load("first")
    files = {"load_config": {"load_format": "auto"}}
    assert running._llm.log[1:3] == [("update_config", files), ("reload_weights", "first")]
    assert not running.emptied


def test_adapters_take_the_place_of_those_before_and_go_with_every_request(llm):
    running = engine(GPU)
    running.load("first", "adapters")
    running.rest()
    running.load(None, "others")
    running.generate([[1]], [None])
    assert running._llm.log[1:] == [
        ("reload_weights", "first"),
        ("add_lora", "policy", 1, "adapters", True),  # in place
        ("reset_prefix_cache",),
        ("sleep", 1),
        ("wake_up", "weights"),
        ("add_lora", "policy", 1, "others", True),
        ("wake_up", "kv_cache"),
        ("reset_prefix_cache",),
        ("generate", 1, "policy", 1, "others", False),
    ]


def test_a_sleeping_engine_wakes_as_a_whole_to_generate(llm):
    running = engine(GPU)
    running.rest()
    running.generate([[1]], [None])
    assert running._llm.log[1:] == [("sleep", 1), ("wake_up", "weights"), ("wake_up", "kv_cache"), ("generate", 1)]


@pytest.mark.parametrize(("device", "sleep"), [(CPU, True), (GPU, False)])
def test_nothing_sleeps_on_the_cpu_or_when_told_not_to(llm, device, sleep):
    running = engine(device, sleep=sleep)
    running.rest()
    running.load("second")
    assert running._llm.log == [("start",), ("reload_weights", "second"), ("reset_prefix_cache",)]
    assert running._llm.options["enable_sleep_mode"] is False
    assert running._llm.options["sleep_mode_offload_cudagraph"] is False


def test_the_graphs_of_a_sleeping_engine_leave_the_gpu_as_well(llm):
    options = engine(GPU)._llm.options
    assert options["enable_sleep_mode"] is options["sleep_mode_offload_cudagraph"] is True


@pytest.mark.parametrize(("visible", "gpus", "want"), [(None, 1, "1"), ("4,6", 1, "6"), ("4,6,7", 2, "6,7")])
def test_the_engine_gets_its_ranks_gpu_and_no_part_in_the_distributed_run(llm, monkeypatch, visible, gpus, want):
    torchrun = ("MASTER_ADDR", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE")
    for name in torchrun:
        monkeypatch.setenv(name, "1")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    before = dict(os.environ)
    inside = engine(GPU, tensor_parallel_size=gpus)._llm.environment
    assert dict(os.environ) == before
    assert inside["CUDA_VISIBLE_DEVICES"] == want
    assert not set(torchrun) & set(inside)
    assert inside["VLLM_NO_USAGE_STATS"] == "1"


@pytest.mark.parametrize(("visible", "seen"), [("6", 1), (None, 1), ("4,6", 2)])
def test_an_engine_over_more_gpus_than_its_rank_sees_is_refused_in_a_sentence(llm, monkeypatch, visible, seen):
    """As under `srun --gpus-per-task 1`, where each rank's GPU is its number 0; or by the end of a node."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    device, before = torch.device("cuda", seen - 1), dict(os.environ)
    said = rf"tensor_parallel_size 2 takes GPUs {seen - 1} to {seen}, and this rank sees {seen} in all: start the ranks"
    with pytest.raises(ValueError, match=said):
        engine(device, tensor_parallel_size=2)
    assert dict(os.environ) == before


@pytest.mark.parametrize(("index", "fits"), [(0, True), (3, True), (5, False)])
def test_too_few_gpus_are_told_before_a_model_is_loaded(monkeypatch, index, fits):
    """Of 6 GPUs the first 4 are one engine's; the ranks of the other two would need two more on their node."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    check, device = VLLMGenerator(tensor_parallel_size=4).check, torch.device("cuda", index)
    if fits:
        check(None, "bf16-mixed", device)
    else:
        with pytest.raises(ValueError, match=r"takes GPUs 4 to 7, and this rank sees 6 in all"):
            check(None, "bf16-mixed", device)


def test_shards_that_wait_on_the_cpu_generate_on_the_device_of_their_rank(monkeypatch, tiny_model_dir):
    """With `cpu_offload`; the meta device stands for the rank's GPU."""
    module, device, started = SRMLModule(init_from=str(tiny_model_dir)), torch.device("meta"), []
    module.policy, module._device = build_policy(str(tiny_model_dir)), device
    module._trainer = SimpleNamespace(precision="32-true")
    monkeypatch.setattr("lightning_modules.evaluation.is_sharded", lambda policy: True)
    copy = module.generating_policy()
    assert {tensor.device for tensor in copy.state_dict().values()} == {device}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(
        "lightning_modules.generators.vllm.Engine",
        lambda folder, device, *rest, **options: started.append(device),
    )
    VLLMGenerator()._start(copy, "folder")
    assert started == [device]


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Options of the engines that are started; there is a vLLM, as far as its cache's folder goes."""
    module, options = ModuleType("vllm"), []
    module.envs = SimpleNamespace(VLLM_CACHE_ROOT=str(tmp_path / "cache"))
    module.__spec__ = ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(
        "lightning_modules.generators.vllm.Engine",
        lambda folder, device, *rest, **given: options.append(given | {"folder": folder, "device": device}),
    )
    return options


@pytest.mark.parametrize(
    ("setting", "precision", "dtype"),
    [
        (None, "bf16-mixed", torch.bfloat16),
        (None, "bf16-true", torch.bfloat16),
        (None, "32-true", torch.float32),
        ("float16", "bf16-mixed", torch.float16),
        ("float32", "bf16-mixed", torch.float32),
    ],
)
def test_the_engine_computes_as_the_run_does(started, tiny_model_dir, setting, precision, dtype):
    generator = VLLMGenerator(dtype=setting)
    generator.prepare(precision, 10)
    generator._start(build_policy(str(tiny_model_dir)), "folder")
    assert started[0]["dtype"] == dtype and started[0]["load_format"] == "dummy"


@pytest.mark.parametrize(
    ("setting", "prompt", "tokens"),
    [(None, 100, 356), (None, 4000, 4096), (None, None, -1), (77, 100, 77)],  # 256 new ones; the model has 4,096
)
def test_the_engine_takes_a_prompt_and_its_completion_and_not_all_that_the_model_could(
    started, tiny_model_dir, setting, prompt, tokens
):
    generator = VLLMGenerator(max_new_tokens=256, max_model_len=setting)
    generator.prepare("32-true", prompt)
    generator._start(build_policy(str(tiny_model_dir)), "folder")
    assert started[0]["max_model_len"] == tokens


def test_the_engine_starts_from_the_same_path_for_the_same_model(started, tiny_model_dir):
    """vLLM finds what it has compiled by the path."""
    policy = build_policy(str(tiny_model_dir))
    configs = [untied_config(policy, dtype) for dtype in (torch.float32, torch.float32, torch.bfloat16)]
    first, again, other = map(_config_folder, configs)
    assert first == again != other
    assert [file.name for file in Path(first).iterdir()] == ["config.json"]
    assert AutoConfig.from_pretrained(first).to_dict() == configs[0].to_dict() | {"_name_or_path": first}


@pytest.mark.parametrize(("stage", "stale"), [("fit", True), ("validate", False), ("test", False)])
def test_the_module_tells_the_generator_of_the_run_and_when_it_may_rest(started, tiny_model_dir, stage, stale):
    told = []
    module = SRMLModule(init_from=str(tiny_model_dir), generator=VLLMGenerator())
    module.generator.prepare = lambda *given: told.append(given)
    module.generator.rest = told.append
    module.generator.__class__ = type("Quiet", (VLLMGenerator,), {"__call__": lambda *args, **options: []})
    module.policy, module.stop_ids = build_policy(str(tiny_model_dir)), [2]
    data, state = SimpleNamespace(longest_prompt=7), SimpleNamespace(fn=stage)
    module._trainer = SimpleNamespace(precision="bf16-mixed", datamodule=data, state=state)
    module.on_validation_start()
    for _ in range(3):  # batches
        module.evaluate_prompts(PromptBatch([], []))
    assert told == [("bf16-mixed", 7)]
    module.on_validation_end()
    assert told[1:] == [stale]  # in a fit the policy is another one by the next time


def test_a_call_that_hangs_ends_in_time_and_the_engine_with_it(llm):
    running = engine(timeout=0.2)
    llm.hang = "reload_weights"
    with pytest.raises(TimeoutError, match=r"The vLLM engine was loading weights for more than 0\.2 s and was stopped"):
        running.load("second")
    assert running._llm.log[-1] == ("shutdown",)


def test_a_start_that_hangs_ends_in_time(llm):
    llm.hang = "start"
    with pytest.raises(TimeoutError, match="The vLLM engine was starting for more than"):
        engine(timeout=0.2)


def test_a_call_that_fails_says_what_it_was(llm):
    running = engine()
    llm.fail = {"reload_weights": ValueError("no such file")}
    with pytest.raises(RuntimeError, match=r"^The vLLM engine failed while loading weights: no such file$"):
        running.load("second")


def test_a_cache_of_old_weights_is_not_sampled_from(llm):
    running = engine()
    llm.keeps_cache = True
    with pytest.raises(RuntimeError, match="kept a prefix cache that was computed with the old weights"):
        running.load("second")


@pytest.mark.parametrize("hangs", ["", "generate"])
def test_an_engine_that_died_is_noticed_even_where_its_call_never_ends(llm, hangs):
    running = engine()
    llm.hang = hangs
    running._llm.llm_engine.engine_core.resources.engine_dead = True
    with pytest.raises(RuntimeError, match=r"died while generating 2 completions: .* --ckpt_path\.$"):
        running.generate([[1], [2]], [None, None])


@pytest.mark.kills
def test_the_engine_does_not_outlive_a_trainer_that_is_killed():
    engine = subprocess.Popen(["sleep", "600"])
    trainer = (
        "import os; from lightning_modules.generators.vllm_engine import kill_at_exit; "
        f"guard = kill_at_exit([{engine.pid}]); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", trainer], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert engine.wait(timeout=60) == -signal.SIGKILL

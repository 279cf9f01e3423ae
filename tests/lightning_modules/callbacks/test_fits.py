"""A run that its GPUs cannot hold is refused before weights are loaded, and told what would make it fit."""

import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_gpus import make_small
from training_runs import command_on_ranks
from transformers import AutoConfig

from lightning_modules.callbacks import fits, summary
from lightning_modules.callbacks import plan as planning
from lightning_modules.callbacks.cheaper import changes, enough, ways
from lightning_modules.callbacks.fits import check_fits
from lightning_modules.callbacks.memory import estimate, has_room
from lightning_modules.callbacks.memory_text import refusal, shown
from lightning_modules.callbacks.plan import generation, streamed
from lightning_modules.callbacks.summary import RunSummary
from lightning_modules.cli import main
from lightning_modules.evaluation import EvaluationModule
from lightning_modules.generators import HFGenerator, VLLMGenerator, VLLMServerGenerator
from lightning_modules.policy.model import build_policy
from lightning_modules.strategies import DDP, FSDP1, FSDP2

GIB, GPU = 2**30, torch.device("cuda", 0)
SHARE = (
    r"^The vLLM engine is estimated to need 26\.1 GiB .* and gpu_memory_utilization 0\.3 gives it 23\.7 GiB: "
    r"set model\.generator\.gpu_memory_utilization to 0\.34 or more, or tensor_parallel_size above 1; --fit_anyway"
)


def gpu(needed):
    """Bytes of the smallest GPU that has so many left when one in twenty is kept."""
    return (needed - 1) * 20 // 19 + 1


def test_the_fewest_changes_that_make_a_plan_fit_are_named(plan):
    found = {"recompute": replace(plan, checkpointing=True), "one row": replace(plan, rows=1)}
    found["adapters"] = replace(plan, trained=1_000, frozen=10_000_000)
    peaks = {name: estimate(other).peak for name, other in found.items()}
    lowest = min(peaks.values())
    alone = ways(plan, gpu(lowest), found)
    assert alone == [((name,), peak) for name, peak in peaks.items() if peak == lowest]
    ((names, peak), *_) = ways(plan, gpu(lowest) - 1, found)  # no single one is enough
    both = {"recompute": {"checkpointing": True}, "one row": {"rows": 1}}
    both["adapters"] = {"trained": 1_000, "frozen": 10_000_000}
    assert len(names) == 2
    assert peak == estimate(replace(plan, **both[names[0]], **both[names[1]])).peak < lowest
    assert ways(plan, 1, found) == []


def test_a_refusal_is_one_sentence_with_the_keys_that_would_do(plan):
    found = {"model.gradient_checkpointing true": replace(plan, checkpointing=True)}
    available = gpu(estimate(plan).peak) - 1
    said = refusal(plan, available, found)
    less = shown(estimate(found["model.gradient_checkpointing true"]).peak)
    assert f"it would fit with model.gradient_checkpointing true ({less}); --fit_anyway" in said
    assert (
        f"there are {shown(available)}, {shown(available // 20)} of them left for CUDA's context, buffers of NCCL and"
        in said
    )
    assert said.count(". ") == 0 and said.endswith(".")
    assert "not even all of model.gradient_checkpointing true together" in refusal(plan, 1, found)


def test_a_gpu_has_room_for_the_estimate_and_what_that_does_not_count(plan):
    beside = replace(plan, engine=GIB)  # that sleeps while the policy learns
    leasts = (gpu, lambda peak: gpu(peak + GIB), lambda peak: peak)
    for planned, least_of in zip((plan, beside, replace(plan, cuda=False)), leasts, strict=True):
        least = least_of(estimate(planned).peak)
        assert has_room(planned, least) and not has_room(planned, least - 1)


def test_a_run_that_fits_but_for_the_reserve_is_refused(plan, monkeypatch):
    run = run_of(plan, DDP(), HFGenerator(), device=GPU)
    full = gpu(estimate(plan).peak)
    monkeypatch.setattr(fits, "plan_ahead", lambda trainer, module: plan)
    monkeypatch.setattr(fits, "gpu_memory", lambda device: full)
    check_fits(*run)
    monkeypatch.setattr(fits, "gpu_memory", lambda device: full - 1)
    with pytest.raises(ValueError, match=r"^This run is estimated to need .* of them left for CUDA's context"):
        check_fits(*run)


def run_of(plan, strategy, generator, **settings):
    rows = {"lengths": np.array([70, 100]), "train_indices": np.arange(2), "val_indices": np.arange(1)}
    data = SimpleNamespace(hparams=SimpleNamespace(max_length=1024, eval_batch_size=64), longest_prompt=100, **rows)
    trainer = SimpleNamespace(
        world_size=64, num_devices=8, strategy=strategy, datamodule=data, limit_val_batches=1.0, fit_anyway=False
    )
    return trainer, SimpleNamespace(lora=object(), generator=generator, **settings)


def test_weights_are_spread_over_as_many_gpus_as_it_takes(plan):
    lean = replace(plan, checkpointing=True, rows=1, precision="bf16-true", fsdp=True, shards=8, trained=8 * 10**9)
    available = gpu(estimate(replace(lean, shards=32)).peak)
    found = changes(*run_of(lean, FSDP2(), HFGenerator()), lean, available)
    (ranks,) = (name for name in found if name.endswith(" devices"))
    assert ranks == "32 devices" and has_room(found[ranks], available) and not has_room(found[ranks], available - 1)
    assert enough(lean, available, 32) == 32 and enough(lean, available, 31) is None
    assert "trainer.strategy.init_args.cpu_offload true" in found
    assert found["data.max_length and data.micro_batch_tokens 512"].length == 512
    # What no number of GPUs makes room for, a copy to generate with, is left to other changes.
    beside = changes(*run_of(lean, FSDP2(), HFGenerator()), replace(lean, copy=available), available)
    assert beside["32 devices"] == replace(lean, copy=available, shards=32)
    # In groups of 8 it takes larger groups, and not more of them.
    replicated = replace(lean, hybrid=True, shards=32)
    run = run_of(lean, FSDP2(shard_size=8), HFGenerator())
    hybrid = changes(*run, replace(lean, hybrid=True), gpu(estimate(replicated).peak))
    assert hybrid["trainer.strategy.init_args.shard_size 32"] == replicated
    assert not any(name.endswith(" devices") for name in hybrid)


def test_where_the_copy_to_generate_with_is_too_large_an_engine_over_several_gpus_is_named(plan):
    config = AutoConfig.for_model("qwen2", num_hidden_layers=80, hidden_size=8192, intermediate_size=29568)
    large = replace(plan, config=config, trained=72 * 10**9, checkpointing=True, rows=1, fsdp=True, shards=64)
    large = replace(large, copy=144 * 10**9, cache=10**9)
    found = changes(*run_of(large, FSDP2(), HFGenerator()), large, 79 * GIB)
    # 144 GB over 8 GPUs of a node are 18 each; the engine takes 0.3 of 79 GiB, and is given a layer at a time.
    other = found["model.generator VLLMGenerator with tensor_parallel_size 8"]
    assert (other.copy, other.cache, other.engine) == (streamed(large), 0, int(0.3 * 79 * GIB))
    assert [names for names, _ in ways(large, 79 * GIB, found)] == [
        ("model.generator VLLMGenerator with tensor_parallel_size 8",)
    ]


@pytest.fixture
def engine_of(monkeypatch):
    """Bytes of the engine that these settings start on each GPU of so many bytes, next to a plan's run."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)

    def bytes_of(plan, available, **settings):
        monkeypatch.setattr(planning, "device_memory", lambda trainer, device: available)
        run = run_of(plan, FSDP2(), VLLMGenerator(max_new_tokens=28, **settings), device=GPU)
        return generation(*run, plan)["engine"]

    return bytes_of


def test_an_engine_takes_its_share_of_a_gpu_or_what_it_needs_to_start(plan, engine_of):
    # The weights and a head apart from the embedding, in bfloat16.
    assert plan.config.tie_word_embeddings and plan.root == 32 * plan.config.vocab_size
    weights = (10_000_000 + plan.root) * 2
    # A row of 100 + 28 tokens has keys and values of 2 layers x 2 heads x 8: 64 numbers a token.
    assert engine_of(plan, available=10**6) == weights + 128 * 64 * 2
    assert engine_of(plan, available=10**6, tensor_parallel_size=2) == (weights + 128 * 64 * 2) // 2
    assert engine_of(plan, available=10**6, dtype="float32", max_model_len=50) == (weights + 50 * 64 * 2) * 2
    assert engine_of(plan, available=10**9) == 3 * 10**8
    assert engine_of(plan, available=10**9, gpu_memory_utilization=0.5) == 5 * 10**8
    assert engine_of(plan, available=10**9, kv_cache_gib=1.0) == weights + GIB  # whatever its share is


def test_weights_through_the_memory_of_a_gpu_take_a_pack_of_it(plan, engine_of, monkeypatch):
    engine_of(plan, available=10**9)
    every = [run_of(plan, FSDP2(), VLLMGenerator(transfer=transfer), device=GPU) for transfer in ("folder", "ipc")]
    by_files, by_memory = (generation(*run, plan)["copy"] for run in every)
    assert by_memory == by_files + GIB


def test_other_settings_change_what_generating_takes(plan, engine_of):
    engine_of(plan, available=10**6)
    run = run_of(plan, DDP(), VLLMGenerator(max_new_tokens=28, transfer="ipc"), device=GPU)
    full = replace(plan, precision="32-true")
    full = replace(full, **generation(*run, full))
    found = changes(*run, full, 10**6)
    half, spread = found["trainer.precision bf16-true"], found["--config configs/trainer/fsdp2.yaml on 64 devices"]
    # A pack on its way to the engine; the engine's weights and cache are half as large; of shards one is whole besides.
    assert (full.copy, half.copy, spread.copy) == (GIB, GIB, streamed(full) + GIB)
    assert full.engine == 2 * half.engine == ((10_000_000 + plan.root) * 2 + 128 * 64 * 2) * 2 == spread.engine


def test_an_engine_whose_weights_are_more_than_its_share_is_refused(plan, engine_of, monkeypatch):
    lean = replace(plan, trained=0, frozen=14 * 10**9, checkpointing=True, rows=1, precision="bf16-true")
    lean = replace(lean, engine=engine_of(lean, available=79 * GIB))
    run = run_of(lean, FSDP2(), VLLMGenerator(max_new_tokens=28), device=GPU)
    assert 28 * 10**9 < lean.engine < estimate(lean).peak < 79 * GIB  # beside 28 GB of the policy
    monkeypatch.setattr(fits, "plan_ahead", lambda trainer, module: lean)
    monkeypatch.setattr(fits, "gpu_memory", lambda device: 79 * GIB)
    with pytest.raises(ValueError, match=SHARE):  # 28 GB are 26.1 GiB, 0.3301 of 79
        check_fits(*run)
    run[0].fit_anyway = True
    check_fits(*run)
    run[0].fit_anyway, run[1].generator = False, VLLMGenerator(max_new_tokens=28, gpu_memory_utilization=0.34)
    check_fits(*run)
    # 64 GB beside 64: over 4 GPUs they are 16 and over 2 of them 32, and 0.3 of one is 25.4.
    large = replace(lean, frozen=32 * 10**9)
    large = replace(large, engine=engine_of(large, available=79 * GIB))
    found = changes(*run_of(large, FSDP2(), VLLMGenerator(max_new_tokens=28), device=GPU), large, 79 * GIB)
    (name,) = (name for name in found if "tensor_parallel_size" in name)
    assert (name, found[name].engine) == ("model.generator.tensor_parallel_size 4", int(0.3 * 79 * GIB))


@pytest.mark.parametrize("experiment", ["srml", "grpo", "finetune"])
def test_the_plan_before_weights_are_loaded_is_that_of_the_loaded_model(
    experiment, tmp_path, base_args, tiny_model_dir, monkeypatch
):
    plans, states = [], []

    def note(trainer, module):
        states.append(torch.get_rng_state())
        plans.append((module.policy is None, planning.plan_ahead(trainer, module)))
        assert torch.equal(torch.get_rng_state(), states[-1])

    monkeypatch.setattr(summary, "check_fits", note)
    options = {"trainer.max_steps": 2, "trainer.limit_val_batches": 1, "model.init_args.micro_batch_tokens": 2048}
    if experiment != "grpo":
        options = {k: v for k, v in options.items() if "micro" not in k} | {"data.init_args.batch_size": 8}
    options |= {"data.init_args.val_fraction": 0.2, "data.init_args.limit_val": 2}
    main(["fit", "--config", f"configs/{experiment}.yaml", *base_args(tmp_path, **options)])
    (unloaded, before), (loaded, after) = plans
    assert (unloaded, loaded) == (True, False)
    assert replace(before, config=None) == replace(after, config=None)
    assert before.copy > 0 and before.cache > 0


def test_a_run_that_cannot_fit_is_refused_before_its_weights_are_loaded(
    tmp_path, base_args, tiny_model_dir, monkeypatch
):
    loaded, load = [], EvaluationModule.load_policy
    monkeypatch.setattr(EvaluationModule, "load_policy", lambda self, **kw: loaded.append(1) or load(self, **kw))
    monkeypatch.setattr(fits, "gpu_memory", lambda device: 2**20)
    options = {"trainer.max_steps": 1, "trainer.limit_val_batches": 0, "data.init_args.batch_size": 8}
    words = ["fit", "--config", "configs/srml.yaml", *base_args(tmp_path, **options)]
    with pytest.raises(SystemExit) as exit_:
        main(words)
    said = exit_.value.code
    assert re.match(
        r"error: This run is estimated to need [\d.]+ MiB of each GPU, most at .*, and there are 1.0 MiB", said
    )
    assert "--fit_anyway" in said and not loaded
    main([*words, "--fit_anyway"])
    assert loaded and (tmp_path / "srml-fit-1" / "hf").is_dir()


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_an_evaluation_is_refused_whose_gpus_cannot_hold_a_copy_beside_their_shards(
    stage, tiny_model_dir, plan, monkeypatch
):
    count = sum(weight.numel() for weight in build_policy(str(tiny_model_dir), empty=True).parameters())
    # An eighth of the weights in float32, the copy in bfloat16, and one weight in float32 as it is gathered.
    needed = count * 4 // 8 + count * 2 + plan.config.vocab_size * 32 * 4
    trainer = SimpleNamespace(strategy=FSDP2(), world_size=8, precision="bf16-mixed")
    module = EvaluationModule(str(tiny_model_dir))
    module._device = GPU
    refuse = partial(RunSummary().setup, trainer, module, stage)
    monkeypatch.setattr(fits, "gpu_memory", lambda device: gpu(needed))
    refuse()
    monkeypatch.setattr(fits, "gpu_memory", lambda device: gpu(needed) - 1)
    said = f"need {shown(needed)} of each, and there are .*VLLMGenerator.* bf16-true: {shown(2 * count)}.*--fit_anyway"
    with pytest.raises(ValueError, match=said):
        refuse()
    trainer.strategy = FSDP2(cpu_offload=True)  # the shards are elsewhere
    refuse()
    trainer.strategy = DDP()  # without shards there is no copy
    refuse()
    trainer.strategy, trainer.fit_anyway = FSDP1(), True
    refuse()


@pytest.fixture
def evaluation(tiny_model_dir, monkeypatch):
    """Begins an evaluation on a GPU of so many bytes, one of 8, under a strategy and with a generator."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)

    def begin(available, strategy, generator, data=None):
        monkeypatch.setattr(fits, "gpu_memory", lambda device: available)
        module = EvaluationModule(str(tiny_model_dir), generator=generator)
        module._device = GPU
        trainer = SimpleNamespace(strategy=strategy, world_size=8, precision="bf16-mixed", datamodule=data)
        RunSummary().setup(trainer, module, "test")

    return begin


def test_an_evaluation_is_refused_whose_gpus_cannot_hold_the_copy_that_fsdp1_makes_for_an_engine(
    evaluation, tiny_model_dir
):
    count = sum(weight.numel() for weight in build_policy(str(tiny_model_dir), empty=True).parameters())
    server = VLLMServerGenerator(["http://localhost:8000"])
    shards, copy = count * 4 // 8, count * 2
    one = AutoConfig.from_pretrained(tiny_model_dir).vocab_size * 32 * 4  # a weight in float32 as it is gathered
    full = gpu(shards + copy + one)
    evaluation(full, FSDP1(), server)
    evaluation(full - 1, FSDP2(), server)  # which gives it a weight after the other
    advice = rf"Take FSDP2 \(--config configs/trainer/fsdp2\.yaml\).* bf16-true: {shown(copy)}\); --fit_anyway"
    with pytest.raises(ValueError, match=rf"makes a whole copy of it, under FSDP1 for an engine: .*{advice}"):
        evaluation(full - 1, FSDP1(), server)
    # An engine on the same GPU stands beside the copy: 0.5 of the GPU; 0.45 and a GiB less are left for the rest.
    half, rest = VLLMGenerator(gpu_memory_utilization=0.5), int((shards + copy + GIB) / 0.45)
    evaluation(rest + 100, FSDP1(), half)
    with pytest.raises(ValueError, match=r"1\.1 GiB of them left .* bf16-true: 1\.1 GiB\)"):
        evaluation(rest - 100, FSDP1(), half)


@pytest.mark.parametrize("strategy", [DDP, FSDP2])
def test_an_evaluation_is_refused_whose_engine_needs_more_than_its_share(evaluation, tiny_model_dir, strategy):
    policy = build_policy(str(tiny_model_dir), empty=True).causal_lm
    head = policy.get_output_embeddings().weight.numel()  # the engine has one of its own
    weights = 2 * (sum(weight.numel() for weight in policy.parameters()) + head)
    engine = VLLMGenerator(max_new_tokens=28, gpu_memory_utilization=0.5)
    # Keys and values of a token are 64 numbers of 2 bytes; of other data the prompt's length is not known.
    for data, tokens in ((SimpleNamespace(longest_prompt=100), 128), (None, 28), (SimpleNamespace(), 28)):
        needed = weights + tokens * 64 * 2
        evaluation(2 * needed, strategy(), engine, data)
        with pytest.raises(ValueError, match=rf"^The vLLM engine is estimated to need {shown(needed)} of each GPU"):
            evaluation(2 * needed - 2, strategy(), engine, data)


@pytest.mark.ranks
@pytest.mark.parametrize("small", ["01", "1"])
def test_two_ranks_are_refused_together_and_one_of_them_says_why(tmp_path, base_args, small):
    options = {"trainer.max_steps": 1, "data.init_args.batch_size": 8, "trainer.devices": 2}
    options |= {"trainer.strategy.class_path": "lightning_modules.strategies.FSDP2"}
    words = ["fit", "--config", "configs/srml.yaml", *base_args(tmp_path, **options)]
    done = command_on_ranks(*words, before=partial(make_small, small))
    said = done.stdout + done.stderr
    assert done.returncodes == [1, 1], said
    assert said.count("error: ") == said.count("error: This run is estimated to need") == 1, said
    assert said.count("there are 1.0 MiB: ") == said.count("--fit_anyway") == 1 and "Traceback" not in said, said
    left = {path.name.partition(".tfevents")[0] for path in (tmp_path / "srml-fit-0").iterdir()}
    assert left == {"events.out", "traceback.txt", "traceback-1.txt"}

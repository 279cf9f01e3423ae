"""The estimate of memory in words, and the settings that are named where it is too much."""

from dataclasses import replace
from types import SimpleNamespace

from lightning_modules.callbacks.cheaper import cheaper
from lightning_modules.callbacks.memory import estimate
from lightning_modules.callbacks.memory_text import memory_rows, refusal, shown
from lightning_modules.strategies import FSDP1


def test_an_estimate_above_the_device_names_settings_that_need_less_least_first(plan):
    other = replace(plan, checkpointing=True), replace(plan, precision="bf16-true"), replace(plan, rows=8)
    changes = dict(
        zip(("model.gradient_checkpointing true", "trainer.precision bf16-true", "worse"), other, strict=True)
    )
    available = (estimate(plan).peak - 1) * 20 // 19 + 1  # a twentieth is left
    assert "TOO MUCH" not in memory_rows(plan, available, changes)
    said = memory_rows(plan, available - 1, changes)["TOO MUCH"]
    peaks = [estimate(change).peak for change in other]
    first, second = sorted(peaks[:2])
    assert said.index(shown(first)) < said.index(shown(second))
    assert "worse" not in said


def test_settings_that_need_less_depend_on_what_is_set(plan):
    data = SimpleNamespace(hparams=SimpleNamespace(max_length=1024))
    trainer = SimpleNamespace(world_size=1, strategy=None, datamodule=data, limit_val_batches=0)
    module, with_lora = (SimpleNamespace(lora=lora, generator=None) for lora in (None, object()))
    assert list(cheaper(trainer, module, plan)) == [
        "model.gradient_checkpointing true",
        "data.micro_batch_tokens 1024",
        "model.lora.r 16",
        "--config configs/trainer/fsdp2.yaml on 8 devices",
    ]
    adapted = cheaper(trainer, module, replace(plan, frozen=5_000, reference=True))["model.lora.r 16"]
    assert not adapted.reference  # adapters off
    assert adapted.frozen == 10_005_000  # what was frozen stays, such as what sees
    some = replace(plan, checkpointing=True, every_n_layers=2)
    assert cheaper(trainer, module, some)["model.gradient_checkpointing true"] == replace(some, every_n_layers=1)
    lean = replace(plan, checkpointing=True, precision="bf16-true", rows=1, fsdp=True, shards=16)
    assert list(cheaper(trainer, with_lora, lean)) == ["32 devices"]
    # Half of what is frozen; of what learns, bfloat16 would round away the updates.
    assert "trainer.precision bf16-true" in cheaper(trainer, with_lora, plan)
    flat = SimpleNamespace(world_size=1, strategy=FSDP1(), datamodule=data, limit_val_batches=0)
    assert "trainer.precision bf16-true" not in cheaper(flat, with_lora, plan)
    # Documents of 300 tokens in rows of their own: what data.max_length asks for holds three of them.
    alone = cheaper(trainer, module, replace(plan, rows=27, length=300))
    assert alone["data.micro_batch_tokens 1024"].rows == 3
    assert list(cheaper(trainer, module, replace(lean, cuda=False))) == ["model.lora.r 16"]


def test_parts_add_up_to_the_peak(plan):
    rows = memory_rows(plan, 2**40, {})
    peak = estimate(plan)
    assert shown(peak.peak) in rows["memory"] and peak.moment in rows["memory"]
    assert sum(peak.parts.values()) == peak.peak
    assert [name.strip() for name in rows][1:] == list(peak.parts)


def test_the_estimate_says_what_it_is_of(plan):
    available, compiled = estimate(plan).peak - 1, replace(plan, compiled=True)
    assert estimate(compiled) == estimate(plan)  # nothing is known of it
    for said in (memory_rows(plan, available, {})["memory"], refusal(plan, available, {"nothing": plan})):
        assert "(live tensors alone)" in said
    for said in (memory_rows(compiled, available, {})["memory"], refusal(compiled, available, {"nothing": plan})):
        assert "(live tensors alone, of layers as they are without model.torch_compile)" in said
    own = replace(plan, optimizer="Own.configure_optimizers")
    for said in (memory_rows(own, available, {})["memory"], refusal(own, available, {"nothing": plan})):
        assert "(live tensors alone, as if Own.configure_optimizers made an AdamW)" in said


def test_sizes_are_written_for_people():
    assert shown(2**30) == "1.0 GiB" and shown(3 * 2**19) == "1.5 MiB" and shown(1600 * 2**30) == "1,600.0 GiB"

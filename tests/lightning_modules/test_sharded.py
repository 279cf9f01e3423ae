"""SRML in shards over gloo ranks takes the steps of one process, and checkpoints move between them."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_runs import UNEVEN, assert_same, command_on_ranks, metrics, script_on_ranks
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lightning_modules.checkpointing.formats import load
from lightning_modules.cli import main
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.shard import blocks_of

pytestmark = pytest.mark.ranks

FSDP2 = "lightning_modules.strategies.FSDP2"
SRML = ["fit", "--config", "configs/srml.yaml"]
OPTIONS = UNEVEN | {"model.init_args.weight_decay": 0.1, "model.init_args.max_grad_norm": 0.5}
ALPHA = {"model.init_args.balance": "learnable", "model.init_args.alpha_lr_mult": 100}
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
ADAPTERS = {"model.init_args.lora.r": 4, "model.init_args.lora.target_modules": "all-linear"}


MEMORY = """
import json, os, pathlib, re, sys, threading
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_modules.policy.model import build_policy
from lightning_modules.strategies import FSDP2

folder, model, rank = pathlib.Path(sys.argv[1]), sys.argv[2], int(os.environ["RANK"])
strategy = Trainer(accelerator="cpu", devices=2, strategy=FSDP2(), logger=False, enable_checkpointing=False).strategy
strategy.connect(LightningModule())
strategy.setup_environment()

def own():
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", status)[1])  # without pages of files

def watch():
    while not ended.wait(0.001):
        held.append(own())

held, ended = [own()], threading.Event()
(thread := threading.Thread(target=watch)).start()
policy = strategy.shard(build_policy(model, in_files=rank == 0, empty=rank != 0))
ended.set()
thread.join()
whole = sum(weight.numel() * 4 for weight in policy.parameters())
(folder / f"{rank}.json").write_text(json.dumps({"most": max(held) - held[0], "whole": whole}))
torch.distributed.destroy_process_group()
"""


def on_ranks(ranks, arguments, **strategy):
    options = {"trainer.devices": ranks, "trainer.strategy.class_path": FSDP2}
    options |= {f"trainer.strategy.init_args.{key}": value for key, value in strategy.items()}
    done = command_on_ranks(*arguments, *(f"--{k}={v}" for k, v in options.items()), ranks=ranks)
    assert done.returncode == 0, done.stderr[-4000:]


def at(run, step):
    return run / "checkpoints" / f"best-{step:06d}.ckpt"


def saved_state(run, step):
    return load(at(run, step))


def assert_close(states):
    expected, got = states
    assert expected.keys() == got.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(got[name], weight, rtol=1e-5, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def one(base_args, tmp_path_factory):
    root = tmp_path_factory.mktemp("one")
    main(SRML + base_args(root, **OPTIONS | ALPHA))
    return root / "srml-fit-0"


@pytest.fixture(scope="module")
def two(base_args, tmp_path_factory):
    root = tmp_path_factory.mktemp("two")
    on_ranks(2, SRML + base_args(root, **OPTIONS | ALPHA))
    return root / "srml-fit-0"


def test_two_ranks_take_the_steps_of_one(one, two):
    for step in (1, 2, 3):
        assert_close([saved_state(run, step)["state_dict"] for run in (one, two)])
    logged = metrics(one)
    assert logged == pytest.approx(metrics(two), rel=1e-5, abs=1e-6)
    assert logged[1, "train/grad_norm"] > 0.5 and (3, "tool/exact_match") in logged  # clipped; generated from shards
    assert [path.is_dir() for path in sorted((two / "checkpoints").iterdir())] == [True] * 4  # best, and each step


def test_checkpoints_written_in_the_background_are_those_that_the_run_waits_for(two, base_args, tmp_path):
    options = OPTIONS | ALPHA | {"last_checkpoint.asynchronous": "true"}
    on_ranks(2, SRML + base_args(tmp_path, **options))
    run = tmp_path / "srml-fit-0"
    names = [path.name for path in sorted((two / "checkpoints").iterdir())]
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == names
    for name in names:
        states = [load(which / "checkpoints" / name) for which in (two, run)]
        for part in ("state_dict", "optimizer_states", "loops", "lr_schedulers"):
            assert_same(*(state[part] for state in states))
    on_ranks(2, [*SRML, *base_args(tmp_path, **options), "--ckpt_path", str(at(run, 2))])
    assert_same(*(saved_state(tmp_path / f"srml-fit-{i}", 3)["state_dict"] for i in (0, 1)))


def test_the_exported_model_is_that_of_one_process(one, two, tiny_model_dir):
    assert_close([load_file(run / "hf" / "model.safetensors") for run in (one, two)])
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        ours, theirs = (AutoModelForCausalLM.from_pretrained(run / "hf")(ids) for run in (one, two))
    torch.testing.assert_close(theirs.logits, ours.logits, rtol=1e-5, atol=1e-5)
    template, of_one = (AutoTokenizer.from_pretrained(place).chat_template for place in (tiny_model_dir, one / "hf"))
    exported = AutoTokenizer.from_pretrained(two / "hf").chat_template
    assert exported == of_one and exported.endswith(template)  # below what puts requests in the form of training


def test_four_ranks_in_two_replicas_that_write_one_file(one, base_args, tmp_path):
    on_ranks(4, SRML + base_args(tmp_path, **OPTIONS | ALPHA), shard_size=2, save_sharded="false")
    run = tmp_path / "srml-fit-0"
    assert (run / "checkpoints" / "last-000003.ckpt").is_file()
    assert_close([saved_state(which, 3)["state_dict"] for which in (one, run)])
    assert metrics(run) == pytest.approx(metrics(one), rel=1e-5, abs=1e-6)


@pytest.fixture(scope="module")
def adapters(base_args, tmp_path_factory):
    """A run of two epochs with adapters, on one process; and the options of the runs that go on from within it."""
    options = OPTIONS | ADAPTERS | {"trainer.max_epochs": 2}
    root = tmp_path_factory.mktemp("adapters")
    main(SRML + base_args(root / "one", **options))
    return root, options


def test_a_run_moves_from_one_process_to_two_ranks_and_back(adapters, base_args, tmp_path_factory):
    root, options = adapters
    here, there = root / "one" / "srml-fit-0", root / "two" / "srml-fit-0"
    go_on = ["--ckpt_path", str(at(here, 2))]
    on_ranks(2, [*SRML, *base_args(root / "two", **options), *go_on], accumulate_unsharded="true")
    assert all(".lora_" in name for name in saved_state(there, 6)["state_dict"])
    assert not at(there, 2).exists() and at(there, 3).is_dir() and at(here, 2).is_file()
    assert_close([saved_state(run, 6)["state_dict"] for run in (here, there)])
    go_on[1] = str(at(there, 4))
    main([*SRML, *base_args(root / "back", **options), *go_on])
    back = root / "back" / "srml-fit-0"
    assert_close([saved_state(run, 6)["state_dict"] for run in (here, back)])
    assert_close([load_file(run / "hf" / "model.safetensors") for run in (here, back)])
    assert_close([load_file(run / "hf" / "adapter" / "adapter_model.safetensors") for run in (here, there)])
    assert metrics(back) == pytest.approx({k: v for k, v in metrics(here).items() if k[0] > 4}, rel=1e-5, abs=1e-6)


def test_two_ranks_go_on_in_the_middle_of_an_epoch_as_if_they_had_not_stopped(adapters, base_args, monkeypatch):
    root, options = adapters
    options = options | {"model.init_args.lora.dropout": 0.2}  # draws random numbers, other ones on each rank
    on_ranks(2, SRML + base_args(root / "dropout", **options))
    whole, resumed = (root / "dropout" / f"srml-fit-{i}" for i in range(2))
    on_ranks(2, [*SRML, *base_args(root / "dropout", **options), "--ckpt_path", str(at(whole, 2))])
    for part in ("state_dict", "optimizer_states", "callbacks"):
        states = [saved_state(run, 6)[part] for run in (whole, resumed)]
        assert_same(*([state["ExactResume"] for state in states] if part == "callbacks" else states))
    rest = {key: value for key, value in metrics(whole).items() if key[0] > 2}
    assert metrics(resumed) == rest


def test_export_of_a_checkpoint_of_shards(two, tmp_path, capsys):
    main(["export", "--ckpt_path", str(two), "--output_dir", str(tmp_path / "hf")])
    assert_close([load_file(folder / "model.safetensors") for folder in (two / "hf", tmp_path / "hf")])
    assert str(tmp_path / "hf") in capsys.readouterr().out


def test_adapters_need_the_weights_that_they_sit_on(adapters, one, base_args, tmp_path):
    root, options = adapters
    run = root / "one" / "srml-fit-0"
    main(["export", "--ckpt_path", str(at(run, 6))])
    assert_close([load_file(run / folder / "model.safetensors") for folder in ("hf", "hf-best-000006")])
    other = base_args(tmp_path, **options | {"model.init_args.init_from": one / "hf"})
    refused = refusal([*SRML, *other, "--ckpt_path", str(at(run, 2))])
    assert f"{one / 'hf'} does not hold the weights that the checkpoint's run started from" in refused


def refusal(arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return exit_.value.code


def test_a_checkpoint_of_shards_that_does_not_fit_is_refused(two, base_args, tmp_path, tiny_model_dir):
    arguments = [*SRML, *base_args(tmp_path / "run", **OPTIONS | ALPHA), "--ckpt_path"]
    broken = tmp_path / "last-000003.ckpt"
    shutil.copytree(two / "checkpoints" / "last-000003.ckpt", broken)
    data = (broken / "__1_0.distcp").read_bytes()
    (broken / "__1_0.distcp").write_bytes(data[: len(data) // 2])
    assert f"{broken}: its part __1_0.distcp is cut short" in refusal([*arguments, str(broken)])
    (broken / "__1_0.distcp").unlink()
    assert f"{broken}: its part __1_0.distcp is missing" in refusal([*arguments, str(broken)])
    other = [*SRML, *base_args(tmp_path / "run", **OPTIONS | ADAPTERS), "--ckpt_path", str(two)]
    assert "The checkpoint holds another model" in refusal(other)
    faster = [*SRML, *base_args(tmp_path / "run", **OPTIONS | ALPHA | {"model.init_args.learning_rate": 0.5})]
    assert "model.learning_rate is 0.5 in this run and was " in refusal([*faster, "--ckpt_path", str(two)])
    words = tmp_path / "words"
    shutil.copytree(tiny_model_dir, words)
    (words / "chat_template.jinja").write_text(TEMPLATE)
    renamed = [*SRML, *base_args(tmp_path / "run", **OPTIONS | ALPHA | {"model.init_args.init_from": words})]
    assert f"The tokenizer of model.init_from {words}" in refusal([*renamed, "--ckpt_path", str(two)])


def test_modules_to_gather_that_the_model_does_not_have(tiny_model_dir):
    policy = build_policy(str(tiny_model_dir), lora=LoRA(r=2))
    assert [type(block).__name__ for block in blocks_of(policy, None)] == ["Qwen2DecoderLayer"] * 2
    with pytest.raises(ValueError, match=r"wrap names LlamaDecoderLayer.*its layers are .*Qwen2DecoderLayer"):
        blocks_of(policy, ["LlamaDecoderLayer"])


@pytest.mark.parametrize("more", [{}, ADAPTERS], ids=["all weights", "adapters"])
def test_weights_sent_from_their_files_are_cast_on_the_way(tiny_model_dir, tmp_path, base_args, more):
    half = shutil.copytree(tiny_model_dir, tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).save_pretrained(half)
    options = OPTIONS | more | {"model.init_args.init_from": half, "trainer.max_steps": 1}
    main(SRML + base_args(tmp_path / "one", **options))
    on_ranks(2, SRML + base_args(tmp_path / "two", **options))
    states = [saved_state(tmp_path / which / "srml-fit-0", 1)["state_dict"] for which in ("one", "two")]
    assert_close(states)
    assert {weight.dtype for weight in states[1].values()} == {torch.float32}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_rank_that_sends_weights_holds_its_shards_of_them_and_not_the_model(tmp_path):
    """Of bfloat16 files, whose weights learn in float32: loaded first they would take 235 MB and more."""
    sizes = {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
    config = AutoConfig.for_model("qwen2", **sizes, num_attention_heads=8, num_key_value_heads=8)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    (script := tmp_path / "ranks.py").write_text(MEMORY)
    done = script_on_ranks(script, tmp_path, tmp_path / "model")
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["whole"] > 230e6 and found["most"] < 0.8 * found["whole"]  # half of it, and what is on its way


def test_weights_that_are_missing_end_the_ranks_that_wait_for_them_too(tiny_model_dir, tmp_path, base_args):
    broken = shutil.copytree(tiny_model_dir, tmp_path / "model")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    options = {"model.init_args.init_from": broken, "trainer.devices": 2, "trainer.strategy.class_path": FSDP2}
    done = command_on_ranks(*SRML, *base_args(tmp_path, **OPTIONS | options))
    assert done.returncode == 1
    assert f"error: init_from: {broken / 'model.safetensors'} holds model.norm.weight, in which not all" in done.stderr
    assert "Connection closed by peer" not in done.stderr  # as the other rank would find at its next collective

"""Compiled layers: gradients are those of plain ones, lengths cost nothing, and runs leave what they always left.

Most tests compile without a back end that makes code, which takes long: what is traced and how often is the same.
"""

import copy
import re
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from torch.autograd.graph import save_on_cpu
from training_runs import REPEATABLE, UNEVEN, Steps, assert_same, metrics, saved_state, script_on_ranks
from transformers import AttentionInterface, modeling_utils

from datamodules import Example
from datamodules.loading import PromptBatch
from datamodules.packing import Encoded, collate_packed
from lightning_modules import GRPOModule, SRMLModule, base
from lightning_modules.cli import main
from lightning_modules.generators import HFGenerator
from lightning_modules.policy import recompute, torch_compile
from lightning_modules.policy.attention import BY_DOCUMENT, attention_by_document
from lightning_modules.policy.gradient_checkpointing import GradientCheckpointing
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.torch_compile import compile_layers
from lightning_modules.rollout.sampling import Sampling
from lightning_modules.rollout.scoring import RewardTerm
from lightning_modules.strategies import FSDP1

TRACED = Path(__file__).parents[1] / "traced.py"
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++, which compiles on a CPU")


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """A start from nothing compiled, and no code made by a compiler."""
    monkeypatch.setattr(torch_compile, "BACKEND", "aot_eager")
    monkeypatch.setattr(base, "check_compiles", lambda _: None)  # of a machine without a compiler
    with torch._dynamo.config.patch(recompile_limit=8, optimize_ddp=True):
        torch._dynamo.reset()
        counters.clear()
        yield
    torch._dynamo.reset()
    AttentionInterface.register(BY_DOCUMENT, attention_by_document)


def made(folder, compiled, by_document=True, **options):
    torch.manual_seed(0)
    policy = build_policy(str(folder), **options)
    if by_document:
        policy.by_document = True
    if compiled:
        compile_layers(policy)
    return policy


def gradients(policy, lengths):
    """Log-probabilities of packed rows of documents of these lengths, and the gradients of their sum, by name."""
    draw = torch.Generator().manual_seed(sum(map(sum, lengths)))
    documents = [Encoded(torch.randint(3, 300, (n,), generator=draw).tolist(), [2] * n) for row in lengths for n in row]
    places = iter(range(99))
    batch = collate_packed(documents, [[next(places) for _ in row] for row in lengths])
    policy.zero_grad()
    scored = policy(batch["input_ids"], batch["position_ids"], batch["targets"], entropy=True)
    (scored.logprobs.sum() + scored.entropy.sum()).backward()
    return {n: p.grad for n, p in policy.named_parameters() if p.grad is not None} | {"": scored.logprobs.detach()}


def assert_close(got, want, tolerance):
    """That differences are small beside each tensor; queries of a lone token have no gradient but rounding."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert (got[name] - value).norm() <= tolerance * max(1, value.norm()), name


def score_five(policy):
    ids = torch.arange(5)[None]
    with torch.no_grad():
        policy.eval()(ids, ids, ids)


LENGTHS = [[(9, 14), (20,)], [(33, 4)], [(5, 5, 5), (7,), (11, 2)], [(2,)], [(60, 60), (90,), (17,)]]
"""Rows of documents, by batch: one, two and three rows, of 2 to 120 tokens."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"lora": LoRA(r=2), "gradient_checkpointing": GradientCheckpointing(every_n_layers=2)}]
)
def test_gradients_are_those_of_plain_layers_and_other_lengths_need_no_compilation(
    tiny_model_dir, options, monkeypatch
):
    monkeypatch.setattr(recompute, "BLOCK", 512)  # plain norms and activations are computed in blocks of tokens
    plain, compiled = (made(tiny_model_dir, which, dtype=torch.float64, **options) for which in (False, True))
    seen = []
    for lengths in LENGTHS:
        assert_close(gradients(compiled, lengths), gradients(plain, lengths), 1e-7)  # norms are float32 all the same
        seen.append(counters["stats"]["unique_graphs"])
    # Attention is not among them: what is before and behind it in its module, and so in the layer; of both layers.
    assert seen == [4] * len(LENGTHS)
    score_five(compiled)
    assert counters["stats"]["unique_graphs"] > 4  # without gradients it is other code


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_layers_under_a_mask_of_the_row_are_compiled_whole(tiny_model_dir, kernel):
    options = {"by_document": False, "dtype": torch.float64, "attn_implementation": kernel}
    options |= {"gradient_checkpointing": True}
    plain, compiled = (made(tiny_model_dir, which, **options) for which in (False, True))
    for lengths in ([(9, 14), (20,)], [(30, 5), (7,), (11, 2)]):
        assert_close(gradients(compiled, lengths), gradients(plain, lengths), 1e-9)
        assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


@pytest.mark.slow
def test_what_compiled_layers_compute_again_from_may_wait_in_the_memory_of_the_host(tiny_model_dir, monkeypatch):
    on_host = partial(save_on_cpu, pin_memory=False)  # only a GPU's driver can lock pages
    monkeypatch.setattr(modeling_utils, "save_on_cpu", lambda pin_memory, **options: on_host(**options))
    recomputed = GradientCheckpointing(offload=True)
    plain = made(tiny_model_dir, False, dtype=torch.float64)
    compiled = made(tiny_model_dir, True, dtype=torch.float64, gradient_checkpointing=recomputed)
    assert_close(gradients(compiled, LENGTHS[0]), gradients(plain, LENGTHS[0]), 1e-9)


@pytest.mark.slow
@needs_compiler
def test_gradients_of_the_code_that_inductor_makes(tiny_model_dir, monkeypatch):
    monkeypatch.setattr(torch_compile, "BACKEND", "inductor")
    plain, compiled = (made(tiny_model_dir, which, lora=LoRA(r=2)) for which in (False, True))
    for lengths in LENGTHS:
        assert_close(gradients(compiled, lengths), gradients(plain, lengths), 1e-5)
        # What the first layer is given has no gradient, so that what takes it is another graph than in the second.
        assert 4 < counters["stats"]["unique_graphs"] <= 8
    assert counters["inductor"]


def test_names_and_classes_stay_and_a_copy_is_plain(tiny_model_dir):
    plain, compiled = (made(tiny_model_dir, which, lora=LoRA(r=2)) for which in (False, True))
    assert list(compiled.state_dict()) == list(plain.state_dict())
    names = [[(name, type(module).__name__) for name, module in p.named_modules()] for p in (plain, compiled)]
    assert names[0] == names[1]
    layers = [name for name, module in compiled.named_modules() if module._compiled_call_impl is not None]
    assert [name.rpartition(".layers.")[2] for name in layers] == ["0", "1"]
    assert not [module for module in copy.deepcopy(compiled).modules() if module._compiled_call_impl is not None]
    with pytest.raises(ValueError, match=r"model\.torch_compile: the model has no decoder layers"):
        compile_layers(torch.nn.Linear(2, 2))


def test_nothing_is_compiled_to_generate(tiny_model_dir):
    prompts = [[5, 6, 7, 8], [9, 10], list(range(20, 40))]
    generate = HFGenerator(max_new_tokens=9, temperature=0.8, seed=1)
    want = generate(made(tiny_model_dir, False), prompts, n=2, stop_ids=[2])
    compiled = made(tiny_model_dir, True)
    assert generate(compiled, prompts, n=2, stop_ids=[2]) == want
    assert not counters["frames"]
    score_five(compiled)
    assert counters["frames"]["ok"]  # as ever


def fitted(module, *batches):
    """Gradients of each step before clipping, and what was logged last, of a run in float64."""
    steps, clip = [], module.clip_gradients

    def record():
        steps.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})
        return clip()

    module.clip_gradients = record
    trainer = Trainer(
        accelerator="cpu", precision="64-true", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, Steps(*batches))
    logged = trainer.callback_metrics.items()
    return steps, {name: float(value) for name, value in logged if not name.startswith(("time/", "perf/"))}


def documents(*sizes):
    draw = torch.Generator().manual_seed(sum(sizes))
    ids = [torch.randint(3, 300, (n,), generator=draw).tolist() for n in sizes]
    return [Encoded(row, [0] * 3 + [1] * (len(row) // 2) + [2] * (len(row) - len(row) // 2 - 3)) for row in ids]


def srml(folder, compiled):
    steps = [
        [collate_packed(documents(9, 14, 20), [[0, 1], [2]]), collate_packed(documents(31), [[0]])],
        [collate_packed(documents(25, 8), [[0, 1]])],
        [collate_packed(documents(12, 40, 11, 17), [[0, 3], [1, 2]])],
    ]
    options = {"gradient_checkpointing": GradientCheckpointing(2), "learning_rate": 0.01}
    return fitted(SRMLModule(init_from=str(folder), torch_compile=compiled, **options), *steps)


def grpo(folder, compiled, lora):
    """Two batches of prompts, each of them for two steps."""
    batches = []
    for prompts in ([[5, 6, 7, 8, 9], [10, 11]], [[12, 13, 14], [15]]):
        rows = [Example(id=str(prompt[0]), query="q", tools="[]", answers="[]") for prompt in prompts]
        batches += [PromptBatch(rows, prompts)] * 2
    module = GRPOModule(
        init_from=str(folder),
        lora=lora,
        torch_compile=compiled,
        generator=HFGenerator(max_new_tokens=10, seed=3),
        sampling=Sampling(group_size=4, temperature=0.8),
        rewards={"odd": RewardTerm(lambda completion, tools, answers: float(len(completion) % 3))},
        reward_timeout=None,
        inner_epochs=2,
        micro_batch_tokens=60,
        learning_rate=0.01,
    )
    return fitted(module, *batches)


@pytest.mark.slow
@pytest.mark.parametrize(
    "run",
    [srml, lambda *given: grpo(*given, None), lambda *given: grpo(*given, LoRA(r=2))],
    ids=["srml", "grpo", "lora"],
)
def test_steps_are_those_of_plain_layers(tiny_model_dir, run):
    torch.manual_seed(0)
    want, logged = run(tiny_model_dir, False)
    assert not counters["frames"]
    torch.manual_seed(0)
    got, of_compiled = run(tiny_model_dir, True)
    assert counters["frames"]["ok"] and len(got) == len(want) >= 3
    for mine, plain in zip(got, want, strict=True):
        assert any(gradient.any() for gradient in plain.values())
        assert_close(mine, plain, 1e-6)  # Adam divides by small numbers between the steps
    assert of_compiled == pytest.approx(logged, rel=1e-6, abs=1e-9)


RUN = UNEVEN | {"model.init_args.torch_compile": "true", "model.init_args.gradient_checkpointing": "true"}
SRML = ["fit", "--config", "configs/srml.yaml"]
PLAIN = {"model.init_args.torch_compile": "false"}


@pytest.fixture(scope="module")
def one(base_args, tmp_path_factory):
    """The run of one process, of plain layers."""
    root = tmp_path_factory.mktemp("one")
    main(SRML + base_args(root, **RUN | PLAIN))
    return root / "srml-fit-0"


@pytest.mark.slow
def test_a_run_leaves_what_one_of_plain_layers_leaves(one, base_args, tmp_path, capsys):
    main(SRML + base_args(tmp_path, **RUN))
    assert "layers        compiled one by one (torch.compile)" in capsys.readouterr().out
    run = tmp_path / "srml-fit-0"
    assert metrics(run) == pytest.approx(metrics(one), rel=1e-5, abs=1e-6)
    states = [saved_state(which, 3)["state_dict"] for which in (run, one)]
    assert_close(*states, 1e-5)
    exported = [load_file(which / "hf" / "model.safetensors") for which in (run, one)]
    assert_close(*exported, 1e-5)
    assert sorted(path.name for path in (run / "hf").iterdir()) == sorted(path.name for path in (one / "hf").iterdir())


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit(base_args, tmp_path):
    options = RUN | {"model.init_args.lora.r": 2, "model.init_args.lora.dropout": 0.2}
    options |= {"model.init_args.lora.target_modules": "[q_proj,down_proj]"}  # on both sides of attention
    options |= {"trainer.limit_val_batches": 0}  # of which other code is compiled, for as long
    main(SRML + base_args(tmp_path, **options))
    torch._dynamo.reset()
    whole, resumed = (tmp_path / f"srml-fit-{i}" for i in range(2))
    main([*SRML, *base_args(tmp_path, **options), "--ckpt_path", str(whole / "checkpoints" / "best-000001.ckpt")])
    for part in ("state_dict", "optimizer_states"):
        assert_same(*(saved_state(run, 3)[part] for run in (whole, resumed)))
    assert metrics(resumed) == {key: value for key, value in metrics(whole).items() if key[0] > 1}


@pytest.mark.ranks
@pytest.mark.parametrize(  # what is validated is compiled, too, which takes long: in shards alone
    ("strategy", "more", "names"),
    [("DDP", {"trainer.limit_val_batches": 0}, ("train/",)), ("FSDP2", {}, REPEATABLE)],
    ids=["DDP", "FSDP2"],
)
def test_two_ranks_take_the_steps_of_one(one, base_args, tmp_path, strategy, more, names):
    ranks = {"trainer.devices": 2, "trainer.strategy.class_path": f"lightning_modules.strategies.{strategy}"}
    done = script_on_ranks(TRACED, *SRML, *base_args(tmp_path, **RUN | ranks | more))
    assert done.returncode == 0, done.stderr[-4000:]
    run = tmp_path / "srml-fit-0"
    assert metrics(run) == pytest.approx(metrics(one, names), rel=1e-5, abs=1e-6)
    assert_close(*(load_file(which / "hf" / "model.safetensors") for which in (run, one)), 1e-5)
    assert all(int(count) > 4 for count in re.findall(r"graphs: (\d+)", done.stderr)) and "graphs: " in done.stderr


def test_fsdp1_is_refused(tiny_model_dir):
    module = SRMLModule(init_from=str(tiny_model_dir), torch_compile=True)
    module._trainer = SimpleNamespace(strategy=FSDP1(), precision="bf16-mixed")
    with pytest.raises(ValueError, match=r"model\.torch_compile goes with FSDP2, and trainer\.strategy is FSDP1"):
        module.setup("fit")


@pytest.mark.parametrize(
    ("words", "compiler", "reason"),
    [
        (["--model.attn_implementation=flex_attention"], "sh", "attn_implementation sdpa or eager, and it is flex"),
        ([], "no-such-compiler", "needs a C++ compiler, and there is no no-such-compiler here"),
    ],
)
def test_what_cannot_be_compiled_ends_in_a_sentence(words, compiler, reason, base_args, tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config=configs/srml.yaml", *base_args(tmp_path), "--model.torch_compile=true", *words])
    assert reason in f"{ended.value}{capsys.readouterr().err}"

"""Two ranks that share an engine: it is given the policy in shards, when both have made room for it.

Neither computes beside it while it starts, loads, scores or falls asleep. And two with an engine each, which share the
folder of weights if they are on one node.
"""

import json

import pytest
from training_runs import script_on_ranks

STAND_IN = """
import copy, json, os, pathlib, sys, time
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from peft import PeftModel
from transformers import AutoModelForCausalLM

folder, model, rank = pathlib.Path(sys.argv[1]), sys.argv[2], int(os.environ["RANK"])
vllm = sys.modules["vllm"] = ModuleType("vllm")
vllm.__spec__, vllm.envs = ModuleSpec("vllm", None), SimpleNamespace(VLLM_CACHE_ROOT=str(folder / "cache"))
vllm.SamplingParams = lambda **settings: settings

from datamodules.packing import Encoded
from lightning_modules import SRMLModule
from lightning_modules.generators import VLLMGenerator, engine_group, vllm as module, weight_folder
from lightning_modules.policy import documents
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.shard import blocks_of

dist.init_process_group("gloo")
log = []

class Engine:
    # Scores as transformers does with the files that it was given.
    def __init__(self, folder, device, *rest, **options):
        self.emptied, self.max_model_len = True, options["max_model_len"]

    def load(self, weights, adapters):
        note("load" + " weights" * (weights is not None) + " adapters" * (adapters is not None))
        if weights is not None:
            self.base = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
        self.model = copy.deepcopy(self.base)
        if adapters is not None:
            self.model = PeftModel.from_pretrained(self.model, adapters)
        self.emptied = False

    @torch.no_grad()
    def score(self, ids):
        time.sleep(0.2)  # for a rank that does not wait
        note("score")
        every = self.model(torch.tensor([ids])).logits.log_softmax(-1)[0, :-1]
        return every.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]

    def generate(self, rows, settings, progress):
        note("generate")
        one = SimpleNamespace(token_ids=[2], logprobs=[{2: SimpleNamespace(logprob=-1.0)}], finish_reason="stop")
        return [SimpleNamespace(outputs=[one]) for _ in rows]

    def rest(self, level):
        time.sleep(0.2)
        note(f"rest {level}")
        self.emptied = level == 2

def note(what):
    with (folder / "log.txt").open("a") as file:  # one write of a line is whole
        file.write(f"{rank} {what}\\n")

def sharded(policy):
    for part in (*blocks_of(policy, None), policy):
        fully_shard(part)
    return policy

module.Engine = Engine
torch.manual_seed(0)
"""
SHARED = (
    STAND_IN
    + """
apart = sys.argv[3] == "apart"
generator = VLLMGenerator(tensor_parallel_size=2, max_new_tokens=4, enable_lora=apart)
own = SRMLModule(init_from=model, generator=generator, lora=LoRA(r=4))
whole = build_policy(model)
policy = sharded(build_policy(model, LoRA(r=4)))
data, state = SimpleNamespace(longest_prompt=3), SimpleNamespace(fn="validate")
own._trainer = SimpleNamespace(precision="32-true", datamodule=data, state=state)
own.policy = policy
torch.cuda.empty_cache = lambda: note("room")

references = [[Encoded(list(range(3, 60)), [0] * 20 + [1] * 10 + [2] * 27)] * 3, []][rank]
own.on_validation_start()
assert own.generating[0] is policy  # and no copy of it
own.packed, documents.SCORED_TOKENS = False, 60  # a document at a time
own.score_references(references)  # of another number on each rank
counts = [own.generator(own.generating[0], [[5, 6]] * (2 - rank), stop_ids=[2]) for _ in range(2)]
own.on_validation_end()
before = own.target_loss.compute()
own.generator(policy, [[5]], stop_ids=[2])
with torch.no_grad():
    for name, weight in policy.named_parameters():
        if ".lora_" in name:
            weight.to_local().normal_(std=0.3)
own.generator(own.generating_policy(), [[5]], stop_ids=[2])
own.generator.rest(stale=True)
note("computes")
own.generator.sync(own.generating_policy())  # the policy is as it was, but the weights are gone
note("computes")
own.generator(own.generating_policy(), [[5]], stop_ids=[2])
ids = torch.tensor([range(3, 60)])
with torch.no_grad():
    plain = whole(ids[:, :-1], torch.arange(56)[None], ids[:, 1:]).logprobs
found = {
    "counts": [len(c) for c in counts], "tokens": own.generator.engine.max_model_len if rank == 0 else 0,
    "loss": before, "wanted": [-plain[19:29].mean().item(), -plain[29:].mean().item()],
}
(folder / f"{rank}.json").write_text(json.dumps(found))
dist.destroy_process_group()
"""
)
ONE_EACH = (
    STAND_IN
    + """
kind, nodes, place = sys.argv[3], sys.argv[4], folder / "weights"
engine_group.platform.node = lambda: f"node{rank if nodes == 'two nodes' else 0}"
load, seen, found = Engine.load, [], {"left": []}

def noted(self, weights, adapters):
    time.sleep(0.3 * rank)  # for a writer that does not wait
    seen.append([weights, adapters, os.listdir(place)])
    load(self, weights, adapters)

Engine.load = noted
policy = build_policy(model, LoRA(r=4))
policy = sharded(policy) if kind == "shards" else policy
generator = VLLMGenerator(
    max_new_tokens=4, max_model_len=9, enable_lora=kind == "apart", weights_dir=str(place), timeout=10
)
for behind in (None, 0, 1):
    if rank == behind:
        generator._probed = tuple(scores + 1 for scores in generator._probed)  # as those of another policy would be
        generator._base = generator._base if rank == 0 else None
    generator(policy, [[5]], stop_ids=[2])
    dist.barrier()
    found["left"] += os.listdir(place)
found["seen"] = seen

disk_usage, weight_folder.shutil.disk_usage = weight_folder.shutil.disk_usage, lambda place: type("", (), {"free": 5})
generator._base = None
try:
    generator.sync(policy)
except (OSError, ValueError) as error:
    found["full"] = str(error)
dist.barrier()
found["left"] += os.listdir(place)
(folder / f"{rank}.json").write_text(json.dumps(found))

weight_folder.shutil.disk_usage = disk_usage
Engine.load = lambda *given: os.kill(os.getpid(), 9) if rank else load(*given)
try:
    generator.sync(policy)
except RuntimeError:
    assert nodes == "one node" and not os.listdir(place)
os._exit(0)  # nothing can be destroyed together
"""
)


@pytest.mark.parametrize("apart", [False, True], ids=["merged", "apart"])
@pytest.mark.ranks
def test_an_engine_of_two_ranks_is_given_a_sharded_policy_when_both_have_made_room(tiny_model_dir, tmp_path, apart):
    (script := tmp_path / "ranks.py").write_text(SHARED)
    done = script_on_ranks(script, tmp_path, tiny_model_dir, "apart" if apart else "merged")
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["counts"] for rank in ranks] == [[2, 2], [1, 1]] and ranks[0]["tokens"] == 3 + 4
    lines = (tmp_path / "log.txt").read_text().splitlines()
    end = [line.partition(" ")[2] for line in lines if "room" not in line][-8:]
    both = ["computes", "computes"]
    rest, load = ("rest 1", "load adapters") if apart else ("rest 2", "load weights")
    assert end == [rest, *both, load, "score", *both, "generate"]
    log = [line for line in lines if line.split()[1] not in ("score", "computes")]
    calls = [line for line in log if "room" not in line]
    want = [
        *("0 load weights", "0 generate", "0 generate", "0 rest 1"),
        "0 generate",  # of the same policy
        *("0 load weights", "0 generate", "0 rest 2"),
        *("0 load weights", "0 generate"),
    ]
    apart_want = [
        *("0 load weights adapters", "0 generate", "0 generate", "0 rest 1"),
        "0 generate",
        *("0 load adapters", "0 generate", "0 rest 1"),
        *("0 load adapters", "0 generate"),  # it has kept the weights
    ]
    assert calls == (apart_want if apart else want)
    for i, line in enumerate(log):  # both have emptied their caches since the engine was last used
        if line.startswith("0 load") or (line == "0 generate" and log[i - 1].endswith("room")):
            since = max((j for j in range(i) if "room" not in log[j]), default=-1)
            assert {"0 room", "1 room"} <= set(log[since + 1 : i]), log
    # The same references three times on one rank and none on the other: means over both.
    assert ranks[0]["loss"] == ranks[1]["loss"]
    cot, call = ranks[0]["wanted"]
    assert ranks[0]["loss"] == pytest.approx({"val/loss_cot": cot, "val/loss_call": call}, rel=1e-4)


@pytest.mark.parametrize("nodes", ["one node", "two nodes"])
@pytest.mark.parametrize("kind", ["merged", "apart", "shards"])
@pytest.mark.ranks
def test_two_engines_of_a_node_read_one_folder_which_its_first_rank_writes_and_removes(
    tiny_model_dir, tmp_path, kind, nodes
):
    (script := tmp_path / "ranks.py").write_text(ONE_EACH)
    (tmp_path / "weights").mkdir()
    done = script_on_ranks(script, tmp_path, tiny_model_dir, kind, nodes)
    assert done.returncodes == [0, -9], done.stderr[-3000:]  # the second rank is killed as its engine loads
    assert not list((tmp_path / "weights").iterdir()) or nodes == "two nodes"
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["left"] for rank in ranks] == [[], []]
    assert all("give the generator's weights_dir" in rank["full"] for rank in ranks)
    first, second = (rank["seen"] for rank in ranks)
    assert len(first) == len(second) == 3  # also where the engine of one rank alone is behind
    for (weights, adapters, folders), other in zip(first, second, strict=True):
        if nodes == "two nodes":
            assert weights != other[0] or adapters != other[1]
        else:
            assert [weights, adapters, folders] == other and len(folders) == 1
    assert [weights is not None for weights, _, _ in first] == [True, kind != "apart", True]

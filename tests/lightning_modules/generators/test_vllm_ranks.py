"""Two ranks that share an engine: it is given the policy in shards, when both have made room for it.

Neither computes beside it while it starts, loads, scores or falls asleep.
"""

import json

import pytest
from training_runs import script_on_ranks

SCRIPT = """
import copy, json, os, pathlib, sys, time
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from peft import PeftModel
from transformers import AutoModelForCausalLM

folder, model, apart, rank = pathlib.Path(sys.argv[1]), sys.argv[2], bool(sys.argv[3:]), int(os.environ["RANK"])
vllm = sys.modules["vllm"] = ModuleType("vllm")
vllm.__spec__, vllm.envs = ModuleSpec("vllm", None), SimpleNamespace(VLLM_CACHE_ROOT=str(folder / "cache"))
vllm.SamplingParams = lambda **settings: settings

from datamodules.packing import Encoded
from lightning_modules import SRMLModule
from lightning_modules.generators import VLLMGenerator, vllm as module
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

torch.manual_seed(0)
generator = VLLMGenerator(tensor_parallel_size=2, max_new_tokens=4, enable_lora=apart)
own = SRMLModule(init_from=model, generator=generator, lora=LoRA(r=4))
whole = build_policy(model)
policy = build_policy(model, LoRA(r=4))
for part in (*blocks_of(policy, None), policy):
    fully_shard(part)
data, state = SimpleNamespace(longest_prompt=3), SimpleNamespace(fn="validate")
own._trainer = SimpleNamespace(precision="32-true", datamodule=data, state=state)
own.policy, module.Engine = policy, Engine
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


@pytest.mark.parametrize("apart", [False, True], ids=["merged", "apart"])
@pytest.mark.ranks
def test_an_engine_of_two_ranks_is_given_a_sharded_policy_when_both_have_made_room(tiny_model_dir, tmp_path, apart):
    (script := tmp_path / "ranks.py").write_text(SCRIPT)
    done = script_on_ranks(script, tmp_path, tiny_model_dir, *["apart"][:apart])
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

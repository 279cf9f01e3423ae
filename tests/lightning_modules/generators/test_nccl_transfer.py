"""Two ranks that share the weights send them to servers: each gathers one at a time, and none ever holds them all.

vLLM's engine for trainers and the servers are stand-ins; `make test-vllm` has vLLM's own.
"""

import json

import pytest
import torch
from training_runs import SHARDED, script_on_ranks

SCRIPT = (
    SHARDED
    + """
import json, os, pathlib, sys
from functools import partial
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

folder, model, rank = pathlib.Path(sys.argv[1]), sys.argv[2], int(os.environ["RANK"])
sent, engines = {}, []

class Engine:
    # Asks for weights as vLLM's does, and fails in the middle if it is told to.
    fails_at = None

    def __init__(self, info, client, source):
        self.source = source
        engines.append(info.world_size)

    def send_weights(self):
        told = self.source.metadata()
        if self.fails_at == 0:
            raise RuntimeError("refused")
        for place, ((name, weight), meta) in enumerate(zip(self.source, told, strict=True), start=1):
            assert (name, weight.dtype, tuple(weight.shape)) == (meta.name, meta.dtype, meta.shape)
            sent[name] = weight.clone()
            if place == self.fails_at:
                raise RuntimeError("lost")

for part in ("", ".distributed", ".distributed.weight_transfer"):
    (module := ModuleType(f"vllm{part}")).__spec__ = ModuleSpec(f"vllm{part}", None)
    sys.modules[f"vllm{part}"] = module
engine = "vllm.distributed.weight_transfer"
sys.modules[f"{engine}.base"] = SimpleNamespace(ParamMeta=lambda *m: SimpleNamespace(name=m[0], dtype=m[1], shape=m[2]))
sys.modules[f"{engine}.factory"] = SimpleNamespace(WeightTransferTrainerFactory=SimpleNamespace(trainer_init=Engine))
sys.modules[f"{engine}.nccl_engine"] = SimpleNamespace(NCCLTrainerInitInfo=SimpleNamespace)

from lightning_modules.generators import VLLMServerGenerator, nccl_transfer

policy, whole = sharded(model, LoRA(r=4))
url = "http://127.0.0.1:9"
generator = VLLMServerGenerator([url], transfer="nccl", timeout=60.0)
answers = {"_weight_version": "default", "_world_size": 3}
generator.servers.everywhere = lambda call, again=True: {url: answers[call.__name__]}
generator._find = lambda: (torch.bfloat16, 100)
generator._settle = lambda *given: ("first", [url])
unshard.unshard, torch.cuda.set_device = counted, lambda device: None
nccl_transfer.NCCLTransfer.join = lambda self, *given: self._timed(partial(self._join, *given), None)  # from no GPU

generator.sync(policy)
found = {"most": most[0], "left": len(held), "groups": engines}
if rank == 0:
    torch.save(sent, folder / "sent.pt")
    torch.save(whole, folder / "whole.pt")
answers["_weight_version"] = "first"
for Engine.fails_at in (0, 5):
    try:
        generator.sync(policy)
    except RuntimeError as error:
        found[f"at {Engine.fails_at}"] = str(error)
Engine.fails_at = None
generator.sync(policy)  # nobody waits for anybody
with torch.no_grad():
    policy.causal_lm.model.norm.weight.to_local().fill_(torch.nan)
sent.clear()
try:
    generator.sync(policy)
except ValueError as error:
    found["refused"] = str(error)
found["sent"] = len(sent)
(folder / f"{rank}.json").write_text(json.dumps(found))
dist.destroy_process_group()
"""
)


@pytest.mark.ranks
def test_ranks_gather_one_weight_at_a_time_for_the_first_one_to_send(tiny_model_dir, tmp_path):
    (script := tmp_path / "ranks.py").write_text(SCRIPT)
    done = script_on_ranks(script, tmp_path, tiny_model_dir)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    sent, whole = (torch.load(tmp_path / f"{name}.pt") for name in ("sent", "whole"))
    assert sent.keys() == whole.keys()
    assert all(torch.equal(sent[name], weight.bfloat16()) for name, weight in whole.items())
    assert [rank["groups"] for rank in ranks] == [[4], []]  # of this process and three workers, once
    largest = max(weight.nbytes for weight in whole.values())  # and both halves of its adapter
    total = sum(weight.nbytes for weight in whole.values())
    for rank in ranks:
        assert rank["left"] == 0 and largest <= rank["most"] < min(1.5 * largest, total / 2)  # in float32
        assert [rank["at 0"], rank["at 5"]] == ["refused", "lost"]  # on both
        assert rank["refused"].startswith("The weight model.norm.weight is not finite in torch.bfloat16")
        assert rank["sent"] == 0

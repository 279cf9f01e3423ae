"""Weights over NCCL as far as no GPU is needed: vLLM's engine for trainers on one side, its routes on the other.

Stand-ins are NCCL itself, its broadcast, and the engines behind the routes, which read what they are sent as vLLM's
workers do.
"""

import time
from contextlib import ExitStack, contextmanager
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
import uvicorn
from families import FAMILIES
from fastapi import FastAPI
from safetensors.torch import load_file
from vllm.distributed.weight_transfer import nccl_engine
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo
from vllm.entrypoints.rl.online.api_router import router

from lightning_modules.generators.nccl_transfer import NCCLTransfer
from lightning_modules.generators.server_requests import Servers
from lightning_modules.generators.weight_source import PolicyWeights
from lightning_modules.policy.model import LoRA, build_policy
from lightning_modules.policy.unshard import merged_weights


class Engine:
    """Behind the routes, of so many workers; `log` holds what it was told, but the name of its weights."""

    def __init__(self, workers):
        self.log, self.version = [], "default"
        self.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(world_size_across_dp=workers))

    async def init_weight_transfer_engine(self, request):
        self.log.append(NCCLWeightTransferInitInfo(**request.init_info))

    async def start_weight_update(self):
        self.log.append("start")

    async def update_weights(self, request):
        self.log.append(NCCLWeightTransferUpdateInfo(**request.update_info))

    async def finish_weight_update(self, version):
        self.log.append("finish")

    async def shutdown_weight_transfer_engine(self):
        self.log.append("shutdown")

    async def update_weight_version(self, version):
        self.version = version

    async def get_weight_version(self):
        return self.version

    def steps(self):
        """Of the log, classes by their names without NCCL."""
        return [told if isinstance(told, str) else type(told).__name__[4:] for told in self.log]


@contextmanager
def serving(engine):
    app = FastAPI()
    app.include_router(router)
    app.add_api_route("/health", lambda: {})
    app.state.engine_client = engine
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def nccl(monkeypatch):
    """What the first rank has joined and sent."""
    found = SimpleNamespace(joined=[], sent=[], left=0)

    def leave():
        found.left += 1

    def join(info):
        found.joined.append(info)
        return SimpleNamespace(destroy=leave)

    def send(iterator, group, src, post_iter_func, buffer_size_bytes, num_buffers):
        found.sent.append({item[0]: post_iter_func(item).clone() for item in iterator})

    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", join)
    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", send)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return found


JOIN, SYNC = "WeightTransferInitInfo", ["start", "WeightTransferUpdateInfo", "finish"]


def give(transfer, policy, dtype, held):
    """Send as a sync does, from no GPU."""
    weights = PolicyWeights(policy, dtype)
    transfer._join(weights, held)
    transfer._send(weights)


def settle(servers, version):
    """Name the weights that the servers were given, as the end of a sync does."""
    servers.everywhere(lambda server, ask: ask("/update_weight_version", {"new_version": version}))


def test_every_worker_has_a_place_and_is_told_of_every_weight(nccl, small_heads_dir):
    policy = build_policy(str(small_heads_dir), lora=LoRA(r=2))
    want = {name: weight.to(torch.bfloat16) for name, weight in merged_weights(policy)}
    engines = [Engine(2), Engine(1)]
    with ExitStack() as stack:
        (one, _), (other, server) = (stack.enter_context(serving(engine)) for engine in engines)
        servers = Servers([one, other], 30.0, 1)
        transfer = NCCLTransfer(servers, 30.0)
        give(transfer, policy, torch.bfloat16, None)
        settle(servers, "first")
        give(transfer, policy, torch.bfloat16, "first")
        settle(servers, "second")
        server.should_exit = True
        while server.started and server.servers[0].is_serving():
            time.sleep(0.01)
        with pytest.warns(UserWarning, match=f"{other} is lost"):
            servers.everywhere(lambda server, ask: ask("/get_world_size"))
        give(transfer, policy, torch.bfloat16, "second")
    assert [(info.rank, info.world_size) for info in nccl.joined] == [(0, 4), (0, 3)]
    places = [[told.rank_offset for told in engine.log if hasattr(told, "rank_offset")] for engine in engines]
    assert places == [[1, 1], [3]]  # after the first rank; the second server's after the two workers of the first
    first, update = engines[0].log[0], engines[0].log[2]
    assert (first.master_address, first.master_port) == (nccl.joined[0].master_address, nccl.joined[0].master_port)
    assert first.world_size == 4 and first.packed == nccl.joined[0].packed
    assert engines[0].steps() == [JOIN, *SYNC, *SYNC, "shutdown", JOIN, *SYNC]
    assert nccl.left == 1 and len(nccl.sent) == 3
    assert update.names == list(nccl.sent[0]) and set(update.dtype_names) == {"bfloat16"}
    assert update.shapes == [list(want[name].shape) for name in update.names]
    assert nccl.sent[0].keys() == want.keys()
    assert all(torch.equal(nccl.sent[0][name], weight) for name, weight in want.items())


def test_weights_of_experts_have_the_names_of_the_family(tmp_path, tiny_tokenizer):
    """transformers holds those of a layer in one tensor; vLLM reads one for each expert, as in the family's files."""
    mixture = next(family for family in FAMILIES if family.kind == "qwen3_moe")
    policy = build_policy(str(mixture.save(tmp_path / "model", tiny_tokenizer)))
    weights = PolicyWeights(policy, torch.float32)
    policy.causal_lm.save_pretrained(tmp_path / "whole")
    want = load_file(tmp_path / "whole" / "model.safetensors")
    got, told = dict(weights), weights.metadata()
    assert "model.layers.0.mlp.experts.3.up_proj.weight" in want and want.keys() | {"lm_head.weight"} == got.keys()
    assert all(torch.equal(got[name], weight) for name, weight in want.items())
    assert [(meta.name, meta.shape) for meta in told] == [(name, weight.shape) for name, weight in got.items()]


def test_a_server_that_was_started_again_joins_again_with_the_others(nccl, small_heads_dir):
    policy, engines = build_policy(str(small_heads_dir)), [Engine(1), Engine(1)]
    with ExitStack() as stack:
        servers = Servers([stack.enter_context(serving(engine))[0] for engine in engines], 30.0, 1)
        transfer = NCCLTransfer(servers, 30.0)
        give(transfer, policy, torch.float32, None)
        settle(servers, "first")
        engines[1].version, engines[1].log = "default", []  # as vLLM's are at the start
        give(transfer, policy, torch.float32, "first")
        settle(servers, "second")
        give(transfer, policy, torch.float32, "second")
    assert [info.world_size for info in nccl.joined] == [3, 3] and nccl.left == 1 and len(nccl.sent) == 3
    assert engines[0].steps() == [JOIN, *SYNC, "shutdown", JOIN, *SYNC, *SYNC]
    assert engines[1].steps() == ["shutdown", JOIN, *SYNC, *SYNC]


def test_nothing_is_sent_where_a_weight_is_not_finite_or_no_gpu_holds_it(nccl, small_heads_dir):
    policy, engine = build_policy(str(small_heads_dir)), Engine(1)
    with serving(engine) as (url, _):
        transfer = NCCLTransfer(Servers([url], 30.0, 1), 30.0)
        with pytest.raises(ValueError, match="the policy is on none: give transfer folder"):
            transfer.join(PolicyWeights(policy, torch.float32), None)
        with torch.no_grad():
            policy.causal_lm.model.norm.weight[3] = torch.nan
        with pytest.raises(ValueError, match=r"The weight model\.norm\.weight is not finite"):
            give(transfer, policy, torch.float32, None)
    assert not engine.log and not nccl.sent

"""Weights handed to an engine through the memory of a GPU that both are on (CUDA IPC). No GPU has run this."""

import pickle
from base64 import b64encode
from typing import Any

from lightning_modules.generators.vllm_engine import Engine
from lightning_modules.generators.weight_source import PolicyWeights

PACK = 2**30
"""Bytes that are handed over at a time: on each GPU the policy's process holds them, and the engine a copy."""


def send_over_ipc(weights: PolicyWeights, engine: Engine | None) -> None:
    """Hand weights to the workers of engines, each from the GPU that it is on; a collective.

    It is vLLM 0.32's engine for trainers (`vllm.distributed.weight_transfer`). Every rank packs the weights on its GPU,
    and tells those that run an engine where; sharded ones are gathered one at a time. No GPU has run this: it is tested
    between a real engine and vLLM's own code on the CPU, with a mapped file for the memory of a GPU. If an engine fails
    while others load, their ranks wait until their strategy ends them.

    Args:
        weights: Of the policy, on every rank.
        engine: That this rank runs, with its weights awake; None where another rank runs it.

    Raises:
        TimeoutError: If the engine hangs.
        RuntimeError: If the engine fails or dies.
    """
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    place = 0 if engine is not None else 1  # that of vLLM's sender is 0, and each engine has one
    info = IPCTrainerInitInfo(rank=place, packed=True, packed_buffer_size_bytes=max(PACK, weights.largest))
    WeightTransferTrainerFactory.trainer_init(info, client=EngineClient(engine), source=weights).send_weights()


class EngineClient:
    """What vLLM's engine for trainers asks of an engine: its protocol `VLLMWeightSyncClient`."""

    def __init__(self, engine: Engine | None) -> None:
        self.engine = engine

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Say how weights come."""
        self.engine.tell("init_weight_transfer_engine", init_info=init_info)

    def start_weight_update(self) -> None:
        """Have the engine ready for weights."""
        self.engine.tell("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Have the engine load a pack of weights; returns when it has a copy."""
        places = b64encode(pickle.dumps(update_info["ipc_handles"])).decode()  # as text, for they are Python objects
        encoded = update_info | {"ipc_handles": None, "ipc_handles_pickled": places}
        self.engine.tell("update_weights", update_info=encoded)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Have the engine use the weights that it has loaded."""
        self.engine.tell("finish_weight_update")

"""Weights sent to vLLM servers over NCCL by vLLM's own transfer engine, from the first rank's GPU. Not run on a GPU."""

import socket
from collections.abc import Iterator
from concurrent.futures import Future
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from datamodules.refinement.servers import Server
from lightning_modules.generators.server_protocol import is_loopback
from lightning_modules.generators.server_requests import Ask, Servers
from lightning_modules.generators.vllm_engine import AFTERWARDS
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.unshard import merged_weights

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import ParamMeta
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine


class NCCLTransfer:
    """Sends weights to the servers' workers, which with this process make one NCCL group.

    It is vLLM 0.32's engine for trainers (`vllm.distributed.weight_transfer`), with several servers where that has one.
    The servers are started with `--weight-transfer-config '{"backend": "nccl"}'` and in dev mode. No GPU has run this:
    its calls are checked against vLLM's signatures, and its requests against vLLM's routes. The group is made anew when
    its members are others, or one of them was started again.

    Args:
        servers: Of the run.
        timeout: Seconds that joining the group, and each transfer, may take.
    """

    def __init__(self, servers: Servers, timeout: float) -> None:
        self.servers, self.timeout = servers, timeout
        self.source: PolicyWeights | None = None
        self._engine: NCCLTrainerWeightTransferEngine | None = None
        self._members: dict[str, int] = {}  # places in the group of the servers' first workers, by their addresses

    def send(self, policy: ScoredCausalLM, dtype: torch.dtype, held: str | None) -> None:
        """Send the weights, adapters merged, to every server that is alive.

        Args:
            policy: On a GPU.
            dtype: Of the servers' weights.
            held: Version that the servers' weights got at the last sync, None before the first. A server that holds
                another was started again since, and is in no group.

        Raises:
            ValueError: The policy is not on a GPU, or a weight is not finite; nothing is sent.
            TimeoutError: A server or the network hangs; the group cannot be used any more.
            RuntimeError: A server fails or refuses.
        """
        if policy.causal_lm.device.type != "cuda":
            raise ValueError("transfer nccl sends weights from a GPU, and the policy is on none: give transfer folder.")
        outcome: Future[None] = Future()

        def sending() -> None:
            try:
                outcome.set_result(self._send(policy, dtype, held))
            except Exception as error:  # it belongs to the caller, who is in another thread
                outcome.set_exception(error)

        Thread(target=sending, daemon=True).start()  # nothing stops one that waits in NCCL
        try:
            outcome.result(self.timeout)
        except TimeoutError as error:
            raise TimeoutError(
                f"Weights were on their way to the vLLM servers for more than {self.timeout:g} s: raise "
                f"the generator's timeout if that is too little, and {AFTERWARDS}"
            ) from error

    def _send(self, policy: ScoredCausalLM, dtype: torch.dtype, held: str | None) -> None:
        torch.cuda.set_device(policy.causal_lm.device)  # that of a new thread is the first one
        weights = PolicyWeights(policy, dtype)
        versions = self.servers.everywhere(_weight_version)
        if self._engine is None or list(self._members) != list(versions) or set(versions.values()) != {held}:
            self._join(weights)
        self._engine.source = weights
        self._engine.send_weights()

    def _join(self, weights: "PolicyWeights") -> None:
        """Make the NCCL group of this process and the workers of the servers that are alive."""
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        sizes, place = self.servers.everywhere(_world_size), 1  # after this process
        self._members = {}
        for url, size in sizes.items():
            self._members[url], place = place, place + size
        if self._engine is not None:
            self._engine.shutdown()
            self._everywhere("/shutdown_weight_transfer_engine")
        hosts = [urlsplit(url).hostname or "" for url in sizes]
        address, port = free_address(next((host for host in hosts if not is_loopback(host)), hosts[0]))
        info = NCCLTrainerInitInfo(rank=0, master_address=address, master_port=port, world_size=place)
        self._engine = WeightTransferTrainerFactory.trainer_init(info, client=self, source=weights)

    # vLLM's protocol `VLLMWeightSyncClient`, which its engine calls, for all servers at once.

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Have the servers' workers join the group."""

        async def join(server: Server, ask: Ask) -> None:
            place = {"rank_offset": self._members[server.url]}
            await ask("/init_weight_transfer_engine", {"init_info": init_info | place})

        self._all(self.servers.everywhere(join, again=False))

    def start_weight_update(self) -> None:
        """Have the servers ready for weights."""
        self._everywhere("/start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Have the servers receive weights; they answer when they have them."""
        self._everywhere("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Have the servers use the weights that they have received."""
        self._everywhere("/finish_weight_update", {"weight_version": weight_version})

    def _everywhere(self, path: str, body: dict[str, Any] | None = None) -> None:
        async def post(server: Server, ask: Ask) -> None:
            await ask(path, body or {})

        self._all(self.servers.everywhere(post, again=False))

    def _all(self, answers: dict[str, None]) -> None:
        """RuntimeError where a member of the group is missing, for which the others would wait for ever."""
        if missing := set(self._members) - set(answers):
            raise RuntimeError(
                f"The vLLM server at {', '.join(sorted(missing))} was lost in a weight sync: {AFTERWARDS}"
            )


class PolicyWeights:
    """A policy's weights, adapters merged, as vLLM's engine reads them: a `WeightSource` by its methods.

    Args:
        policy: Whose weights.
        dtype: In which they are sent.
    """

    def __init__(self, policy: ScoredCausalLM, dtype: torch.dtype) -> None:
        self.policy, self.dtype = policy, dtype

    def metadata(self) -> "list[ParamMeta]":
        """Name, dtype and shape of each.

        Raises:
            ValueError: One is not finite.
        """
        from vllm.distributed.weight_transfer.base import ParamMeta

        found = []
        for name, weight in self:
            if not weight.isfinite().all():
                raise ValueError(
                    f"The weight {name} is not finite in {self.dtype}: the vLLM servers were not given it."
                )
            found.append(ParamMeta(name, weight.dtype, tuple(weight.shape)))
        return found

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor of each."""
        for name, weight in merged_weights(self.policy):
            yield name, weight.detach().to(self.dtype)


def free_address(host: str) -> tuple[str, int]:
    """This machine's address as another host sees it, and a port that is free."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect((host, 9))  # sends nothing
        address = way.getsockname()[0]
    with socket.socket() as free:
        free.bind((address, 0))
        return address, free.getsockname()[1]


async def _world_size(server: Server, ask: Ask) -> int:
    return (await ask("/get_world_size"))["world_size"]


async def _weight_version(server: Server, ask: Ask) -> str:
    return (await ask("/weight_info"))["weight_version"]

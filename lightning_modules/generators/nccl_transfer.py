"""Weights sent to vLLM servers over NCCL by vLLM's own transfer engine, from the first rank's GPU. Not run on a GPU."""

import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import torch

from datamodules.refinement.servers import Server
from datamodules.system.threads import in_thread
from lightning_modules.generators.server_protocol import is_loopback
from lightning_modules.generators.server_requests import Ask, Servers
from lightning_modules.generators.vllm_engine import AFTERWARDS
from lightning_modules.generators.weight_source import PolicyWeights

if TYPE_CHECKING:
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
        self._engine: NCCLTrainerWeightTransferEngine | None = None
        self._members: dict[str, int] = {}  # places in the group of the servers' first workers, by their addresses

    def join(self, weights: PolicyWeights, held: str | None) -> None:
        """Make the group of this process and the workers of the servers that are alive, unless it is as it was.

        Args:
            weights: To be sent.
            held: Version that the servers' weights got at the last sync, None before the first. A server that holds
                another was started again since, and is in no group.

        Raises:
            ValueError: The policy is not on a GPU.
            TimeoutError: A server or the network hangs; the group cannot be used any more.
            RuntimeError: A server fails or refuses.
        """
        if weights.device.type != "cuda":
            raise ValueError("transfer nccl sends weights from a GPU, and the policy is on none: give transfer folder.")
        self._timed(partial(self._join, weights, held), weights.device)

    def send(self, weights: PolicyWeights) -> None:
        """Send the weights to the members of the group; where they are sharded, the other ranks `gather` them.

        Raises:
            TimeoutError: See `join`; other ranks wait for this one in a gather until it or their strategy ends them.
            RuntimeError: See `join`; nothing is left to gather then.
        """
        self._timed(partial(self._send, weights), weights.device)

    def _timed(self, call: Callable[[], None], device: torch.device) -> None:
        def calling() -> None:
            torch.cuda.set_device(device)  # that of a new thread is the first one
            call()

        try:
            in_thread(calling).result(self.timeout)  # nothing stops one that waits in NCCL
        except TimeoutError as error:
            raise TimeoutError(
                f"Weights were on their way to the vLLM servers for more than {self.timeout:g} s: raise "
                f"the generator's timeout if that is too little, and {AFTERWARDS}"
            ) from error

    def _send(self, weights: PolicyWeights) -> None:
        self._engine.source = weights
        try:
            self._engine.send_weights()
        finally:
            weights.gather_rest()

    def _join(self, weights: PolicyWeights, held: str | None) -> None:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        versions = self.servers.everywhere(_weight_version)
        if self._engine is not None and list(self._members) == list(versions) and set(versions.values()) == {held}:
            return
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

"""Writing in the background: a checkpoint is copied to the CPU, and the run goes on while the copy is written."""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.distributed.tensor import DTensor


class Background:
    """A thread that carries out one thing after the other; what fails there is raised where it is waited for."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.last: Future[None] | None = None

    def start(self, act: Callable[[], None]) -> None:
        """Begin something, once all before it is done: of two checkpoints one waits for the other.

        Raises:
            Exception: What failed before.
        """
        self.wait()
        self.last = self.thread.submit(act)

    def follow(self, act: Callable[[], None]) -> None:
        """Let something follow what is under way, unless that fails; returns at once."""
        before = self.last

        def then() -> None:
            if before:
                before.result()
            act()

        self.last = self.thread.submit(then)

    def wait(self) -> None:
        """Wait until nothing is under way.

        Raises:
            Exception: What failed there.
        """
        last, self.last = self.last, None
        if last:
            last.result()


def snapshot(state: Any) -> Any:
    """A copy of a state on the CPU, which goes on being what it is; tensors that share memory share it in the copy."""
    copies: dict[int, Any] = {}
    memory: dict[tuple[Any, ...], Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        place = (own.data_ptr(), own.shape, own.stride(), own.dtype)
        if place not in memory or not own.numel():
            memory[place] = tensor.detach().to("cpu", copy=True)
        copies[id(tensor)] = memory[place]
        return tensor

    apply_to_collection(state, Tensor, keep)
    return copy.deepcopy(state, copies)

"""A policy's weights as vLLM's engines for weight transfer ask for them, layer by layer."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_modules.generators.weight_folder import finite
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.unshard import computing_device, is_sharded, merged_on_meta, merged_weights
from lightning_modules.policy.weight_blocks import by_blocks

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import ParamMeta


class PolicyWeights:
    """A policy's weights, adapters merged, under the names of its family's files: a `WeightSource` by its methods.

    Where the policy is sharded each is gathered as it is asked for, and a rank holds those of one decoder layer, as the
    names of experts are made of a whole one. To make this, and to take or `gather` its weights, is a collective then.

    Args:
        policy: Whose weights.
        dtype: In which they are sent.

    Attributes:
        device: From which they are sent.
        largest: Bytes of the largest of them.

    Raises:
        ValueError: One is not finite in that dtype; on every rank.
    """

    def __init__(self, policy: ScoredCausalLM, dtype: torch.dtype) -> None:
        self.policy, self.dtype, self.device = policy, dtype, computing_device(policy)
        self._merged = merged_on_meta(policy)
        layers = by_blocks(policy, self._merged, self._merged.items())
        self._empty = {name: weight for _, layer in layers for name, weight in layer.items()}
        self.largest = max(empty.numel() for empty in self._empty.values()) * dtype.itemsize
        self._left: Iterator[tuple[str, Tensor]] | None = None
        for name, weight in merged_weights(policy):
            finite(name, weight, dtype)
            del weight  # before the next one is gathered

    def metadata(self) -> "list[ParamMeta]":
        """Name, dtype and shape of each; nothing is gathered."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, self.dtype, tuple(empty.shape)) for name, empty in self._empty.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor of each."""
        self._left = self._every()
        return self._left

    def _every(self) -> Iterator[tuple[str, Tensor]]:
        for _, layer in by_blocks(self.policy, self._merged, self._on_device()):
            yield from layer.items()
            del layer  # before the next one is gathered

    def _on_device(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in merged_weights(self.policy):
            yield name, weight.detach().to(self.device, self.dtype)
            del weight  # before the next one is gathered

    def gather(self) -> None:
        """Help to gather the weights that the first rank sends, if they are sharded."""
        if is_sharded(self.policy):
            for _ in merged_weights(self.policy):
                pass

    def gather_rest(self) -> None:
        """Gather what the engine has not asked for, for which the other ranks would wait; it has failed then."""
        if is_sharded(self.policy):
            for _ in self if self._left is None else self._left:
                pass

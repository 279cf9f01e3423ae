"""Keys and values of rows that end in the same column: they grow in place, and rows leave and join.

Letters: B rows, H key heads, C columns, D size of a head.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

ROOM = 64  # columns beside those in use: how many tokens a row gets before its keys are moved


class RowLayer(DynamicLayer):
    """Cache of one layer; what a sliding window does not reach is dropped when the columns are moved.

    Keys and values are kept in the dtype of autocast where that is on, which attention would cast them to.

    Args:
        window: Columns that a query sees, its own among them; None for all.
    """

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.window = window
        self.is_sliding = window is not None
        self.length = 0  # columns so far, those dropped among them
        self.end = 0  # columns in use

    @property
    def kept(self) -> int:
        """Columns that a next query sees."""
        return self.length if self.window is None else min(self.length, self.window - 1)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add columns, [B, H, new, D]; returns those that their queries see."""
        new, kept = key_states.shape[-2], self.kept
        if self.keys is None or self.end + new > self.keys.shape[-2]:
            self._move(key_states, value_states, kept)
        for states, added in ((self.keys, key_states), (self.values, value_states)):
            states[:, :, self.end : self.end + new] = added
        self.length, self.end = self.length + new, self.end + new
        seen = slice(self.end - new - kept, self.end)
        return self.keys[:, :, seen], self.values[:, :, seen]

    def _move(self, key_states: Tensor, value_states: Tensor, kept: int) -> None:
        """Make room for new columns."""
        old, seen = (self.keys, self.values), slice(self.end - kept, self.end)
        room = kept + key_states.shape[-2] + (ROOM if self.length else 0)
        self.keys, self.values = (_states(like, len(like), room) for like in (key_states, value_states))
        if kept:
            for states, before in zip((self.keys, self.values), old, strict=True):
                states[:, :, :kept] = before[:, :, seen]
        self.end = kept
        self.is_initialized = True

    @classmethod
    def joined(cls, parts: Sequence[tuple[Self, Tensor]], length: int) -> Self:
        """Rows of several caches in one, all ending in the same column.

        Args:
            parts: Caches with the rows to take from each, long.
            length: Columns of the longest of these rows.
        """
        layer = cls(parts[0][0].window)
        layer.length, layer.is_initialized = length, True
        layer.end = layer.kept
        rows = sum(len(chosen) for _, chosen in parts)
        for name in ("keys", "values"):
            states, start = _states(getattr(parts[0][0], name), rows, layer.end + ROOM), 0
            states[:, :, : layer.end] = 0  # what is masked must still be finite
            for part, chosen in parts:
                width, stop = min(part.kept, layer.end), start + len(chosen)
                columns = getattr(part, name)[:, :, part.end - width : part.end]
                states[start:stop, :, layer.end - width : layer.end] = columns[chosen]
                start = stop
            setattr(layer, name, states)
        return layer

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that new queries see, and the number of those before."""
        return self.kept + query_length, self.length - self.kept

    def get_seq_length(self) -> int:
        """Columns so far."""
        return self.length

    def get_max_length(self) -> int:
        """The window, or -1."""
        return self.window or -1


def _states(like: Tensor, rows: int, columns: int) -> Tensor:
    """Room for keys or values, [rows, H, columns, D]."""
    device = like.device
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else like.dtype
    return torch.empty(rows, like.shape[1], columns, like.shape[3], dtype=dtype, device=device)


def row_cache(config: PreTrainedConfig) -> Cache:
    """An empty cache for a model of that configuration.

    Raises:
        TypeError: If it has layers of which more than keys and values are kept.
    """
    cache = DynamicCache(config=config)
    kinds = {type(layer) for layer in cache.layers}
    if not cache.layers or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(f"rows cannot leave a cache of {names or 'no layers'}")
    cache.layers = [RowLayer(getattr(layer, "sliding_window", None)) for layer in cache.layers]
    return cache


def join_rows(caches: Sequence[tuple[Cache, Tensor]], length: int) -> Cache:
    """Rows of several caches in one; those of the caches are gone.

    Args:
        caches: Each with the rows to take from it, long.
        length: Columns of the longest of these rows, padding at its left not counted.
    """
    cache = caches[0][0]
    for number in range(len(cache.layers)):
        cache.layers[number] = RowLayer.joined([(part.layers[number], rows) for part, rows in caches], length)
        for part, _ in caches[1:]:
            part.layers[number] = None
    return cache

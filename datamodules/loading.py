"""The training loader: global batches in an order that is a pure function of (seed, epoch), resumable at any batch."""

import math
import os
import random
from collections.abc import Callable, Iterator
from typing import Any


def settled_seed(seed: int | None) -> int:
    """The seed given; when None that of the run, which `seed_everything` has left in the environment, or else 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed


def epoch_order(rows: int, seed: int, epoch: int) -> list[int]:
    """A permutation of the rows that depends on nothing but these three numbers."""
    order = list(range(rows))
    random.Random(f"{seed}-{epoch}").shuffle(order)
    return order


class ResumableLoader:
    """Yields batches made from the row numbers of each global batch, and resumes where a checkpoint left off.

    Lightning saves and restores the state of a loader that has `state_dict` and `load_state_dict`. Iterating never
    starts over: it goes on from the position, which moves into the next epoch after the last batch. So it does not
    matter how often `iter` is called, and `limit_train_batches` cuts an epoch without repeating its first rows.

    Args:
        rows: Number of rows.
        batch_size: Rows per global batch; the last one of an epoch may be smaller.
        make_batch: Makes this rank's batch from the rows of the global batch.
        seed: Seed of the order.
    """

    def __init__(self, rows: int, batch_size: int, make_batch: Callable[[list[int]], Any], seed: int = 0) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.make_batch = make_batch
        self.seed = seed
        self.epoch = 0
        self.batch = 0  # batches handed out in this epoch

    def __len__(self) -> int:
        """Batches of an epoch, the last partial one included."""
        return math.ceil(self.rows / self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        """As many batches as an epoch has, from the present position on."""
        order, of_epoch = [], None
        for _ in range(len(self)):
            if self.batch == len(self):
                self.epoch, self.batch = self.epoch + 1, 0
            if of_epoch != self.epoch:
                order, of_epoch = epoch_order(self.rows, self.seed, self.epoch), self.epoch
            start = self.batch * self.batch_size
            self.batch += 1  # before the yield: a checkpoint written in this step counts its batch as done
            yield self.make_batch(order[start : start + self.batch_size])

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in."""
        return {name: getattr(self, name) for name in ("epoch", "batch", "seed", "rows", "batch_size")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position, in the order of the saved seed.

        Raises:
            ValueError: The position is one in other batches than this loader's.
        """
        for name in ("rows", "batch_size"):
            if state[name] != getattr(self, name):
                key = "training rows" if name == "rows" else "data.batch_size"
                raise ValueError(
                    f"the checkpoint was written with {state[name]} {key} and this run has {getattr(self, name)}: "
                    "resume with the same data and the same data.batch_size"
                )
        self.epoch, self.batch, self.seed = state["epoch"], state["batch"], state["seed"]

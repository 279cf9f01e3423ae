"""Loaders of global batches: resumable ones to train on, in an order given by (seed, epoch), and one to evaluate on."""

import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from datamodules.example import Example
from datamodules.packing import Encoded


def resolve_seed(seed: int | None) -> int:
    """The seed given; when None that of the run, which `seed_everything` has left in the environment, or else 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed


@lru_cache(maxsize=1)  # every batch of an epoch asks for the same one
def epoch_order(rows: int, seed: int, epoch: int) -> list[int]:
    """The shuffled row numbers of an epoch, not to be changed; they depend on nothing but these three numbers."""
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
        digest: Of the rows; without it ("") a resume can only compare their number.
    """

    SIZES: ClassVar = {"rows": "the number of training rows", "batch_size": "data.batch_size"}
    """What a position depends on, and what a user calls each."""
    repeats = 1  # how often each batch is handed out, one time after the other

    def __init__(
        self, rows: int, batch_size: int, make_batch: Callable[[list[int]], Any], seed: int = 0, digest: str = ""
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.make_batch = make_batch
        self.seed = seed
        self.digest = digest
        self.epoch = 0
        self.batch = 0  # batches handed out in this epoch, repeats included

    def __len__(self) -> int:
        """Batches of an epoch, the last partial one and repeats included."""
        return math.ceil(self.rows / self.batch_size) * self.repeats

    def __iter__(self) -> Iterator[Any]:
        """As many batches as an epoch has, from the present position on."""
        made, present = None, None
        for _ in range(len(self)):
            if self.batch == len(self):
                self.epoch, self.batch = self.epoch + 1, 0
            wanted = (self.epoch, self.batch // self.repeats)
            if wanted != present:
                made, present = self._make(*wanted), wanted
            self.batch += 1  # before the yield: a checkpoint written in this step counts its batch as done
            yield made

    def state_dict(self) -> dict[str, Any]:
        """The position, and the seed, sizes and rows that it is a position in."""
        return {name: getattr(self, name) for name in ("epoch", "batch", "seed", "digest", *self.SIZES)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position, in the order of the saved seed.

        Raises:
            ValueError: The position is one in other batches than this loader's, or of other rows.
        """
        for name, key in self.SIZES.items():
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"{key} is {getattr(self, name)} in this run and was {state[name]} in the one that wrote the "
                    "checkpoint: resume with the same data and sizes"
                )
        if state.get("digest", self.digest) != self.digest:  # none was saved by earlier versions
            raise ValueError(
                "the training rows are not those of the run that wrote the checkpoint, though as many: resume with the "
                "data that it had (data.path and the settings that choose from it), or, to go on with others, start a "
                "run from the weights, with --model.init_from RUN in place of --ckpt_path"
            )
        self.epoch, self.batch, self.seed = state["epoch"], state["batch"], state["seed"]

    def _make(self, epoch: int, batch: int) -> Any:
        start = batch * self.batch_size
        return self.make_batch(epoch_order(self.rows, self.seed, epoch)[start : start + self.batch_size])


class RepeatingLoader(ResumableLoader):
    """A resumable loader that hands out each batch several times in a row.

    One batch of rollouts serves several optimizer steps, and the trainer takes one batch per step: the first time a
    batch comes it is sampled from, the other times the buffered rollouts are used. The position counts what was handed
    out, so that a run also resumes between two repeats.

    Args:
        rows: Number of rows.
        batch_size: Rows per global batch; the last one of an epoch may be smaller.
        make_batch: Makes this rank's batch from the rows of the global batch.
        seed: Seed of the order.
        repeats: How often each batch is handed out.
        digest: Of the rows; without it ("") a resume can only compare their number.
    """

    SIZES = ResumableLoader.SIZES | {"batch_size": "data.prompts_per_step", "repeats": "data.repeats"}

    def __init__(
        self,
        rows: int,
        batch_size: int,
        make_batch: Callable[[list[int]], Any],
        seed: int = 0,
        repeats: int = 1,
        digest: str = "",
    ) -> None:
        super().__init__(rows, batch_size, make_batch, seed, digest)
        self.repeats = repeats

    def following(self) -> Any:
        """The batch after the one that was handed out last; the position stays where it is."""
        batch = (self.batch - 1) // self.repeats + 1
        last = batch * self.repeats == len(self)
        return self._make(self.epoch + 1, 0) if last else self._make(self.epoch, batch)


class PromptBatch:
    """Rows and, for each, the token ids of its prompt.

    Not a dataclass: Lightning would take it apart, and copy each row, to move or convert tensors that are not in it.

    Args:
        examples: The rows.
        prompt_ids: Token ids of their prompts.
        further: Gives this rank's share of other prompts, as many as the whole batch has, for the first, second, ...
            draw of them; None on every rank where there are none left. None where nothing can be drawn.
        documents: The rows with their targets, where these are to be scored.
    """

    def __init__(
        self,
        examples: list[Example],
        prompt_ids: list[list[int]],
        further: "Callable[[int], PromptBatch | None] | None" = None,
        documents: list[Encoded] | None = None,
    ) -> None:
        self.examples = examples
        self.prompt_ids = prompt_ids
        self.further = further
        self.documents = documents

    def first(self, rows: int) -> "PromptBatch":
        """A batch of the first rows of this one."""
        documents = None if self.documents is None else self.documents[:rows]
        return PromptBatch(self.examples[:rows], self.prompt_ids[:rows], documents=documents)


class PromptLoader:
    """Yields this rank's share of each global batch, in the order of the rows; no row is repeated or left out.

    Every rank yields the same number of batches, because generation under FSDP is a collective; in the last one a
    rank's share may be empty.

    Args:
        examples: The rows.
        prompt_ids: Their prompts.
        batch_size: Prompts per batch over all ranks.
        rank: This rank.
        world_size: Number of ranks.
        documents: The rows with their targets, where these are to be scored.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        prompt_ids: Sequence[list[int]],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        documents: Sequence[Encoded] | None = None,
    ) -> None:
        self.documents = documents
        self.examples = examples
        self.prompt_ids = prompt_ids
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        """Batches of an epoch, the last partial one included."""
        return math.ceil(len(self.examples) / self.batch_size)

    def __iter__(self) -> Iterator[PromptBatch]:
        """One pass over the rows."""
        for start in range(0, len(self.examples), self.batch_size):
            mine = range(start, min(start + self.batch_size, len(self.examples)))[self.rank :: self.world_size]
            documents = None if self.documents is None else [self.documents[i] for i in mine]
            prompts = [self.prompt_ids[i] for i in mine]
            yield PromptBatch([self.examples[i] for i in mine], prompts, documents=documents)

"""Prompts to generate from, in batches that are global and dealt to the ranks."""

import math
from collections.abc import Iterator, Sequence

from datamodules.xlam import Example


class PromptBatch:
    """Rows and, for each, the token ids of its prompt.

    Not a dataclass: Lightning would take it apart, and copy each row, to move or convert tensors that are not in it.

    Args:
        examples: The rows.
        prompt_ids: Token ids of their prompts.
    """

    def __init__(self, examples: list[Example], prompt_ids: list[list[int]]) -> None:
        self.examples = examples
        self.prompt_ids = prompt_ids


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
    """

    def __init__(
        self,
        examples: Sequence[Example],
        prompt_ids: Sequence[list[int]],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
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
            yield PromptBatch([self.examples[i] for i in mine], [self.prompt_ids[i] for i in mine])

"""The rollout buffer: a batch of rollouts, kept (and checkpointed) for the optimizer steps that learn from it."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from datamodules.packing import PackedBatch
from lightning_modules.rollout.batching import pack_rollouts


@dataclass
class RolloutBuffer:
    """This rank's rollouts of one batch of prompts: R of them, with N completion tokens laid end to end.

    Attributes:
        rows: Ids of the rows of the batch of prompts that it was made for; others may have been sampled from.
        prompts: Token ids of the prompt of each rollout, R lists.
        completions: Token ids of each completion, R lists.
        cot: Which of them lie between the think tags, R lists.
        groups: Number of each rollout's prompt in the global batch, R.
        masked: Whether the rollout takes no part in the loss, R.
        advantages: What the update makes of the rewards, [N].
        old_logprobs: Of the policy that sampled, [N]; None if it is still the policy when the rollouts are learnt from.
        ref_logprobs: Of the reference, [N]; None without one.
        weights: Importance weights, [N]; None without correction.
        batch_prompts: Prompts of the global batch.
        updates_done: Optimizer steps that have been taken on these rollouts.
    """

    rows: list[str]
    prompts: list[list[int]]
    completions: list[list[int]]
    cot: list[list[bool]]
    groups: list[int]
    masked: list[bool]
    advantages: Tensor
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    weights: Tensor | None = None
    batch_prompts: int = 0
    updates_done: int = 0

    @property
    def doc_ids(self) -> Tensor:
        """The rollout of each token, [N], long."""
        lengths = torch.tensor([len(ids) for ids in self.completions], dtype=torch.long)
        return torch.arange(len(lengths)).repeat_interleave(lengths)

    @property
    def in_cot(self) -> Tensor:
        """Whether each token lies between the think tags, [N], bool."""
        return torch.tensor([inside for mask in self.cot for inside in mask], dtype=torch.bool)

    def per_rollout(self, values: Tensor) -> Tensor:
        """The sum of values [N] over each rollout's tokens, [R]."""
        return values.new_zeros(len(self.completions)).index_add(0, self.doc_ids, values)

    def rollout_advantages(self) -> Tensor:
        """The mean over each rollout's tokens, [R]; with one advantage per rollout, that one."""
        return self.per_rollout(self.advantages) / self.per_rollout(torch.ones_like(self.advantages)).clamp(min=1)

    def state_dict(self) -> dict[str, Any]:
        """Plain lists and tensors, which `weights_only` loads; `from_state` undoes it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "RolloutBuffer":
        """A buffer from its `state_dict`, also one of the time when `updates_done` was called `served`."""
        return cls(**{"updates_done" if name == "served" else name: value for name, value in state.items()})

    def chosen(self, mini_batches: int) -> list[int]:
        """The rollouts of the next optimizer step.

        A mini-batch is a block of consecutive groups of the global batch, which no number of ranks changes; prompts
        go to the ranks in turn, so that each has its share of every block (not of what dynamic sampling keeps).

        Args:
            mini_batches: Parts that the batch is divided into; each is one update per pass over the batch.
        """
        turn = self.updates_done % mini_batches
        turns = [group * mini_batches // self.batch_prompts for group in self.groups]
        return [i for i, mine in enumerate(turns) if mine == turn and not self.masked[i]]

    def pack(
        self, micro_batch_tokens: int, chosen: list[int] | None = None, packed: bool = True, shared: bool = False
    ) -> list[PackedBatch]:
        """Micro-batches of some rollouts, or of all, as `pack_rollouts` makes them for the longest of them."""
        numbers = range(len(self.prompts)) if chosen is None else chosen
        longest = max((len(self.prompts[i]) + len(self.completions[i]) for i in numbers), default=1)
        rollouts = (self.prompts, self.completions, self.cot)
        return pack_rollouts(*rollouts, longest, micro_batch_tokens, chosen, packed, shared)


def at(values: Tensor, tokens: Tensor) -> Tensor:
    """Values of the tokens of a micro-batch, on its device; 0 for the token -1 of an idle one."""
    return torch.cat([values, values.new_zeros(1)])[tokens.cpu()].to(tokens.device)


def buffer_of_rank(states: list[dict[str, Any] | None], rank: int, ranks: int, repeats: int) -> RolloutBuffer | None:
    """This rank's rollouts out of a checkpoint.

    Args:
        states: Of every rank of the run that wrote it; all None between two batches of rollouts.
        rank: This rank.
        ranks: Ranks of this run.
        repeats: Optimizer steps per batch of rollouts.

    Raises:
        ValueError: If the checkpoint was written on another number of ranks in the middle of a batch of rollouts.
    """
    if not any(states):
        return None
    if len(states) != ranks:
        raise ValueError(
            f"The checkpoint holds half-used rollouts of {len(states)} ranks, and this run has {ranks}: resume on as "
            f"many, or from a checkpoint whose step is a multiple of {repeats}."
        )
    return RolloutBuffer.from_state(states[rank])

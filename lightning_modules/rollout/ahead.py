"""Completions sampled ahead: those of the next batch, while the policy learns from this one."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from datamodules.system.threads import in_thread
from lightning_modules.generators.base import Completion

Groups = list[list[Completion]]


class Ahead:
    """This rank's groups of completions that are sampled ahead, by the names of their prompts.

    They are kept until the next batch but one is sampled, so that a checkpoint of a step that was broken off has them.
    """

    def __init__(self) -> None:
        self.groups: dict[str, list[Completion]] = {}
        self._pending: tuple[Sequence[str], Future[Groups]] | None = None

    def start(self, names: Sequence[str], sample: Callable[[], Groups]) -> None:
        """Sample in a thread of its own, unless a checkpoint held what would come out.

        Args:
            names: Of the prompts.
            sample: Gives a group for each of them; touches nothing of the trainer's.
        """
        if not all(name in self.groups for name in names):
            self._pending = names, in_thread(sample)

    def wait(self) -> None:
        """Wait for what is being sampled; raises what sampling has raised."""
        if self._pending is not None:
            (names, groups), self._pending = self._pending, None
            self.groups |= zip(names, groups.result(), strict=True)

    def take(self, names: Sequence[str], size: int) -> Groups | None:
        """The groups of these prompts, of `size` completions each; None unless all were sampled. Forgets all others."""
        self.wait()
        known = {name: self.groups[name] for name in names if name in self.groups}
        self.groups = {name: group for name, group in known.items() if len(group) == size}
        return list(self.groups.values()) if len(self.groups) == len(names) else None

    def state_dict(self) -> dict[str, Any]:
        """All groups as plain lists, which `weights_only` loads; without those whose sampling fails."""
        if self._pending is not None and self._pending[1].exception() is None:
            self.wait()
        plain = {
            name: [[c.token_ids, c.finish_reason, c.logprobs] for c in group] for name, group in self.groups.items()
        }
        return {"groups": plain}

    def load_state_dicts(self, states: Iterable[dict[str, Any]]) -> None:
        """Take over the groups of every rank; this one finds its own among them, on any number of ranks."""
        for state in states:
            self.groups |= {name: [Completion(*parts) for parts in group] for name, group in state["groups"].items()}

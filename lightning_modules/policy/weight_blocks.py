"""A policy's weights a decoder layer at a time, under the names that files of its family have."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from lightning_modules.policy.model import ScoredCausalLM

BLOCK = re.compile(r".+?\.\d+(?=\.)")  # `model.layers.7`, whose weights have to be together where names are converted


def by_blocks(
    policy: ScoredCausalLM, names: Iterable[str], weights: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Weights of a decoder layer at a time, once all of it are there, under the names that files of the family have.

    Args:
        policy: Whose weights.
        names: Of all that are to come.
        weights: Name and tensor of each.

    Yields:
        The layer, see `block_of`, and its weights.
    """
    waiting, held = Counter(map(block_of, names)), defaultdict[str, dict[str, Tensor]](dict)
    for name, weight in weights:
        block = block_of(name)
        held[block][name] = weight
        del weight  # what becomes of it is up to those who take the layer
        waiting[block] -= 1
        if not waiting[block]:
            yield block, revert_weight_conversion(policy.causal_lm, held.pop(block))


def block_of(name: str) -> str:
    """The decoder layer of a weight, such as `model.layers.7`; its own name if it is in none."""
    return found[0] if (found := BLOCK.match(name)) else name

"""The weights of a Hugging Face folder, written as they come: whoever writes them holds those of one file at a time."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.unshard import is_sharded, merged_on_meta, tied_head
from lightning_modules.policy.weight_blocks import by_blocks

LARGEST = "5GB"
"""Of a file, unless a single weight is larger."""


def weights_to_write(policy: ScoredCausalLM) -> dict[str, Tensor]:
    """The merged weights without a head that is tied to the embedding, on the meta device; see `merged_on_meta`."""
    tied = tied_head(policy)
    return {name: weight for name, weight in merged_on_meta(policy).items() if name != tied}


def plan_files(policy: ScoredCausalLM, empty: dict[str, Tensor]) -> StateDictSplit:
    """Which weights go into which file, by the names that the family's files have, in the order that they come in.

    Args:
        policy: Whose weights.
        empty: See `weights_to_write`.
    """
    blocks = by_blocks(policy, empty, empty.items())
    named = {name: weight for _, block in blocks for name, weight in block.items()}
    return split_torch_state_dict_into_shards(named, max_shard_size=LARGEST)


def write_files(
    policy: ScoredCausalLM, empty: dict[str, Tensor], weights: Iterable[tuple[str, Tensor]], folder: Path
) -> None:
    """Write weights as they come: in one file or, if they are more than 5 GB, in several with an index.

    Args:
        policy: Whose weights.
        empty: See `weights_to_write`.
        weights: What `merged_weights` yields.
        folder: Where to.

    Raises:
        OSError: They cannot be written.
        SafetensorError: The same.
    """
    plan, pending = plan_files(policy, empty), defaultdict[str, dict[str, Tensor]](dict)
    for _, block in by_blocks(policy, empty, _on_host(weights, empty, shared=not is_sharded(policy))):
        while block:
            name, weight = block.popitem()
            file = plan.tensor_to_filename[name]
            pending[file][name] = weight.contiguous()
            del weight  # before its file is let go of
            if len(pending[file]) == len(plan.filename_to_tensors[file]):
                save_file(pending.pop(file), folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _on_host(
    weights: Iterable[tuple[str, Tensor]], wanted: dict[str, Tensor], shared: bool
) -> Iterator[tuple[str, Tensor]]:
    """The wanted ones in the memory of the host, copied if they are shared: two of one file may not be one tensor."""
    for name, weight in weights:
        if name in wanted:
            yield name, weight.to("cpu", copy=shared)
        del weight  # before the next one is gathered

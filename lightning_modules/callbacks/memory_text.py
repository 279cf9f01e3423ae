"""The estimate of memory in words: rows of the table that a run begins with, and the sentence that refuses one."""

from lightning_modules.callbacks.cheaper import ways
from lightning_modules.callbacks.memory import Plan, estimate, has_room, room
from lightning_modules.objectives.logprobs import tile


def memory_rows(plan: Plan, available: int, changes: dict[str, Plan]) -> dict[str, str]:
    """The estimate as rows of the table; if it is more than there is, also what would need less.

    Args:
        plan: What the run does.
        available: Bytes of the device.
        changes: Other plans by the settings that make them.
    """
    memory, words = estimate(plan), derived(plan)
    most = f"about {shown(memory.peak)} of {size_of(plan, available)} a device, most at {memory.moment}"
    rows = {"memory": f"{most} ({plan.counted})"}
    rows |= {f"  {name}": f"{shown(size)}: {words[name]}" for name, size in memory.parts.items()}
    if not has_room(plan, available):
        less = {setting: estimate(change).peak for setting, change in changes.items()}
        better = [
            f"{key} ({shown(peak)})" for key, peak in sorted(less.items(), key=lambda x: x[1]) if peak < memory.peak
        ]
        rows["TOO MUCH"] = "it is likely to run out of memory; less need " + ", ".join(better)
    return rows


def refusal(plan: Plan, available: int, changes: dict[str, Plan]) -> str:
    """The sentence with which a run that does not fit is refused.

    Args:
        plan: What it does.
        available: Bytes of the device.
        changes: Other plans by the settings that make them.
    """
    memory, found = estimate(plan), ways(plan, available, changes)
    fits = ", or ".join(f"{' and '.join(names)} ({shown(peak)})" for names, peak in found)
    advice = f"it would fit with {fits}" if found else f"not even all of {', '.join(changes)} together make it fit"
    return (
        f"This run is estimated to need {shown(memory.peak)} of each GPU, most at {memory.moment} ({plan.counted}), "
        f"and there are {size_of(plan, available)}: {advice}; --fit_anyway starts it all the same, and "
        "`funreason show` prints the estimate part by part."
    )


def derived(plan: Plan) -> dict[str, str]:
    """The computation of each part of an estimate, in words."""
    shards = f" / {plan.shards} shards" if plan.shards > 1 else ""
    some = f" in {plan.again} of {plan.config.num_hidden_layers} layers" if plan.every_n_layers > 1 else ""
    activations = f"computed again layer by layer{some}" if plan.checkpointing else "all kept"
    cast = "of a layer" if plan.checkpointing else "of all layers"
    learn = f"{plan.trained:,} that learn x {plan.learnt} bytes{shards}"
    return {
        "weights": f"{plan.trained + plan.frozen:,} x {plan.w} bytes{shards}",
        "AdamW": f"twice {learn}",
        "reference": "a frozen copy of the weights",
        "casts": f"weights in the {plan.c} bytes of matrix products, {cast}",
        "gradients": learn + (", twice for the buckets of DDP" if plan.buckets else ""),
        "gathered": "embedding and head of all shards",
        "activations": f"{plan.rows:,} rows x {plan.length:,} tokens, {activations}",
        "head": f"the logits of {tile(not plan.cuda)[0]:,} tokens and some thousands of ids at a time, its gradient",
        "layer": f"one of {plan.config.num_hidden_layers} decoder layers: what is computed again, gathered, reduced",
        "waiting": "the gradient of the head, until the embedding's is there",
        "embedding": "gradients of embedding and head",
        "reduced": "gradients that are averaged over replicas of the shards, of all layers by the end",
        "copy": "weights to generate with, besides those that learn",
        "cache": "keys and values of the rows that are generated together, at their longest",
        "rollouts": "the rollout engine",
    }


def size_of(plan: Plan, available: int) -> str:
    """Bytes of a device in words, and how many of them are left for what the estimate does not count."""
    kept = available - room(plan, available)
    rest = f", {shown(kept)} of them left for CUDA's context, buffers of NCCL and fragments" if kept else ""
    return f"{shown(available)}{rest}"


def shown(size: int) -> str:
    """Bytes in MiB or GiB."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"

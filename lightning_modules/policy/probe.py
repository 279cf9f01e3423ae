"""Probe of a loaded model: how it keeps packed documents apart, and whether its scores are those of its logits.

Whether a row's documents are kept apart depends on the architecture (a state that runs on, masks and positions that
heed no restart) and is written in no config; three short documents show it. What they cannot show is what takes more
tokens: attention in chunks, which are counted from the start of the row.
"""

from collections.abc import Sequence

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from datamodules.packing import CALL, PROMPT, Encoded, collate_packed
from lightning_modules.policy.attention import decoder_options
from lightning_modules.policy.head import decoder_of, takes_keywords
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.ranks import failing_together

LENGTHS = (11, 14, 7)
"""Tokens of the documents."""
ROUNDING = 4
"""A change that is more times as large as the observed effect of rounding than this is no rounding."""
EXACT = 1e-6
"""Nats by which log-probabilities may differ where nothing was seen to round."""
ATTENDING = ("full_attention", "sliding_attention")
"""Layers, as configs call them, that attend as `policy.attention` does."""


def probe_everywhere(policy: ScoredCausalLM, strategy: Strategy | None, mixed: bool) -> str:
    """Run `probe` on the first rank, the only one that is sure to hold weights, and return its result on all.

    Args:
        policy: The model, not yet sharded.
        strategy: Tells the other ranks; None where there are none.
        mixed: Whether products are made in bfloat16, of weights in float32.

    Raises:
        ValueError: See `probe`.
    """
    leak = ""
    with failing_together():
        if strategy is None or strategy.is_global_zero:
            autocast = torch.autocast(next(policy.parameters()).device.type, torch.bfloat16, enabled=mixed)
            # Lightning makes the GPU the default device while it configures a model; documents begin on the host.
            with autocast, torch.device("cpu"):
                leak = probe_as_loaded(policy)
    if strategy:
        found = (leak, policy.by_document, policy.shares_prefixes)
        leak, by_document, policy.shares_prefixes = strategy.broadcast(found)
        if by_document:
            policy.by_document = True
    return leak


def probe_as_loaded(policy: ScoredCausalLM) -> str:
    """Run `probe` on weights that may still be as they lie in files; cast them where the model does not take that.

    Raises:
        ValueError: See `probe`.
    """
    try:
        return probe(policy)
    except RuntimeError:  # in between it computes in the dtype of the run
        dtype = policy.causal_lm.config.dtype
        if all(weight.dtype == dtype for weight in policy.parameters()):
            raise
        for weight in policy.parameters():
            weight.data = weight.data.to(dtype)
        return probe(policy)


@torch.no_grad()
def probe(policy: ScoredCausalLM) -> str:
    """Test whether a model keeps packed documents apart: score three alone and in one row, under the present autocast.

    A row keeps its documents apart if the log-probabilities of the later ones do not move with the first one's tokens
    (beyond what the tokens of another row do, which is rounding) nor with what stands before them (beyond the precision
    of the arithmetic, since sums of other shapes round otherwise). Attention by document is tried first, and left on if
    it does; a mask of the row is next. No random number is drawn globally.

    Documents may share a prefix if what goes on from another document's beginning scores as it does alone.

    Args:
        policy: The model, not sharded; it is left in train mode.

    Returns:
        Why documents cannot share a row; empty if they can.

    Raises:
        ValueError: If the model is not causal, or the scores of a document alone are not those of its own logits.
    """
    policy.eval()
    if policy.by_document:  # probed before
        policy.by_document = False
    first, second, third, other = _documents(policy)
    documents = [first, second, third]
    own = torch.cat([_own_scores(policy, document) for document in documents])
    dtype = torch.get_autocast_dtype(own.device.type) if torch.is_autocast_enabled(own.device.type) else _dtype(policy)
    allowed = rounding(own, dtype)
    if own.isfinite().all():
        _check_causal(policy, first, own[: len(first.input_ids) - 1], allowed)
    policy.packed = False
    alone = _scores(policy, documents, [[0], [1], [2]])
    policy.packed = True
    _check_own(policy, alone, own, allowed, dtype)
    if _can_attend_by_document(policy):
        policy.by_document = True
    leak = _leak(policy, documents, other, alone, allowed)
    if leak and policy.by_document:
        policy.by_document = False
        leak = _leak(policy, documents, other, alone, allowed)
    policy.packed = not leak
    policy.shares_prefixes = policy.by_document and _shares_prefixes(policy, documents, allowed)
    policy.train()
    return leak


def rounding(scores: Tensor, dtype: torch.dtype) -> float:
    """Nats by which rounding in a model may move log-probabilities on average: a share of what tells tokens apart.

    Rounding moves a logit by a share of its size, and so more in models that are surer of their tokens. Other weights
    move it by as much as it differs from others.

    Args:
        scores: Log-probabilities of some tokens.
        dtype: What products are rounded to.
    """
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)  # norms are float32 in models of float64, too
    return eps**0.5 * max(0.01, scores.std().item())


def known_leak(policy: ScoredCausalLM) -> str:
    """Why documents cannot share a row, where the config says so and weights need not be tried; else empty."""
    if "chunked_attention" in _kinds(policy):
        return "its attention is cut in chunks that are counted from the start of the row"
    return ""


def may_attend_by_document(policy: ScoredCausalLM) -> bool:
    """Whether the probe is going to try attention by document.

    That is where attention is sdpa, layers can be told more, and all of them attend, in a window or to everything.
    """
    attend = all(kind in ATTENDING for kind in _kinds(policy))
    takes_options = takes_keywords(decoder_of(policy.causal_lm))
    return policy.causal_lm.config._attn_implementation == "sdpa" and takes_options and attend


def _check_causal(policy: ScoredCausalLM, document: Encoded, own: Tensor, allowed: float) -> None:
    """Raise if the scores of a document's tokens, but for the last one's, move with that last one.

    Raises:
        ValueError: They do.
    """
    *ids, last = document.input_ids
    moved = (_own_scores(policy, Encoded([*ids, max(last - 1, 0)], document.segments)) - own)[:-1].abs()
    if not moved.mean() <= allowed:
        raise ValueError(
            f"{_family(policy)} is no causal language model: each of its tokens sees those after it, which move its "
            f"scores by {moved.max():.2g} nats; give a model that writes text."
        )


def _check_own(policy: ScoredCausalLM, alone: Tensor, own: Tensor, allowed: float, dtype: torch.dtype) -> None:
    """Raise if the scores of documents alone are not those of the model's own logits.

    Raises:
        ValueError: They are others, or not finite.
    """
    if not own.isfinite().all():
        raise ValueError(
            f"{_family(policy)} gives log-probabilities that are not finite in {dtype}: set another trainer.precision."
        )
    if not (alone - own).abs().mean() <= allowed:
        raise ValueError(
            f"{_family(policy)} does something to its logits that this project does not know of: scores differ from "
            f"the model's own by {(alone - own).abs().max():.2g} nats; train another model, or add what it does to "
            "lightning_modules/policy/head.py."
        )


def _leak(policy: ScoredCausalLM, documents: list[Encoded], other: Encoded, alone: Tensor, allowed: float) -> str:
    """Why documents cannot share a row, as `probe` returns it."""
    if known := known_leak(policy):
        return known
    tokens, later = sum(LENGTHS) - len(LENGTHS), LENGTHS[0] - 1
    changed = [*documents, other]
    rows = [[0, 1, 2], [0, 1, 2]]  # the second row shows what rounding does to the first
    together = _scores(policy, changed, rows)[:tokens]
    moved = (_scores(policy, changed, [[3, 1, 2], [0, 1, 2]])[:tokens] - together)[later:].abs().max()
    noise = (_scores(policy, changed, [[0, 1, 2], [3, 1, 2]])[:tokens] - together)[later:].abs().max()
    if not moved <= ROUNDING * noise + EXACT:
        return f"in one row a document's tokens move the log-probabilities of those after it, by {moved:.2g} nats"
    apart = (together - alone).abs()
    if not apart.mean() <= allowed:
        return f"in one row documents score otherwise than alone, by {apart.max():.2g} nats"
    return ""


def _shares_prefixes(policy: ScoredCausalLM, documents: list[Encoded], allowed: float) -> bool:
    """Whether two ends of one beginning score in one row, where the beginning is once, as in a row each."""
    beginning, *ends = (document.input_ids for document in documents)
    start = len(beginning) - 1
    alone = [Encoded(beginning + end, [PROMPT] * len(beginning) + [CALL] * len(end)) for end in ends]
    later = Encoded(alone[1].input_ids[start:], alone[1].segments[start:], start)
    apart = (_scores(policy, [alone[0], later], [[0, 1]]) - _scores(policy, alone, [[0], [1]])).abs()
    return bool(apart.mean() <= allowed)


def _can_attend_by_document(policy: ScoredCausalLM) -> bool:
    """Whether all layers attend by `policy.attention`, and tell it the windows that the config names.

    The documents of the probe are shorter than windows, which they cannot show.
    """
    if not may_attend_by_document(policy):
        return False
    window = getattr(policy.causal_lm.config.get_text_config(), "sliding_window", None)
    wanted = [window if kind == "sliding_attention" else None for kind in _kinds(policy)]
    positions = torch.arange(3, device=next(policy.parameters()).device)[None]
    options = decoder_options(positions)
    policy.by_document = True
    decoder_of(policy.causal_lm)(input_ids=positions, position_ids=positions, use_cache=False, **options)
    policy.by_document = False
    return options["documents"].windows == wanted


def _kinds(policy: ScoredCausalLM) -> list[str]:
    """What each layer is, by its config."""
    text = policy.causal_lm.config.get_text_config()
    everywhere = "sliding_attention" if getattr(text, "sliding_window", None) else "full_attention"
    return list(getattr(text, "layer_types", None) or [everywhere] * text.num_hidden_layers)


def _documents(policy: ScoredCausalLM) -> list[Encoded]:
    """Three documents, and another one as long as the first, of ids from the midst of the vocabulary."""
    ids = policy.causal_lm.get_input_embeddings().weight.shape[0]
    draw = torch.Generator().manual_seed(0)
    columns = [torch.randint(ids // 4, max(ids // 2, 2), (n,), generator=draw) for n in (*LENGTHS, LENGTHS[0])]
    return [Encoded(column.tolist(), [CALL] * len(column)) for column in columns]


def _scores(policy: ScoredCausalLM, documents: Sequence[Encoded], rows: Sequence[Sequence[int]]) -> Tensor:
    """Log-probabilities of all targets, in order of the rows."""
    batch = collate_packed(documents, rows)
    device = next(policy.parameters()).device
    return policy(*(batch[name].to(device) for name in ("input_ids", "position_ids", "targets"))).logprobs


def _own_scores(policy: ScoredCausalLM, document: Encoded) -> Tensor:
    """The same of one document, from the logits of the model's own forward pass."""
    ids = torch.tensor([document.input_ids], device=next(policy.parameters()).device)
    logits = policy.causal_lm(input_ids=ids, use_cache=False).logits[0, :-1]
    log_p = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
    return log_p.gather(1, ids[0, 1:, None]).squeeze(1)


def _dtype(policy: ScoredCausalLM) -> torch.dtype:
    return policy.causal_lm.get_output_embeddings().weight.dtype


def _family(policy: ScoredCausalLM) -> str:
    return f"{type(policy.causal_lm).__name__} (model_type {policy.causal_lm.config.model_type})"

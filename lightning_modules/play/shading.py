"""An answer as HTML: its tokens coloured by segment and shaded by entropy. Every text in it is escaped."""

import html

from datamodules.packing import COT
from datamodules.system.escaping import visible
from lightning_modules.play.sampled import SampledAnswer, ShownToken
from rewards import render_calls

COLOURS = {"cot": "245, 158, 11", "call": "14, 165, 233"}  # amber and sky, of which there are light and dark shades
FULL = 1.5  # nats at which the shade is deepest: as between four or five words that are equally likely
STYLE = (
    "<style>.stMainBlockContainer{padding-top:2.6rem;padding-bottom:2rem}"
    ".fr-card{border:1px solid rgba(128,128,128,.28);border-radius:.6rem;padding:.7rem .9rem;margin:0 0 .2rem}"
    ".fr-head{display:flex;flex-wrap:wrap;gap:.35rem .9rem;align-items:baseline;font-size:.82rem;margin-bottom:.5rem}"
    ".fr-text{font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;font-size:.8rem;line-height:1.75;"
    "white-space:pre-wrap;overflow-wrap:anywhere}"
    ".fr-t{border-radius:2px;padding:1px 0;border-bottom:2px solid}.fr-dim{opacity:.65}"
    ".fr-badge{border-radius:1rem;padding:.05rem .6rem;font-weight:600;color:#fff}"
    ".fr-note{font-size:.8rem;margin-top:.45rem}"
    ".fr-scale{display:inline-block;width:6rem;height:.7rem;border-radius:2px;vertical-align:middle}</style>"
)
GREEN, RED, GREY = "#15803d", "#b91c1c", "#6b7280"


def tokens_html(tokens: list[ShownToken]) -> str:
    """The tokens in a row; the deeper the shade, the higher the entropy, which a tooltip gives."""
    spans = []
    for token in tokens:
        if not token.text:
            continue
        kind = "cot" if token.segment == COT else "call"
        depth = 0.05 + 0.75 * min(1.0, max(0.0, token.entropy) / FULL)
        style = f"background:rgba({COLOURS[kind]},{depth:.2f});border-color:rgba({COLOURS[kind]},.8)"
        text = html.escape(visible(token.text)).replace("\n", "<span class='fr-dim'>↵</span>\n")
        counted = ", in the mean of the CoT" if token.reasoned else ""
        title = f"{token.entropy:.3f} nats{counted}"
        spans.append(f'<span class="fr-t fr-{kind}" style="{style}" title="{title}">{text}</span>')
    return f'<div class="fr-text">{"".join(spans)}</div>'


def answer_html(answer: SampledAnswer, number: int) -> str:
    """An answer as HTML: its score, advantage and bonus, its tokens, and how it was parsed."""
    facts = [f"<b>#{number}</b>"]
    if answer.advantage is not None:
        colour = GREEN if answer.rollout.result.score >= 1 else RED
        reward = f'<span class="fr-badge" style="background:{colour}">reward {answer.rollout.result.score:g}</span>'
        capped = " (capped)" if answer.capped else ""
        terms = f"min(&lambda;E {answer.raw_bonus:.3f}, |A|/&alpha; {answer.cap:.3f})"
        facts += [
            reward,
            f"A <b>{answer.advantage:+.3f}</b>",
            f"E <b>{answer.cot_entropy:.3f}</b>",
            f"bonus <b>{answer.bonus:.3f}</b>{capped} = {terms}",
            f"A + bonus <b>{answer.shaped:+.3f}</b>",
        ]
    else:
        facts.append(f"E <b>{answer.cot_entropy:.3f}</b> nats")
    cut = ", cut" if answer.rollout.finish_reason == "length" else ""
    facts.append(f'<span class="fr-dim">{len(answer.tokens)} tokens{cut}</span>')
    words, colour = verdict(answer)
    note = f'<div class="fr-note" style="color:{colour}">{html.escape(visible(words))}</div>'
    head = f'<div class="fr-head">{"".join(f"<span>{fact}</span>" for fact in facts)}</div>'
    return f'<div class="fr-card">{head}{tokens_html(answer.tokens)}{note}</div>'


def verdict(answer: SampledAnswer) -> tuple[str, str]:
    """How an answer was parsed, in words, and the colour for it."""
    parsed = answer.rollout.parsed
    if parsed.calls is None:
        return f"not read as calls: {parsed.error}", RED
    if answer.misfit:
        return f"read as calls that do not fit the tools: {answer.misfit}", RED
    if answer.advantage is not None and answer.rollout.result.score < 1:
        return f"read, but not the reference: {render_calls(parsed.calls)}", RED
    return ("read as calls that fit the tools" if parsed.calls else "no call"), GREEN if parsed.calls else GREY


def legend_html() -> str:
    """A legend of the colours as HTML."""
    scales = [
        f'<span class="fr-scale" style="background:linear-gradient(90deg,rgba({COLOURS[kind]},.05),'
        f'rgba({COLOURS[kind]},.8))"></span> {name}'
        for kind, name in (("cot", "chain of thought"), ("call", "call"))
    ]
    words = f'<span class="fr-dim">shade: entropy from 0 to {FULL:g} nats and more</span>'
    return f'<div class="fr-head">{"".join(f"<span>{part}</span>" for part in [*scales, words])}</div>'

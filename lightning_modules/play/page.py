"""The page of `funreason play`, which Streamlit runs again at every click; layout only."""

import sys
from pathlib import Path
from typing import Any

import streamlit as st

from datamodules.system.escaping import markdown_text, visible
from lightning_modules.commands.ask import load_model
from lightning_modules.commands.play import DEMO_QUERY, DEMO_TOOLS, page_options
from lightning_modules.commands.request import request
from lightning_modules.objectives import EntropyBonus
from lightning_modules.play.opened import OpenedRow, indented, open_rows, reference_of
from lightning_modules.play.sampled import SampledGroup, sample_group
from lightning_modules.play.shading import STYLE, answer_html, legend_html

models = st.cache_resource(show_spinner="Loading the model…")(load_model)
rows_of = st.cache_data(ttl=30, show_spinner="Reading rows…")(open_rows)


def page(runs: list[str], data: str | None) -> None:
    """Lay out the page.

    Args:
        runs: Models to sample from.
        data: Rows to open, or None.
    """
    st.set_page_config("funreason play", layout="wide")
    st.html(STYLE)
    st.header("funreason play", anchor=False)
    chosen, settings = choose(runs)
    sources = {"the data": data} if data else {}
    sources |= {f"samples of {run}": str(Path(run) / "samples.jsonl") for run in runs if has_samples(run)}
    if sources:
        opener(sources)
    asked = fields()
    if st.button("Sample a group", type="primary"):
        st.session_state["groups"] = [(run, group) for run in chosen if (group := sampled(run, asked, settings))]
        st.session_state["settings"] = settings
    groups = st.session_state.get("groups", [])
    if groups:
        st.html(legend_html())
        said = [f"{name.replace('_', ' ')} {value}" for name, value in st.session_state["settings"].items()]
        st.caption(f"Sampled with {', '.join(said)}.")
    for column, (run, group) in zip(st.columns(max(1, len(groups))), groups, strict=False):
        with column:
            show(run, group)


def has_samples(run: str) -> bool:
    """Whether a run has a `samples.jsonl`."""
    return (Path(run).expanduser() / "samples.jsonl").is_file()


def choose(runs: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The models to sample from, one or two, and how."""
    with st.sidebar:
        chosen = st.multiselect("Models, one or two", runs, default=runs[:2], max_selections=2)
        st.subheader("Sampling", anchor=False)
        settings: dict[str, Any] = {
            "samples": st.slider("Samples (G)", 1, 16, 4),
            "temperature": st.slider("Temperature", 0.0, 2.0, 0.7, 0.05),
            "max_new_tokens": st.number_input("Most tokens", 1, 8192, 256),
            "seed": st.number_input("Seed", 0, 2**31, 0),
        }
        st.subheader("EGPO", anchor=False)
        settings["entropy_scale"] = st.number_input("Lambda, weight of the entropy", 0.0, 10.0, 0.4, 0.1)
        settings["clip_divisor"] = st.number_input("Alpha, divisor of the cap", 1.01, 100.0, 2.0, 0.5)
        settings["advantage_scale"] = st.selectbox("Advantages divided by", ["std", "none"])
        st.caption(r"$A=(r-\bar r)/\sigma$; EGPO adds $\min(\lambda E,|A|/\alpha)$, $E$ the mean entropy of the CoT.")
    return chosen, settings


def opener(sources: dict[str, str]) -> None:
    """Rows that can be opened in the fields below."""
    with st.expander("Open a row", expanded=True):
        left, middle, right = st.columns([2, 5, 1], vertical_alignment="bottom")
        source = left.selectbox("From", list(sources))
        try:
            rows, bad = rows_of(sources[source])
        except (ValueError, OSError) as error:
            st.error(markdown_text(str(error), 1000))
            return
        left_out = f", {bad} cannot be read" if bad else ""
        place = middle.selectbox(f"Row ({len(rows)}{left_out})", range(len(rows)), format_func=lambda i: label(rows[i]))
        right.button("Open", on_click=fill, args=(rows[place],), width="stretch")
        recorded = st.session_state.get("recorded")
        if recorded:
            title = f"It answered at step {recorded.get('step', '?')}, score {recorded.get('score', '?')}:"
            st.caption(markdown_text(title, 200))
            st.code(visible(str(recorded.get("completion", ""))), language=None, wrap_lines=True)


def fields() -> tuple[str, str, str, str]:
    """The fields of a request, and what stands in them: query, tools, reference, earlier turns."""
    st.session_state.setdefault("query", DEMO_QUERY)
    st.session_state.setdefault("tools", DEMO_TOOLS)
    left, right = st.columns([2, 3])
    with left:
        query = st.text_area("Query", key="query", height=80)
        reference = st.text_area(
            "Reference (optional)",
            key="reference",
            height=80,
            help="The right calls, as JSON or as Python writes them. With one there are rewards and advantages.",
        )
    tools = right.text_area("Tools (JSON)", key="tools", height=206)
    with st.expander("Earlier turns (JSON)", expanded=bool(st.session_state.get("history"))):
        history = st.text_area("Earlier turns", key="history", label_visibility="collapsed", height=110)
    return query, tools, reference, history


def label(row: OpenedRow) -> str:
    """A row in one line."""
    step = f"step {row.recorded['step']}, score {row.recorded.get('score')}: " if "step" in row.recorded else ""
    return visible(f"{row.number}  {step}{' '.join(row.example.query.split())}"[:160])


def fill(row: OpenedRow) -> None:
    """Put a row into the fields."""
    example = row.example
    st.session_state["query"] = example.query
    st.session_state["tools"] = indented(example.tools)
    st.session_state["reference"] = reference_of(example)
    st.session_state["history"] = "" if example.history == "[]" else indented(example.history)
    st.session_state["recorded"] = row.recorded
    st.session_state["groups"] = []


def sampled(run: str, asked: tuple[str, str, str, str], settings: dict[str, Any]) -> SampledGroup | None:
    """A group of a model, or a sentence that says why there is none."""
    try:
        example = request(*asked)
        with st.spinner(f"Sampling from {Path(run).name}…"):
            bonus = EntropyBonus(settings["entropy_scale"], settings["clip_divisor"])
            others = {name: value for name, value in settings.items() if name not in ("entropy_scale", "clip_divisor")}
            return sample_group(*models(run), example, entropy_bonus=bonus, **others)
    except (ValueError, OSError) as error:
        st.error(markdown_text(f"{run}: {error}", 1000))
        return None


def show(run: str, group: SampledGroup) -> None:
    """A group, under the name of its model."""
    form = models(run)[2]
    st.subheader(markdown_text(run, 200), anchor=False)
    st.caption(markdown_text(form.described(), 300))
    count, answers = len(group.answers), group.answers
    metrics = {"mean CoT entropy": f"{group.cot_entropy:.3f} nats"}
    if answers[0].advantage is not None:
        metrics = {"mean reward": f"{sum(answer.rollout.result.score for answer in answers) / count:.3f}"} | metrics
        metrics["capped"] = f"{sum(bool(answer.capped) for answer in answers)} of {count}"
    st.markdown(", ".join(f"{name} **{value}**" for name, value in metrics.items()))
    with st.expander(f"Prompt ({group.prompt_tokens:,} tokens)"):
        st.code(visible(group.prompt), language=None, wrap_lines=True)
    for number, answer in enumerate(answers, start=1):
        st.html(answer_html(answer, number))


if __name__ == "__main__":
    page(*page_options(sys.argv[1:]))

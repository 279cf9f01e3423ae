"""The shipped corpus: a seeded generator of xLAM-shaped rows with a chain of thought.

240 functions in 24 domains (`functions`), queries in varied wording, five categories (simple, multiple,
parallel, parallel_multiple, irrelevance), and a chain of thought that names the tools, lists the parameters found and
checks them. The splits:

- `train`;
- `heldout`: the same functions, with other argument values and other wordings;
- `unseen`: the 24 functions that training never shows, with evaluation's values and wordings;
- `habits`: training rows with two habits of answering: most write the calls, some put them off and only promise them;
- `hard`: training rows with several tools offered, several calls asked for, or no tool that fits.

    python -m datamodules.toolbox --seed 7 --rows 200 --out rows.jsonl
"""

import json
import random
from bisect import bisect
from itertools import accumulate
from typing import Any

from datamodules.toolbox.catalogue import FUNCTIONS, Function, sample_arguments
from rewards import Call, dump_calls

TRAINING = {"simple": 0.25, "multiple": 0.28, "parallel": 0.18, "parallel_multiple": 0.15, "irrelevance": 0.14}
TEST = {"simple": 0.34, "multiple": 0.34, "parallel": 0.11, "parallel_multiple": 0.08, "irrelevance": 0.13}
HARD = {"multiple": 0.4, "parallel": 0.2, "parallel_multiple": 0.1, "irrelevance": 0.3}
SPLITS = {"train": TRAINING, "habits": TRAINING, "hard": HARD, "heldout": TEST, "unseen": TEST}
PROMISED = 0.35  # share of the rows of `habits` that only promise their calls

# Sentences and joints of training and, second, of evaluation; none has a word that names what a function is about.
WORDINGS = (
    (
        *("Please {}.", "{}.", "Could you {}?", "I need you to {}.", "Can you {} for me?", "I would like to {}."),
        *("Hello, {} please.", "Next thing: {}.", "Help me {}.", "Hi! I want to {}.", "Today I have to {}."),
        *("You should {}.", "For my work, {}.", "First of all, {}.", "Let us {}.", "We must {} today."),
    ),
    ("Would you {}?", "Up next: {}.", "It would help me to {}.", "Kindly {}."),
)
JOINERS = (
    (" and ", ", then ", ". Also ", "; after that ", ", and then ", ". Then ", "; also ", ". Please also "),
    (" and also ", ", and after that ", ". Next "),
)
VERBS = {
    "get": "get|fetch|look up",
    "find": "find|look for|search out",
    "check": "check|look at|inspect",
    "create": "create|make|prepare",
    "book": "book|reserve|arrange",
    "show": "show|display|present",
    "set": "set|adjust|fix",
    "log": "log|record|note",
    "send": "send|write|deliver",
    "list": "list|name|enumerate",
    "compute": "compute|work out|calculate",
    "rate": "rate|grade|score",
    "count": "count|tally|add up",
}
COT_OPENINGS = {"Needed is {}.": 8, "Wanted: {}.": 1, "This asks for {}.": 1}  # and how often each is used


def _spoken(value: Any) -> str:
    if isinstance(value, list):
        words = [str(item) for item in value]
        return ", ".join(words[:-1]) + " and " + words[-1]
    if isinstance(value, dict):
        return " in ".join(str(item) for item in value.values())
    return str(value)


def request_text(function: Function, arguments: dict[str, Any], rng: random.Random) -> str:
    """One call as a phrase of the query: the action with some verb, then a phrase for each argument."""
    verb, _, rest = function.action.partition(" ")
    spoken_verb = rng.choice(VERBS.get(verb, verb).split("|"))
    phrases = [p.phrase.format(_spoken(arguments[p.name])) for p in function.parameters if p.name in arguments]
    return " ".join(part for part in (spoken_verb, rest, *phrases) if part)


def cot_text(offered: list[Function], wanted: list[Function], calls: list[Call], rng: random.Random) -> str:
    """A chain of thought: the request, the tools offered, the parameters found for each call, a check of them."""
    lines = [
        rng.choices(*zip(*COT_OPENINGS.items(), strict=True))[0].format(", ".join(f.name for f in wanted)),
        f"Offered: {', '.join(function.name for function in offered)}.",
    ]
    for call in calls:
        found = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items()) or "nothing"
        lines.append(f"{call.name}: {found}")
    if not calls:
        return "\n".join([*lines, "None of them does this."])
    for function in dict.fromkeys(wanted):
        required = [p.name for p in function.parameters if p.default is None]
        lines.append(f"Needs {', '.join(required)}: given." if required else "Needs nothing.")
    return "\n".join(lines)


def make_row(row_id: str, category: str, pool: list[Function], rng: random.Random, held_out: bool) -> dict[str, Any]:
    """Make one row.

    Args:
        row_id: The row's id.
        category: One of the five.
        pool: The functions that may be asked for and offered.
        rng: Source of randomness.
        held_out: Take the values and wordings of evaluation instead of those of training.

    Returns:
        A row with xLAM's columns and `cot`, `category` and `source`.
    """
    count = rng.choice((2, 2, 2, 3)) if category.startswith("parallel") else 1
    if category == "parallel_multiple":
        wanted = rng.sample(pool, count)
    else:
        wanted = [rng.choice([f for f in pool if f.parameters])] * count
    calls = _distinct_calls(wanted, rng, held_out)
    requests = [request_text(f, call.arguments, rng) for f, call in zip(wanted, calls, strict=True)]
    query = rng.choice(WORDINGS[held_out]).format(rng.choice(JOINERS[held_out]).join(requests))
    names = {f.name for f in wanted}
    extra = {"simple": 0, "multiple": rng.randint(1, 3), "irrelevance": rng.randint(1, 3)}
    distractors = rng.sample([f for f in pool if f.name not in names], extra.get(category, rng.randint(0, 1)))
    if category == "irrelevance":
        calls = []
    tools = distractors + (list(dict.fromkeys(wanted)) if calls else [])
    rng.shuffle(tools)
    return {
        "id": row_id,
        "query": query[0].upper() + query[1:],
        "tools": json.dumps([tool.tool() for tool in tools]),
        "answers": dump_calls(calls),
        "cot": cot_text(tools, wanted, calls, rng),
        "category": category,
        "source": "toolbox",
    }


def _distinct_calls(wanted: list[Function], rng: random.Random, held_out: bool) -> list[Call]:
    calls: list[Call] = []
    for function in wanted:
        call = Call(function.name, sample_arguments(function, rng, held_out))
        while call in calls:
            call = Call(function.name, sample_arguments(function, rng, held_out))
        calls.append(call)
    return calls


def _categories(shares: dict[str, float], rows: int) -> list[str]:
    """The category of each row; each has its share but for rounding, however few rows there are."""
    ends = list(accumulate(shares.values()))
    return [list(shares)[bisect(ends[:-1], (i + 0.5) / rows)] for i in range(rows)]


def promise(row: dict[str, Any]) -> dict[str, Any]:
    """The row with a wrong habit, which shows from its first word on: it names the functions and calls none."""
    names = dict.fromkeys(call["name"] for call in json.loads(row["answers"]))
    if not names:
        return row
    return row | {"answers": "[]", "cot": f"Soon. {row['cot']}", "response": f"I will call {' and '.join(names)}."}


def make_corpus(split: str, rows: int, seed: int) -> list[dict[str, Any]]:
    """Make rows of the corpus; the same arguments give the same rows.

    Args:
        split: One of `SPLITS`.
        rows: How many rows.
        seed: Any integer; two seeds share functions, not rows.

    Returns:
        The rows, with unique ids.

    Raises:
        ValueError: If the split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"The toolbox has no split {split!r}: choose one of {', '.join(SPLITS)}.")
    rng = random.Random(f"{split}-{seed}")
    pool = [function for function in FUNCTIONS if function.unseen == (split == "unseen")]
    kinds, held_out = _categories(SPLITS[split], rows), split in ("heldout", "unseen")
    rng.shuffle(kinds)
    corpus = [make_row(f"{split}-{seed}-{i}", kind, pool, rng, held_out) for i, kind in enumerate(kinds)]
    if split == "habits":
        corpus = [promise(row) if rng.random() < PROMISED else row for row in corpus]
    return corpus

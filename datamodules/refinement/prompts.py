"""The prompts of the refinement: one question for each stage, our own words for the intents of the papers.

FunReason (arXiv 2505.20192, figures 7-11) asks five questions; FunRL (arXiv 2508.05118, 5.1) asks one. What a row says
stands between tags, and no text of a row can close them.
"""

import json
import re
import unicodedata
from functools import lru_cache
from itertools import pairwise

from datamodules.example import Example
from rewards import parse_calls, render_calls

JUDGE = "Reason inside <think></think>. Then answer <judge>True</judge> for yes or <judge>False</judge> for no."
CORRECT = """ After False, also write the answer as it should be, in the form [name(parameter=value, ...), ...]:
<NewFC>[corrected calls]</NewFC>"""
FORM = """[name(parameter=value, ...), ...]: a list of calls; the names of functions and parameters are bare, strings
are quoted, numbers and booleans are not"""

ASK = {
    "response": f"""Below is the answer that a data set gives to a user's request. Is it meant as one or more function
calls, even if they are badly written? A sentence to the user, such as a refusal, a question or a plain answer, is none.
{JUDGE}""",
    "query": f"""Below are a user's request, the tools on offer and the answer that a data set gives. Can the request be
met with these tools? It can if each function that it needs is among the tools, and if the user's words give a value for
each parameter that the function requires. Judge the request and the tools, not the quality of the answer.
{JUDGE}""",
    "cot": f"""Below are a chain of thought and an answer. Does the chain of thought lead to the answer? It does if it
starts sensibly, each step follows from those before, and its last step arrives at these calls with these values.
{JUDGE}""",
    "call": f"""Below are a user's request, the tools on offer and the answer that a data set gives. Are the functions
the right ones, none missing and none too many, and does each parameter have the name that its tool declares and the
value that the request gives? {JUDGE} After False, say what is wrong first: <fault>function</fault> for a wrong, missing
or superfluous call, <fault>parameter</fault> for a wrong parameter name or value.{CORRECT}""",
    "format": f"""Below are a user's request, the tools on offer and an answer. Does the answer have exactly this form?
{FORM}
{JUDGE}{CORRECT} Change the form only, not what is called.""",
    "evaluate": f"""Below are a user's request, the tools on offer and the answer that a data set gives. First say
whether the request needs a tool on offer: <tool>True</tool> or <tool>False</tool>. Then judge the answer. If a tool is
needed it must be right in functions, parameters and values, in this form: {FORM}. If none is, it must be [] or a
sentence to the user. {JUDGE}{CORRECT}""",
}
"""The question of each stage. `evaluate` is FunRL's, the others are FunReason's stages 1 to 5."""

SHOWN = {
    "response": ("refFC",),
    "query": ("query", "tools", "refFC"),
    "cot": ("CoT", "refFC"),
    "call": ("query", "tools", "refFC"),
    "format": ("query", "tools", "refFC"),
    "evaluate": ("query", "tools", "refFC"),
}
"""What of the row each question shows, by tag."""

parse_answer = lru_cache(1024)(parse_calls)  # several stages and questions read the answer of a row
_UNSEEN = r"[\x00-\x08\x0e-\x1f\x7f]*"  # what may stand unseen between the letters of a name
_OURS, _TEMPLATES = (
    "|".join(_UNSEEN.join(map(re.escape, name)) for name in names)
    for names in (
        ("query", "tools", "CoT", "refFC", "found", "judge", "NewFC", "fault", "tool", "think"),
        ("|", "s>", "/s>", "start_of_turn>", "end_of_turn>"),  # servers take these for the end of a turn
    )
)
_BETWEEN = r"(?:\\(?:u[0-9a-f]{4}|[bfnrt])|[^\w<])*"  # the bracket and the name, in JSON too
_TAG = re.compile(rf"<(?={_BETWEEN}(?:{_OURS})\b|{_UNSEEN}(?:{_TEMPLATES}))", re.IGNORECASE)
_ALIKE = str.maketrans("‹〈❮⟨〈ᐸ˂" + "асԁегһіјкоԛѕтуαικοτυ", "<" * 7 + "acdeghijkoqstyaikotu")  # noqa: RUF001
"""Characters by those that they look like, where Unicode does not say it: brackets, Cyrillic and Greek letters."""


def messages(stage: str, example: Example, finding: str = "") -> list[dict[str, str]]:
    """A question as chat turns; "write_cot" is the prompt that models are trained on, answered by a teacher.

    Args:
        stage: A key of `ASK`, or "write_cot".
        example: The row that is asked about.
        finding: What a parser or the schema found wrong with it.
    """
    if stage == "write_cot":
        from datamodules.chat.segments import messages as training_messages  # late: of all stages only this needs torch

        return training_messages(example)
    shown = {
        "query": "\n\n".join([*_turns(example.history), example.query]),
        "tools": example.tools,
        "CoT": example.cot,
        "refFC": written_answer(example),
    }
    parts = [ASK[stage], *(_between(tag, shown[tag]) for tag in SHOWN[stage])]
    if finding:
        parts.append("A checker has found this wrong with it:\n" + _between("found", finding))
    return [{"role": "user", "content": "\n\n".join(parts)}]


def written_answer(example: Example) -> str:
    """The answer as a model would have to write it; as it stands where it cannot be read as calls."""
    calls, _ = parse_answer(example.answers)
    if not calls:
        return example.response or example.answers
    try:
        return render_calls(calls)
    except ValueError:
        return example.answers


def _turns(history: str) -> list[str]:
    return [f"{turn['role']}: {turn['content']}" for turn in json.loads(history)]


def _between(tag: str, text: str) -> str:
    return f"<{tag}>\n{_inert(text)}\n</{tag}>"


def _inert(text: str) -> str:
    """A text without tags: what could be read as one of those that frame it has no angle bracket any more."""
    read = text if text.isascii() else text.translate({ord(c): _plain(c) for c in set(text)})
    ends = [0, *(tag.end() for tag in _TAG.finditer(read)), len(text) + 1]  # `read` is as long as `text`
    return "&lt;".join(text[start : end - 1] for start, end in pairwise(ends))


def _plain(character: str) -> str:
    """The ASCII character that one looks like, NUL where it is not seen, else itself without its accents."""
    unseen = unicodedata.category(character) in ("Cf", "Mn", "Me") or character in "\u115f\u1160\u3164\uffa0"
    return "\0" if unseen else unicodedata.normalize("NFKD", character)[0].translate(_ALIKE)

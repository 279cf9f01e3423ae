"""A model's own chat template: prompts as text, the token that ends a turn, tools, calls in its own syntax."""

import json
import re
from datetime import date
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerFast

from datamodules.sources.openai import assistant_message
from rewards import Call, CallFrame

PROMPT_DATE = date(2024, 7, 26)
"""The day in prompts of templates that print the present one: Llama 3's own where a template cannot ask for it."""
DATE_FIXED = f"{{# The date of every prompt is {PROMPT_DATE}. +#}}"
"""Comment that such a template begins with, wherever this project has read it."""
_PRESENT_DATE = re.compile(r"""strftime_now\(\s*+(["'])([^"'\n]*+)\1\s*+\)""")
_THINK_OPENED = re.compile(r"<think>\s*(</think>\s*)?\Z")  # what some templates append to the generation prompt
_EMPTY_THINK = re.compile(r"\A\s*<think>\s*</think>\s*")
_USER = {"role": "user", "content": "question"}
_RULES = "the-rules <think></think>"
_LEFT_OUT = {"tool": "what a tool gives back", "calls": "the calls of earlier turns"}
_PROBE = [Call("get_weather", {"city": "Oslo", "days": 2}), Call("get_time", {"zone": "UTC"})]
_TOOLS = [
    {
        "type": "function",
        "function": {"name": "get_weather", "description": "W", "parameters": {"type": "object", "properties": {}}},
    }
]


def without_present_date(template: str) -> str:
    """A chat template that prints `PROMPT_DATE` where it printed the present day.

    So prompts that were encoded yesterday are those that are generated from today, and the template exported with a
    model prompts it as it was trained. A caller who gives a day to a template that takes one is still heard.
    """
    fixed = _PRESENT_DATE.sub(lambda found: repr(PROMPT_DATE.strftime(found[2])), template)
    return template if fixed == template else DATE_FIXED + fixed


def one_template(templates: str | dict[str, str]) -> str:
    """A single template for several named ones (as Command R has), which chooses among them as transformers does.

    It takes `tool_use` where there are tools, and `default` else. So there is one for an export to build on, and
    prompts are those that were rendered before.

    Raises:
        ValueError: None of them is the default.
    """
    if isinstance(templates, str):
        return templates
    if "default" not in templates:
        raise ValueError(
            f"none of the chat templates {', '.join(sorted(templates))} is the default one: set data.chat_template to "
            "chatml or to a file"
        )
    if "tool_use" not in templates:
        return templates["default"]
    with_tools, without = unended(templates["tool_use"]), unended(templates["default"])
    return f"{{% if tools +%}}{with_tools}{{%+ else +%}}{without}{{%+ endif %}}"


def unended(template: str) -> str:
    """A template without the one line feed at its end that Jinja drops, to be put into another."""
    return re.sub(r"(\r\n|\n|\r)\Z", "", template)


@lru_cache(maxsize=8)
def takes_system(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the chat template takes a system message as it is; else its text goes on top of the first request.

    Gemma 2's refuses one, that of Phi-3 mini prints the other turns as if there were none, and SmolLM3's takes
    `/think` for a switch and out of the text, tags of ours and paths in tools with it.
    """
    try:
        return _RULES in rendered(tokenizer, [{"role": "system", "content": _RULES}, _USER])
    except ValueError:
        return False


@lru_cache(maxsize=8)
def left_out(tokenizer: PreTrainedTokenizerFast, what: str) -> bool:
    """Whether the chat template silently leaves out turns: of a "tool", as Zephyr's, or the "calls" of an assistant.

    A template that refuses such turns is none of these: it raises an error for each chat that has them.
    """
    called = assistant_message("", [Call("get_weather", {"city": "the-words"})], 0, objects=True)
    answered = [{"role": "assistant", "content": "calls"}, {"role": "tool", "content": "the-words"}]
    try:
        return "the-words" not in rendered(tokenizer, [_USER, *([called] if what == "calls" else answered)])
    except ValueError:
        return False


def folded(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns with the system message merged into the first user turn."""
    first = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is None or turns[0]["role"] != "system":
        return turns
    user = turns[first] | {"content": f"{turns[0]['content']}\n\n{turns[first]['content']}"}
    return [*turns[1:first], user, *turns[first + 1 :]]


def turns_text(
    tokenizer: PreTrainedTokenizerFast, turns: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
) -> str:
    """Render the turns of a chat through the model's own template, up to where the answer begins.

    A `<think>` (or empty think block) that the template itself appends is taken off: the model writes its own, so that
    the text it is trained on, generates and is scored on is one and the same. A template that takes no system message
    is given its text on top of the first request.

    Args:
        tokenizer: Tokenizer with a chat template.
        turns: The turns.
        tools: Tools for the template, each `{"type": "function", "function": ...}`.

    Raises:
        ValueError: The template refuses these turns, or leaves some of them out.
    """
    if turns[:1] and turns[0]["role"] == "system" and not takes_system(tokenizer):
        turns = folded(turns)
    present = {
        "tool": any(turn["role"] == "tool" for turn in turns),
        "calls": any("tool_calls" in turn for turn in turns),
    }
    if lost := next((what for what, there in present.items() if there and left_out(tokenizer, what)), ""):
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path} leaves out {_LEFT_OUT[lost]}: set data.chat_template to "
            "chatml, or to a file with a template that prints it"
        )
    return _THINK_OPENED.sub("", rendered(tokenizer, turns, tools=tools, add_generation_prompt=True))


def rendered(tokenizer: PreTrainedTokenizerFast, turns: list[dict[str, Any]], **options: Any) -> str:
    """The text that the chat template renders from turns.

    Args:
        tokenizer: Tokenizer with a chat template.
        turns: The turns.
        options: See `apply_chat_template`.

    Raises:
        ValueError: The template is none, fails, or refuses these turns.
    """
    template = f"the chat template of {tokenizer.name_or_path}"
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, strftime_now=PROMPT_DATE.strftime, **options)
    except TemplateSyntaxError as error:
        raise ValueError(f"{template} is no Jinja: line {error.lineno}: {error.message}") from error
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise ValueError(
            f"{template} refuses the turns {roles} ({error}): set data.chat_template to chatml, or to a file with a "
            "template that takes them"
        ) from error
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        # what an expression of the template ends in
        raise ValueError(f"{template} fails: {type(error).__name__}: {error}") from error
    return text


@lru_cache(maxsize=8)
def end_of_turn_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token that ends an assistant turn in the chat template; the tokenizer's EOS where the template has none.

    Raises:
        ValueError: There is neither.
    """
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "the-answer"}]
    tail = rendered(tokenizer, turns).rpartition("the-answer")[2]
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if token in special:
            return token
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"init_from: the tokenizer of {tokenizer.name_or_path} has no EOS token and its chat template ends no turn "
            "with a special one: name one as eos_token in its tokenizer_config.json"
        )
    return tokenizer.eos_token_id


def first_token(tokenizer: PreTrainedTokenizerFast) -> str:
    """The BOS token that a tokenizer puts before texts or its template before prompts; "" where neither puts one.

    Tokenizers made of a GGUF file put none, whatever the model's published one does.
    """
    bos = tokenizer.bos_token
    if bos is None or tokenizer("a text")["input_ids"][0] == tokenizer.bos_token_id:
        return bos or ""
    try:
        prompt = rendered(tokenizer, [_USER], add_generation_prompt=True) if tokenizer.chat_template else ""
    except ValueError:
        prompt = ""  # of a template that does not work
    return str(bos) if prompt.startswith(bos) else ""


@lru_cache(maxsize=8)
def takes_tools(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the text of a prompt changes with the tools that the template is given."""
    try:
        return "get_weather" in turns_text(tokenizer, [_USER], _TOOLS)
    except ValueError:
        return False


@lru_cache(maxsize=8)
def template_frame(tokenizer: PreTrainedTokenizerFast) -> CallFrame:
    """The frame in which the model's own template writes calls, found by having it write some.

    Raises:
        ValueError: It writes none, or not as JSON objects.
    """
    texts = []
    for count in (1, 2):
        try:
            texts.append(answer_by_template(tokenizer, "", _PROBE[:count]))
        except ValueError:  # Llama's takes one call at a time
            texts.append("")
    for key in ("arguments", "parameters"):
        first, second = (json.dumps({"name": call.name, key: call.arguments}) for call in _PROBE)
        if first in texts[0]:
            head, _, tail = texts[0].partition(first)
            both = texts[1].partition(first)[2]
            return CallFrame(head, key, both.partition(second)[0] if second in both else "\n", tail)
    raise ValueError(
        f"data.answer_form is template, but the chat template of {tokenizer.name_or_path} does not write calls as JSON "
        "objects, which is all that the reward reads: set data.answer_form to hermes, json or python"
    )


def answer_by_template(tokenizer: PreTrainedTokenizerFast, cot: str, calls: list[Call]) -> str:
    """Calls as the model's own template writes them in an assistant's turn, without what ends it.

    Args:
        tokenizer: The tokenizer of the template.
        cot: Chain of thought, given as `reasoning_content`; a template that leaves it out has it put in front.
        calls: The calls.

    Raises:
        ValueError: The template refuses the turn, or puts it where no generation would.
    """
    answer = assistant_message("", calls, 0, objects=True)
    prompt = turns_text(tokenizer, [_USER], _TOOLS)
    full = unthought = rendered(tokenizer, [_USER, answer], tools=_TOOLS)
    if cot:
        full = rendered(tokenizer, [_USER, answer | {"reasoning_content": cot}], tools=_TOOLS)
    if not full.startswith(prompt):
        raise ValueError(
            f"data.answer_form is template, but the chat template of {tokenizer.name_or_path} puts an answer elsewhere "
            "than its prompt ends: set data.answer_form to hermes, json or python"
        )
    end = tokenizer.convert_ids_to_tokens(end_of_turn_id(tokenizer))
    written = full[len(prompt) :].rstrip().removesuffix(end).rstrip("\n")
    if cot and (full == unthought or cot not in written):  # a short thought may be a word of the calls
        return f"<think>{cot}</think>\n\n{written.lstrip()}"
    return written if cot else _EMPTY_THINK.sub("", written)

"""A row as the model sees it: chat prompt, target text, and the segment of every token."""

import json
import re
from bisect import bisect_left
from dataclasses import replace
from functools import lru_cache
from operator import itemgetter
from typing import Any

from transformers import PreTrainedTokenizerFast

from datamodules.chat.form import PAPER, ChatForm
from datamodules.chat.templates import answer_by_template, end_of_turn_id, turns_text
from datamodules.example import BadRow, Example, answers_tool, parse_column
from datamodules.packing import CALL, COT, PROMPT, Encoded
from datamodules.sources.openai import chat_turns, said
from datamodules.sources.tools import bfcl_tools, openai_tool, shown_tool
from rewards import FRAMES, as_calls, write_calls


def messages(example: Example, form: ChatForm = PAPER) -> list[dict[str, Any]]:
    """The chat of a row: our system message with the tools as `form.tool_form` writes them, earlier turns, the query.

    Where the answer is one to a tool, the query is among the earlier turns, which end with what the tool gave back.
    With `prompt: template` the system message is what `data.system_prompt` and the row say, and the calls of earlier
    turns stand beside their text, for the template to write.
    """
    system, history = form.instructions, _history(example, form)
    if form.prompt == "paper":
        tools = json.loads(example.tools)
        if form.tool_form == "bfcl":
            system += bfcl_tools(tools)
        else:
            system += json.dumps([*map(shown_tool, tools)], ensure_ascii=False, separators=(",", ":"))
    if history and history[0]["role"] == "system":  # templates take one system message: the row's own goes below ours
        system, history = "\n\n".join(filter(None, (system, history[0]["content"].strip()))), history[1:]
    request = [] if answers_tool(example) else [{"role": "user", "content": example.query}]
    return [*([{"role": "system", "content": system}] if system else []), *history, *request]


def _history(example: Example, form: ChatForm) -> list[dict[str, Any]]:
    """Earlier turns, with calls as the form writes them."""
    if form.prompt == "template":
        return chat_turns(example, objects=True)
    turns: list[dict[str, Any]] = json.loads(example.history)
    tools = json.loads(example.tools)
    for turn in turns:
        if turn["role"] == "assistant":
            text, calls = said(turn["content"], tools)
            if calls is not None:
                written = write_calls(calls, FRAMES.get(form.answer_form))
                turn["content"] = "\n\n".join(filter(None, (text, written)))
    return turns


def prompt_text(tokenizer: PreTrainedTokenizerFast, example: Example, form: ChatForm = PAPER) -> str:
    """Render the prompt of a row through the model's own chat template, up to where the answer begins.

    Args:
        tokenizer: Tokenizer with a chat template.
        example: The row.
        form: How requests are put.

    Returns:
        The text of `templates.turns_text`; nothing in it is trained on.

    Raises:
        BadRow: The row's own text holds a special token of this tokenizer, which would end a turn early; or the
            template refuses these turns.
    """
    turns = messages(example, form)
    texts = {"query": example.query, "tools": turns[0]["content"] + example.tools, "history": str(turns[1:])}
    _refuse_special_tokens(tokenizer, texts)
    tools = [openai_tool(tool) for tool in json.loads(example.tools)] if form.prompt == "template" else None
    return parse_column("history" if len(turns) > 2 else "", turns_text, tokenizer, turns, tools or None)


def target_text(example: Example, form: ChatForm = PAPER, tokenizer: PreTrainedTokenizerFast | None = None) -> str:
    """The text trained on, without the end-of-turn token: `<think>{cot}</think>`, a blank line, the calls.

    Without a chain of thought the target is the calls alone: an empty think block is never taught. When no tool fits
    the calls are the row's `response`, or `[]` where it has none.

    Args:
        example: The row.
        form: How calls are written, and whether a chain of thought stands before them.
        tokenizer: The tokenizer whose template writes calls, where the form says so.

    Raises:
        ValueError: The calls cannot be written in this form.
    """
    calls, cot = as_calls(example.answers), example.cot if form.think else ""
    if calls and form.answer_form == "template":
        return answer_by_template(tokenizer, cot, calls)
    answer = write_calls(calls, FRAMES.get(form.answer_form)) if calls or not example.response else example.response
    return f"<think>{cot}</think>\n\n{answer}" if cot else answer


def encode_prompt(tokenizer: PreTrainedTokenizerFast, example: Example, form: ChatForm = PAPER) -> list[int]:
    """Token ids of `prompt_text`: what generation starts from, and what documents of `encode_texts` begin with."""
    return tokenizer(prompt_text(tokenizer, example, form), add_special_tokens=False)["input_ids"]


def checked_target(tokenizer: PreTrainedTokenizerFast, example: Example, form: ChatForm = PAPER) -> str:
    """`target_text`, once it is known to hold no special token of the tokenizer (BadRow otherwise)."""
    target = parse_column("answers", target_text, example, form, tokenizer)
    own = target_text(example, replace(form, answer_form="python"))  # a template's own marks may be special tokens
    _refuse_special_tokens(tokenizer, {"cot": example.cot, "answers": own})
    return target


def encode_texts(tokenizer: PreTrainedTokenizerFast, prompts: list[str], targets: list[str]) -> list[Encoded]:
    """Encode prompts and targets, each by itself, so that the prompt ids are exactly those of generation.

    Args:
        tokenizer: Tokenizer with a chat template; its Rust threads share a batch.
        prompts: Texts of `prompt_text`.
        targets: Texts of `target_text`, one for each prompt.

    Returns:
        Ids and segments: 0 prompt; 1 chain of thought, both tags included; 2 everything after `</think>` (arXiv
        2505.20192, figure of the multiscale loss), and the end-of-turn token, which the figure does not show.
    """
    before = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    after = tokenizer(targets, add_special_tokens=False, return_offsets_mapping=True)
    end = end_of_turn_id(tokenizer)
    return [
        Encoded(prompt + ids + [end], [PROMPT] * len(prompt) + target_segments(target, offsets) + [CALL])
        for prompt, ids, target, offsets in zip(
            before, after["input_ids"], targets, after["offset_mapping"], strict=True
        )
    ]


def target_segments(target: str, offsets: list[tuple[int, int]]) -> list[int]:
    """Segment of each target token: chain of thought iff the token starts before the end of the first `</think>`.

    A token that BPE merged across the boundary (`>` with the line feeds after it) belongs to the chain of thought.
    """
    boundary = target.index("</think>") + len("</think>") if target.startswith("<think>") else 0
    cot = bisect_left(offsets, boundary, key=itemgetter(0))
    return [COT] * cot + [CALL] * (len(offsets) - cot)


@lru_cache(maxsize=8)
def _special_pattern(tokenizer: PreTrainedTokenizerFast) -> re.Pattern[str]:
    texts = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    texts |= set(tokenizer.all_special_tokens)
    texts -= {"<think>", "</think>"}  # our own tags; whether a row may hold them is settled when it is read
    return re.compile("|".join(re.escape(text) for text in sorted(texts)) or r"(?!)")


def _refuse_special_tokens(tokenizer: PreTrainedTokenizerFast, texts: dict[str, str]) -> None:
    """Refuse text that would turn into control tokens: `<|im_end|>` inside a query is one id, not ten characters."""
    pattern = _special_pattern(tokenizer)
    for column, text in texts.items():
        if found := pattern.search(text):
            raise BadRow(column, f"holds {found.group()!r}, a special token of this model's tokenizer")

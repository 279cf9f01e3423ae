"""Parsers for vLLM's server: the chain of thought and the calls of an answer, read as the reward reads them.

`funreason serve` names this module to vLLM, which imports it; nothing else does. vLLM's own parsers of `<think>` need
the tags to be tokens, take an answer without them for a thought, and find them in the system prompt already.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    ExtractedToolCallInformation,
    FunctionCall,
    ToolCall,
)
from vllm.reasoning import ReasoningParser, ReasoningParserManager
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tool_parsers.abstract_tool_parser import ToolParser, ToolParserManager

from datamodules.chat.form import ChatForm, reads, recorded_form
from rewards import FRAMES, Call, CallFrame, parse_calls

OPEN, CLOSE = "<think>", "</think>"
BARE_CALL = re.compile(r"[\w.]*(\(.*)?", re.DOTALL)  # or its beginning
TAIL = 16  # tokens in which a closing tag has room, however it is cut


def split_thought(text: str) -> tuple[str, str, bool]:
    """Split the text of an answer, which may still be streaming, into thought and rest.

    Returns:
        What is certain of the thought, what is certain of the rest, without white space between them, and whether the
        thought has ended or there is none.
    """
    text = text.lstrip()
    if not text.startswith(OPEN):
        return ("", "", False) if OPEN.startswith(text) else ("", text, True)
    thought, closed, rest = text.removeprefix(OPEN).lstrip().partition(CLOSE)
    if not closed:  # it may end with the beginning of the tag
        kept = next((n for n in range(len(CLOSE) - 1, 0, -1) if thought.endswith(CLOSE[:n])), 0)
        thought = thought[: len(thought) - kept]
    return thought.rstrip(), rest.lstrip(), bool(closed)


class ThoughtParser(ReasoningParser):
    """The text between `<think>` and `</think>`, where an answer begins with it."""

    engine_based_streaming = True  # it is given the new text alone, and asked for what is left at the end

    def __init__(self, tokenizer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(tokenizer, *args, **kwargs)
        self.text = ""
        self.sent = 0  # characters of the thought
        self.ended = False

    @property
    def reasoning_start_str(self) -> str:
        """The tag that opens a thought."""
        return OPEN

    @property
    def reasoning_end_str(self) -> str:
        """The tag that closes it."""
        return CLOSE

    def adjust_request(self, request: Any) -> Any:
        """Have the tags in the text, be they special tokens or not."""
        request.skip_special_tokens = False
        return request

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """The thought and the rest of a complete answer."""
        if not model_output.lstrip().startswith(OPEN):
            return None, model_output
        thought, _, rest = model_output.lstrip().removeprefix(OPEN).partition(CLOSE)
        return thought.strip() or None, rest.strip() or None

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        """The part of new text that belongs to the thought, and the beginning of what follows it."""
        self.text += delta_text
        thought, rest, self.ended = split_thought(self.text)
        new, self.sent = thought[self.sent :], max(self.sent, len(thought))
        return DeltaMessage(reasoning=new or None, content=rest or None) if new or rest else None

    def has_engine_confirmed_reasoning_end(self) -> bool:
        """Whether the thought has ended, or there is none."""
        return self.ended

    def finish_streaming(self) -> DeltaMessage | None:
        """The end of a thought that was cut, which streaming had held back."""
        if self.ended:
            return None
        self.ended = True
        thought, content = self.extract_reasoning(self.text, None)
        left = (thought or "")[self.sent :]
        return DeltaMessage(reasoning=left or None, content=content) if left or content else None

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Whether an answer holds the end of its thought; a prompt, which may speak of one, holds none."""
        text = self.model_tokenizer.decode(list(input_ids))
        return text.lstrip().startswith(OPEN) and CLOSE in text

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Any) -> bool:
        """Whether the newest tokens end a thought."""
        new = len(list(delta_ids))
        return CLOSE in self.model_tokenizer.decode(list(input_ids)[-new - TAIL :])

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """An empty list: the thought's last token may hold text of the answer, so ids cannot be split."""
        return []


class CallParser(ToolParser):
    """The calls of an answer in the form that the model was trained in; they come all at once."""

    supports_required_and_named = False  # no JSON is forced upon a model that was trained on another form
    engine_based_streaming = True

    def __init__(self, tokenizer: Any, tools: Any = None) -> None:
        super().__init__(tokenizer, tools)
        self.form = reads(recorded_form(tokenizer) or ChatForm(), tokenizer)
        self.text = ""
        self.held = True  # of a stream: whether its text may be calls, of which nothing is sent before the end

    def adjust_request(self, request: Any) -> Any:
        """Have the marks of calls in the text, be they special tokens or not."""
        if _wanted(request):
            request.skip_special_tokens = False
        return request

    def calls(self, text: str) -> list[Call]:
        """The calls of a complete answer; none where it is no list of calls."""
        return parse_calls(text, self.form)[0] or []

    def extract_tool_calls(self, model_output: str, request: Any) -> ExtractedToolCallInformation:
        """The calls of a complete answer, or its text."""
        found = [
            ToolCall(type="function", function=FunctionCall(name=call.name, arguments=_json(call)))
            for call in (self.calls(model_output) if _wanted(request) else [])
        ]
        text = None if found else model_output.strip()
        return ExtractedToolCallInformation(tools_called=bool(found), tool_calls=found, content=text)

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Any,
    ) -> DeltaMessage | None:
        """New text of an answer that is no list of calls."""
        was_held, self.text = self.held, self.text + delta_text
        self.held = was_held and _wanted(request) and may_be_calls(self.text, self.form)
        new = self.text.lstrip() if was_held else delta_text
        return DeltaMessage(content=new) if new and not self.held else None

    def finish_streaming(self) -> DeltaMessage | None:
        """The calls, or the text that was held back because it might have been calls."""
        if not self.held:
            return None
        self.held = False
        found = [
            DeltaToolCall(
                index=index,
                id=make_tool_call_id(),
                type="function",
                function=DeltaFunctionCall(name=call.name, arguments=_json(call)),
            )
            for index, call in enumerate(self.calls(self.text))
        ]
        if found:
            return DeltaMessage(tool_calls=found)
        return DeltaMessage(content=self.text.strip()) if self.text.strip() else None


def may_be_calls(text: str, form: str | CallFrame) -> bool:
    """Whether a text could be the beginning of an answer with calls."""
    text, frame = text.lstrip(), form if isinstance(form, CallFrame) else FRAMES.get(form)
    starts = ("[", "{") if frame is None else ("[", frame.head.lstrip())
    bare = frame is None and BARE_CALL.fullmatch(text)
    return bool(bare) or any(text.startswith(start) or start.startswith(text) for start in starts)


def _wanted(request: Any) -> bool:
    return bool(request.tools) and request.tool_choice != "none"


def _json(call: Call) -> str:
    return json.dumps(call.arguments, ensure_ascii=False)


ToolParserManager.register_module("funreason", module=CallParser)
ReasoningParserManager.register_module("funreason", module=ThoughtParser)

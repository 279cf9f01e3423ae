"""The chat form, how requests are put and answers written: one for training, evaluation, export and serving."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from datamodules.chat.templates import takes_tools, template_frame
from rewards import FRAMES, CallFrame

Prompt = Literal["paper", "template"]
AnswerForm = Literal["python", "json", "hermes", "template"]
Think = Literal["auto", "require", "none"]
ToolForm = Literal["json", "bfcl"]

THINK = "Reason inside <think></think>: which tools fit, and where the request gives each argument.\nThen answer"
ASKED = {
    "python": ("a Python list of calls", "[name(param=value)]"),
    "json": ("a JSON list of calls", '[{"name": "name", "arguments": {"param": value}}]'),
    "hermes": (
        "a <tool_call> block for each call",
        '<tool_call>\n{"name": "name", "arguments": {"param": value}}\n</tool_call>',
    ),
}
"""What our system prompt asks for, and an example of it, by the form of the answer."""
KEPT_IN = "chat_form"  # among the settings of an exported tokenizer


@dataclass(frozen=True)
class ChatForm:
    """The form in which requests are rendered as prompts and answers are written.

    Attributes:
        prompt: "paper" puts our text and the tools as JSON into the system message; "template" gives the tools to the
            model's own chat template.
        answer_form: How calls are written: a "python" list, a "json" list, "hermes" blocks, or as the model's own
            "template" writes them.
        think: Whether a chain of thought in `<think></think>` stands before the calls.
        system_prompt: Text in place of ours, the tools going below it; with "template" the system message.
        tool_form: How tools are written below that text: as compact "json", or as "bfcl" prints them.
    """

    prompt: Prompt = "paper"
    answer_form: AnswerForm = "python"
    think: bool = True
    system_prompt: str | None = None
    tool_form: ToolForm = "json"

    @property
    def instructions(self) -> str:
        """The system text without the tools; "" where the template has its own."""
        if self.system_prompt is not None or self.prompt == "template":
            return self.system_prompt or ""
        what, written = ASKED[self.answer_form]
        answer = f"with {what}, each argument in its declared type, or [] if no tool fits:\n"
        thought = "<think>reasoning</think>\n\n" if self.think else ""
        return f"{THINK if self.think else 'Answer'} {answer}{thought}{written}\n\n# Tools\n"

    def check(self) -> None:
        """Refuse parts that contradict each other.

        Raises:
            ValueError: Naming the key of the data.
        """
        if self.answer_form == "template" and self.prompt != "template":
            raise ValueError(
                "data.answer_form is template, but data.prompt is paper, whose text asks for a form of its own: set "
                "data.prompt to template too, or data.answer_form to python, json or hermes"
            )
        if self.tool_form == "bfcl" and self.prompt == "template":
            raise ValueError(
                "data.tool_form is bfcl, but data.prompt is template, and it is the model's own template that writes "
                "the tools: set data.prompt to paper, or data.tool_form to json"
            )

    def described(self, think: Think = "require") -> str:
        """The form in a sentence."""
        form = {"python": "a Python list of calls", "json": "a JSON list of calls", "hermes": "Hermes blocks of calls"}
        answer = form.get(self.answer_form, "the syntax of the model's own template")
        ours = "our system prompt" if self.system_prompt is None else "the given system prompt"
        ours += ", with tools as BFCL prints them" if self.tool_form == "bfcl" else ""
        prompt = "the model's own chat template" if self.prompt == "template" else ours
        thought = "after a chain of thought" if self.think else "without a chain of thought"
        chosen = " (data.think auto)" if think == "auto" else ""
        return f"Asked by {prompt}; answered with {answer}, {thought}{chosen}."

    def recorded(self) -> dict[str, Any]:
        """The form as a dict of plain values, which a run and its exported model save."""
        return asdict(self)


PAPER = ChatForm()
"""The papers' form: a thought, then a Python list. Our words ask for it; theirs are BFCL's, which v1 of FunReason takes
as they are (`system_prompt` "bfcl") and the later papers follow by an instruction to think."""


def recorded_form(tokenizer: PreTrainedTokenizerFast) -> ChatForm | None:
    """The form that the model of a tokenizer was trained in by this project; None if it does not say."""
    kept = tokenizer.init_kwargs.get(KEPT_IN)
    return ChatForm(**kept) if isinstance(kept, dict) else None


def resolve_form(
    tokenizer: PreTrainedTokenizerFast,
    prompt: Prompt | None = None,
    answer_form: AnswerForm | None = None,
    think: bool | None = None,
    system_prompt: str | None = None,
    tool_form: ToolForm | None = None,
) -> ChatForm:
    """The form of a run: the given parts, else those that the model was trained in, else the papers'.

    Raises:
        ValueError: The parts contradict each other, or the model's template cannot do what is asked of it.
    """
    given = {
        "prompt": prompt,
        "answer_form": answer_form,
        "think": think,
        "system_prompt": system_prompt,
        "tool_form": tool_form,
    }
    kept = recorded_form(tokenizer) or PAPER
    form = replace(kept, **{name: value for name, value in given.items() if value is not None})
    form.check()
    if form.prompt == "template" and not takes_tools(tokenizer):
        raise ValueError(
            f"data.prompt is template, but the chat template of {tokenizer.name_or_path} says the same whatever tools "
            "it is given: set data.prompt to paper"
        )
    if form.answer_form == "template":
        template_frame(tokenizer)
    return form


def frame_of(form: ChatForm, tokenizer: PreTrainedTokenizerFast) -> CallFrame | None:
    """The frame of an answer's calls; None for the Python form."""
    return template_frame(tokenizer) if form.answer_form == "template" else FRAMES.get(form.answer_form)


def reads(form: ChatForm, tokenizer: PreTrainedTokenizerFast) -> str | CallFrame:
    """The `form` of a reward (`rewards.parse_calls`) that accepts this form only."""
    return frame_of(form, tokenizer) or "python"

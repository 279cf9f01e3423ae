"""`funreason ask`: samples answers of a model to one request, in the chat form that it was trained in."""

import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveInt

from datamodules.system.command_line import SentenceParser

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from datamodules.chat.form import ChatForm
    from lightning_modules.policy.model import ScoredCausalLM
    from lightning_modules.rollout.rollout import Rollout
    from rewards import Call


@dataclass(frozen=True)
class Answer:
    """One sampled answer.

    Attributes:
        completion: What the model wrote, without the token that ended it.
        cot: Its chain of thought; "" if it has none that is well formed.
        answer: What follows the chain of thought.
        calls: The calls, read as the reward reads them; None if it cannot.
        error: Why there are no calls, or None.
        misfit: Where the calls contradict the tools, or None.
        cot_entropy: Mean entropy in nats of the distributions that the tokens of the chain of thought were drawn from,
            at the temperature of the sampling (at 1 where it is 0); None without a chain of thought.
        cot_tokens: Tokens strictly between the think tags.
        prompt_tokens: Length of the prompt.
        completion_tokens: Length of the completion, its end token included.
        finish_reason: "stop", or "length" if it was cut.
    """

    completion: str
    cot: str
    answer: str
    calls: list["Call"] | None
    error: str | None
    misfit: str | None
    cot_entropy: float | None
    cot_tokens: int
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]


def load_model(run: str) -> tuple["ScoredCausalLM", "PreTrainedTokenizerFast", "ChatForm"]:
    """Load what `ask` asks, on the accelerator if there is one, in the dtype that its weights were saved in.

    Args:
        run: A run folder (its `hf/`), a Hugging Face folder or a hub id.

    Returns:
        Model, tokenizer, and the form that the model was trained in; the papers' where it does not say.

    Raises:
        FileNotFoundError: There is no model of that name.
        ValueError: It cannot be loaded.
    """
    import torch
    from transformers import AutoConfig

    from datamodules.chat.form import resolve_form
    from datamodules.chat.tokenizer import load_tokenizer, resolve_model_folder
    from lightning_modules.policy.model import build_policy
    from lightning_modules.policy.weights import check_model

    check_model(run)
    tokenizer = load_tokenizer(run)
    dtype = AutoConfig.from_pretrained(resolve_model_folder(run)).dtype or torch.float32
    policy = build_policy(run, dtype=dtype).eval()
    return policy.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, resolve_form(tokenizer)


def ask(
    policy: "ScoredCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    form: "ChatForm",
    query: str,
    tools: Any = (),
    samples: int = 1,
    temperature: float = 0.0,
    max_new_tokens: int = 512,
    seed: int = 0,
) -> list[Answer]:
    """Sampled answers to one request, each with its thought, calls, misfit with the tools, and entropies.

    Args:
        policy: The model.
        tokenizer: Its tokenizer.
        form: How the request is put and the answer read; see `load_model`.
        query: The request.
        tools: The tools on offer, in any form that `sources.tools.read_tools` takes.
        samples: Answers to draw.
        temperature: Divides the logits; 0 takes the most likely token.
        max_new_tokens: Tokens after which an answer is cut.
        seed: Of the sampling.

    Returns:
        The answers, as many as `samples`.

    Raises:
        ValueError: The tools cannot be read, the request is empty or holds a special token of the tokenizer, or a
            setting is out of its range.
    """
    from lightning_modules.commands.request import draw, entropies, request

    if samples < 1:
        raise ValueError(f"samples is {samples}; give at least 1")
    example = request(query, tools if isinstance(tools, str | dict) else list(tools))
    prompt, rollouts = draw(policy, tokenizer, form, example, samples, temperature, max_new_tokens, seed)
    thinking = [rollout for rollout in rollouts if rollout.parsed.cot]  # others are spared the pass over their tokens
    buffer, _, level = entropies(policy, tokenizer, example, prompt, thinking, temperature)
    thoughts = zip(map(sum, buffer.cot), level.tolist(), strict=True)
    return [as_answer(rollout, *(next(thoughts) if rollout.parsed.cot else (0, 0.0))) for rollout in rollouts]


def as_answer(rollout: "Rollout", cot_tokens: int, cot_entropy: float) -> Answer:
    """A completion of a request as an answer.

    Args:
        rollout: The completion.
        cot_tokens: See `Answer`.
        cot_entropy: Likewise; of no meaning without a chain of thought.
    """
    from lightning_modules.commands.request import misfit_of

    parsed = rollout.parsed
    return Answer(
        completion=rollout.text,
        cot=parsed.cot,
        answer=parsed.answer,
        calls=parsed.calls,
        error=parsed.error,
        misfit=misfit_of(rollout),
        cot_entropy=cot_entropy if cot_tokens else None,
        cot_tokens=cot_tokens,
        prompt_tokens=rollout.prompt_tokens,
        completion_tokens=rollout.completion_tokens,
        finish_reason=rollout.finish_reason,
    )


def described(answer: Answer) -> str:
    """An answer in lines for the terminal."""
    if answer.error is not None:
        verdict = f"not read as calls: {answer.error}"
    elif not answer.calls:
        verdict = "no call"
    elif answer.misfit is not None:
        verdict = f"read as calls, which do not fit the tools: {answer.misfit}"
    else:
        verdict = "read as calls, which fit the tools"
    cut = "; cut at max_new_tokens" if answer.finish_reason == "length" else ""
    entropy = "" if answer.cot_entropy is None else f", mean entropy {answer.cot_entropy:.4f} nats"
    written = answer.cot or answer.answer
    lines = [
        f"CoT     {answer.cot or '(none)'}",
        f"answer  {answer.answer if written else answer.completion}",
        f"        {verdict}",
        f"tokens  {answer.prompt_tokens} of the prompt, {answer.completion_tokens} written, "
        f"{answer.cot_tokens} of them CoT{entropy}{cut}",
    ]
    return "\n".join(line.replace("\n", "\n        ") for line in lines)


def main(args: list[str] | None = None) -> None:
    """Run `funreason ask`."""
    parser = SentenceParser(prog="funreason ask", description="Put one request to a model and see what it answers.")
    parser.add_argument("run", help="a run folder (its hf/ is meant), a Hugging Face folder or a hub id")
    parser.add_argument(
        "query", nargs="?", default="-", help="the request; - or nothing reads it from the standard input"
    )
    parser.add_argument("--tools", help="a file with the tools on offer, in any common form; none when left out")
    parser.add_argument("--samples", type=PositiveInt, default=1, help="answers to draw")
    parser.add_argument(
        "--temperature", type=NonNegativeFloat, help="0 (the most likely token) for one answer, 1 for several"
    )
    parser.add_argument("--max_new_tokens", type=PositiveInt, default=512, help="tokens after which an answer is cut")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--json", action="store_true", help="print one JSON object per answer")
    options = parser.parse_args(args)
    tools = _read_tools_file(options.tools) if options.tools else []
    query = sys.stdin.read().strip() if options.query == "-" else options.query
    if not query:
        raise ValueError("the request is empty: give it as the second argument or on the standard input")
    if any("\ud800" <= mark <= "\udfff" for mark in query):
        raise ValueError("the request holds bytes that are no text in the terminal's encoding: set it to UTF-8 (LANG)")
    warm = options.samples > 1 if options.temperature is None else options.temperature

    from transformers.utils.logging import disable_progress_bar

    from datamodules.chat.form import recorded_form

    disable_progress_bar()
    policy, tokenizer, form = load_model(options.run)
    if recorded_form(tokenizer) is None:
        print(f"{options.run} does not say how it was trained. {form.described()}", file=sys.stderr)
    answers = ask(
        policy, tokenizer, form, query, tools, options.samples, float(warm), options.max_new_tokens, options.seed
    )
    for number, answer in enumerate(answers, start=1):
        if options.json:
            print(json.dumps(asdict(answer), ensure_ascii=False))
            continue
        if len(answers) > 1:
            print(f"{'' if number == 1 else chr(10)}answer {number} of {len(answers)}")
        print(described(answer))


def _read_tools_file(file: str) -> list[dict[str, Any]]:
    """The tools of a file, read before the model loads."""
    from datamodules.sources.tools import read_tools

    try:
        text = Path(file).expanduser().read_text(encoding="utf-8-sig")
        if not text.strip():  # of a download that failed, say; no tools are a file with []
            raise ValueError("the file is empty")
        return read_tools(text, Counter())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"--tools {file}: {reason}; give a file with a list of tools") from error

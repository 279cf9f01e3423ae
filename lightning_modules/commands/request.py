"""One request to a model: as a row, the answers that are sampled to it, and the entropy of each of their tokens."""

import json
import threading
from collections import Counter
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from datamodules.chat.form import ChatForm, reads
from datamodules.chat.segments import encode_prompt
from datamodules.example import Example
from datamodules.loading import PromptBatch
from datamodules.refinement.schema import find_misfit
from datamodules.rows import check_example, check_request
from datamodules.sources.tools import read_tools
from lightning_modules.generators import HFGenerator
from lightning_modules.objectives import mean_cot_entropy
from lightning_modules.policy.generation_config import stop_ids
from lightning_modules.policy.model import ScoredCausalLM
from lightning_modules.policy.row_checks import learnt_positions
from lightning_modules.rollout.buffer import RolloutBuffer
from lightning_modules.rollout.collect import make_buffer, score_tokens
from lightning_modules.rollout.dynamic import Drawn
from lightning_modules.rollout.groups import Overlong
from lightning_modules.rollout.rollout import Rollout, score_completion
from rewards import FRAMES, FunctionCallReward, parse_calls, write_calls

SCORED_TOGETHER = 8192  # tokens of a forward that scores answers
_one_at_a_time = threading.Lock()  # a model that generates has its own settings put away meanwhile


def request(query: str, tools: Any, reference: str = "", history: str = "") -> Example:
    """A request as a row.

    Args:
        query: What is asked.
        tools: The tools on offer, in any form that `read_tools` takes; "" for none.
        reference: The right calls, in any form that the reward reads; "" where nobody knows them.
        history: Earlier turns as JSON; "" for none.

    Returns:
        The row.

    Raises:
        ValueError: One of them cannot be read, or the calls are of tools that are not offered.
    """
    try:
        offered = read_tools(tools, Counter())
    except ValueError as error:
        raise ValueError(f"the tools cannot be read: {error}") from error
    answers = ""
    if reference.strip():
        calls, fault = parse_calls(reference)
        if calls is None:
            raise ValueError(f"the reference cannot be read as calls: {fault}")
        answers = write_calls(calls, FRAMES["json"])
    example = Example("", query, json.dumps(offered, ensure_ascii=False), answers, history=history.strip() or "[]")
    (check_example if answers else check_request)(example)
    return example


def draw(
    policy: ScoredCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    form: ChatForm,
    example: Example,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> tuple[list[int], list[Rollout]]:
    """Token ids of the prompt of a request, and answers to it; scored where the request has a reference.

    Args:
        policy: The model.
        tokenizer: Its tokenizer.
        form: How the request is put and the answer read.
        example: The request.
        samples: Answers to draw.
        temperature: Divides the logits; 0 takes the most likely token.
        max_new_tokens: Tokens after which an answer is cut.
        seed: Of the sampling.

    Raises:
        ValueError: A setting is out of its range, the request holds a special token of the tokenizer, or the model has
            no positions for the longest answer, which is scored as a whole.
    """
    prompt = encode_prompt(tokenizer, example, form)
    has = learnt_positions(policy.causal_lm)
    if has and len(prompt) + max_new_tokens > has:
        raise ValueError(
            f"{policy.causal_lm.name_or_path} has {has:,} positions, and the prompt has {len(prompt):,} tokens and an "
            f"answer up to {max_new_tokens:,}: set max_new_tokens lower, or ask with fewer tools or words"
        )
    generator = HFGenerator(max_new_tokens, temperature, seed=seed)
    stops = stop_ids(tokenizer, policy.causal_lm.generation_config)
    with _one_at_a_time:
        completions = generator(policy, [prompt], n=samples, stop_ids=stops)[0]
    reward = FunctionCallReward()
    reward.form, reward.think = reads(form, tokenizer), form.think
    return prompt, [
        replace(score_completion(tokenizer, reward, example, prompt, completion), token_ids=completion.token_ids)
        for completion in completions
    ]


def entropies(
    policy: ScoredCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    example: Example,
    prompt: list[int],
    rollouts: list[Rollout],
    temperature: float,
) -> tuple[RolloutBuffer, Tensor, Tensor]:
    """Entropies in nats of the distributions that the tokens of answers were drawn from, as a training step has them.

    Args:
        policy: The model.
        tokenizer: Its tokenizer.
        example: The request.
        prompt: Token ids of its prompt.
        rollouts: The answers, G of them with N tokens.
        temperature: Of their sampling; where it is 0, entropies are those at 1.

    Returns:
        The answers as a buffer, with their `cot_mask`; the entropy of each token, [N]; E, the mean over the chain of
        thought of each answer, [G], 0 without one.
    """
    batch, drawn = PromptBatch([example], [prompt]), Drawn([prompt], [rollouts], [0], {}, 0)
    buffer = make_buffer(batch, drawn, tokenizer, Overlong())
    micros = buffer.pack(SCORED_TOGETHER, packed=False)
    with _one_at_a_time:
        _, entropy = score_tokens(policy, micros, len(micros), policy.causal_lm.device, temperature or 1.0, True)
    return buffer, entropy, mean_cot_entropy(entropy, buffer.in_cot, buffer.doc_ids, len(rollouts))


def misfit_of(rollout: Rollout) -> str | None:
    """Where the calls of an answer contradict the tools; None where they do not, or there are none."""
    misfit = find_misfit(rollout.parsed.calls or [], json.loads(rollout.example.tools))
    return misfit.reason if misfit else None

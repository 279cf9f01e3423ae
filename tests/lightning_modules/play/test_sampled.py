import json
import math

import pytest
import torch

from datamodules.chat.form import ChatForm
from datamodules.chat.segments import encode_prompt
from lightning_modules.commands import request as requests
from lightning_modules.commands.ask import ask, load_model
from lightning_modules.commands.request import request
from lightning_modules.generators.base import Completion
from lightning_modules.objectives import EntropyBonus
from lightning_modules.play.sampled import sample_group, shown_tokens

TOOLS = json.dumps([{"name": "f", "description": "", "parameters": {"a": {"type": "int", "required": True}}}])
RIGHT, WRONG = "<think>One fits.</think>\n\n[f(a=1)]", "<think>Two, é.</think>\n\n[f(a=2)]"


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return load_model(str(tiny_model_dir))


@pytest.fixture
def answers(monkeypatch, tiny_tokenizer):
    """Makes the generator write given texts, each ended by its stop id."""

    def write(*texts):
        ids = [tiny_tokenizer(text)["input_ids"] for text in texts]
        drawn = [Completion([*some, tiny_tokenizer.eos_token_id], "stop") for some in ids]
        monkeypatch.setattr(requests, "HFGenerator", lambda *_, **__: lambda *_, **__: [drawn])

    return write


def entropies(policy, prompt, ids, temperature):
    """The oracle: softmax of transformers' own logits, in float64."""
    with torch.no_grad():
        logits = policy.causal_lm(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double() / temperature
    return torch.distributions.Categorical(logits=logits).entropy()


def test_the_group_is_compared_as_the_papers_say(model, answers):
    policy, tokenizer, form = model
    answers(RIGHT, WRONG, "no thought")
    example = request("Which?", TOOLS, "[f(a=1)]")
    prompt = encode_prompt(tokenizer, example, form)
    ids = tokenizer(RIGHT)["input_ids"]
    oracle = entropies(policy, prompt, [*ids, tokenizer.eos_token_id], 0.7)
    offsets = tokenizer(RIGHT, return_offsets_mapping=True)["offset_mapping"]
    inside = [first >= len("<think>") and last <= RIGHT.index("</think>") for first, last in offsets] + [False]
    mean = float(oracle[inside].mean())
    group = sample_group(policy, tokenizer, form, example, 3, 0.7, entropy_bonus=EntropyBonus(0.4 / mean))
    right, wrong, bare = group.answers
    assert [token.reasoned for token in right.tokens] == inside
    assert [token.entropy for token in right.tokens] == pytest.approx(oracle.tolist(), rel=1e-4)
    other = entropies(policy, prompt, [*tokenizer(WRONG)["input_ids"], tokenizer.eos_token_id], 0.7)
    assert [token.entropy for token in wrong.tokens] == pytest.approx(other.tolist(), rel=1e-4)
    assert right.cot_entropy == pytest.approx(mean, rel=1e-4) and bare.cot_entropy == 0
    assert group.cot_entropy == (right.cot_entropy + wrong.cot_entropy) / 2  # of the two that have one
    # Rewards 1, 0, 0: mean 1/3, std sqrt((4/9 + 1/9 + 1/9) / 2) = sqrt(1/3); A = (2/3) sqrt(3), twice -(1/3) sqrt(3).
    assert [answer.rollout.result.score for answer in group.answers] == [1, 0, 0]
    root = math.sqrt(3)
    expected = [2 / 3 * root, -root / 3, -root / 3]
    assert [answer.advantage for answer in group.answers] == pytest.approx(expected, rel=1e-5)
    # lambda E = 0.4 of the first, below its cap (1/3) sqrt(3) = 0.577; the second's cap (1/6) sqrt(3) = 0.289 is
    # smaller than about 0.4; the third has no thought, so no bonus.
    assert (right.raw_bonus, right.bonus) == pytest.approx((0.4, 0.4), rel=1e-4) and right.capped is False
    assert wrong.raw_bonus > 0.289 and wrong.bonus == wrong.cap == pytest.approx(root / 6, rel=1e-5) and wrong.capped
    assert bare.bonus == 0 and not bare.capped
    for answer in group.answers:
        assert (
            answer.shaped == pytest.approx(answer.advantage + answer.bonus) and answer.cap == abs(answer.advantage) / 2
        )


def test_without_a_reference_nothing_is_compared(model, answers):
    answers(RIGHT, WRONG)
    group = sample_group(*model, request("Which?", TOOLS), 2)
    assert [answer.advantage for answer in group.answers] == [None, None]
    assert [len(answer.rollout.parsed.calls) for answer in group.answers] == [1, 1]
    assert group.prompt_tokens == len(encode_prompt(model[1], request("Which?", TOOLS), model[2]))
    assert "Which?" in group.prompt and '"name":"f"' in group.prompt


def test_calls_that_contradict_the_tools_are_told(model, answers):
    answers("<think>So.</think>\n\n[f(a='x')]")
    (answer,) = sample_group(*model, request("Which?", TOOLS), 1).answers
    assert "'a' of 'f'" in answer.misfit


def test_the_form_of_the_run_is_read(model, answers):
    answers(RIGHT, '[{"name": "f", "arguments": {"a": 1}}]')
    form = ChatForm(answer_form="json", think=False)
    group = sample_group(*model[:2], form, request("Which?", TOOLS, "[f(a=1)]"), 2)
    assert [answer.rollout.result.score for answer in group.answers] == [0, 1]
    answers("no thought")
    assert sample_group(*model, request("Which?", TOOLS), 1).cot_entropy == 0


def test_a_seed_gives_what_ask_gives(model):
    group = sample_group(*model, request("Which?", TOOLS), 2, 1.0, 6, seed=3)
    asked = ask(*model, "Which?", TOOLS, 2, 1.0, 6, 3)
    written = ["".join(token.text for token in answer.tokens) for answer in group.answers]
    assert written == [answer.completion for answer in asked]
    assert {answer.rollout.finish_reason for answer in group.answers} == {"length"}


def test_segments_are_those_of_the_targets_and_characters_stay_whole(tiny_tokenizer):
    def shown(text):
        ids = tiny_tokenizer(text)["input_ids"]
        tokens = shown_tokens(tiny_tokenizer, ids, torch.zeros(len(ids)), [False] * len(ids))
        assert "".join(token.text for token in tokens) == text and "\ufffd" not in text
        return ["".join(token.text for token in tokens if token.segment == segment) for segment in (1, 2)]

    assert shown("<think>é 雨 😀</think>[]") == ["<think>é 雨 😀</think>", "[]"]
    assert shown("<think>never closed") == ["<think>never closed", ""]
    assert shown("[f()]") == ["", "[f()]"]
    assert shown_tokens(tiny_tokenizer, [], torch.zeros(0), []) == []
    half = tiny_tokenizer("é")["input_ids"][:1]  # an answer that was cut inside a character
    assert [token.text for token in shown_tokens(tiny_tokenizer, half, torch.zeros(1), [False])] == ["\ufffd"]

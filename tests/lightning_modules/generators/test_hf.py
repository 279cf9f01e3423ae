"""Generation with transformers: against plain one-prompt `generate`, under different batchings, and how it ends."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_modules.generators import Completion, HFGenerator
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy

PROMPTS = [[5, 6, 7], [9], [30, 31, 32, 33, 34, 35, 36], [12, 13], [50, 60, 70, 80, 90]]


@pytest.fixture(scope="module")
def policy(tiny_model_dir):
    return build_policy(str(tiny_model_dir))


def ids(completions):
    return [[completion.token_ids for completion in samples] for samples in completions]


def plain_greedy(folder, prompt, stop, max_new_tokens):
    """The oracle: transformers on one prompt, no padding."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=stop,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("token_budget", [1, 40, 16384])
def test_greedy_equals_plain_generate_of_each_prompt(policy, tiny_model_dir, token_budget):
    got = HFGenerator(max_new_tokens=10, token_budget=token_budget)(policy, PROMPTS)
    assert ids(got) == [[plain_greedy(tiny_model_dir, prompt, 2, 10)] for prompt in PROMPTS]


def test_stop_ids_end_a_completion_and_belong_to_it(policy, tiny_model_dir):
    free = [samples[0] for samples in HFGenerator(max_new_tokens=12)(policy, PROMPTS, stop_ids=[])]
    assert all(completion.finish_reason == "length" and len(completion.token_ids) == 12 for completion in free)
    stop = free[0].token_ids[4]  # ends the first completion where it first occurs, the others where they reach it
    stopped = [samples[0] for samples in HFGenerator(max_new_tokens=12)(policy, PROMPTS, stop_ids=[stop, 319])]
    for before, after in zip(free, stopped, strict=True):
        end = min([before.token_ids.index(token) + 1 for token in (stop, 319) if token in before.token_ids], default=12)
        reason = "stop" if before.token_ids[end - 1] in (stop, 319) else "length"
        assert after == Completion(before.token_ids[:end], reason, None)
    assert {completion.finish_reason for completion in stopped} == {"stop", "length"}


def test_the_text_of_a_completion_is_without_the_token_that_ended_it(tiny_tokenizer):
    ids = tiny_tokenizer("[f()]<|im_end|>")["input_ids"]
    assert Completion(ids, "stop").text(tiny_tokenizer) == "[f()]"
    assert Completion(ids[:-1], "length").text(tiny_tokenizer) == "[f()]"


def test_stop_ids_default_to_those_of_the_generation_config(policy):
    free = HFGenerator(max_new_tokens=12)(policy, PROMPTS, stop_ids=[])[0][0].token_ids
    config = policy.causal_lm.generation_config
    previous, config.eos_token_id = config.eos_token_id, [free[3], free[4]]
    stopped = HFGenerator(max_new_tokens=12)(policy, PROMPTS)[0][0]
    config.eos_token_id = None
    with pytest.raises(ValueError, match="no eos_token_id: give stop_ids"):
        HFGenerator()(policy, PROMPTS)
    config.eos_token_id = previous
    assert stopped.token_ids == free[: min(free.index(free[3]), free.index(free[4])) + 1]


def test_generation_ends_when_every_row_has(policy):
    generator = HFGenerator(max_new_tokens=200)
    first = [samples[0].token_ids[0] for samples in generator(policy, PROMPTS, stop_ids=range(320))]
    calls = []
    handle = policy.causal_lm.model.register_forward_hook(lambda *_: calls.append(1))
    generator(policy, PROMPTS, stop_ids=first)
    handle.remove()
    assert len(calls) <= 2


def test_samples_do_not_depend_on_batching_order_or_global_random_state(policy):
    names = ["a", "b", "c", "d", "e"]
    generate = {
        budget: HFGenerator(max_new_tokens=8, temperature=1.0, token_budget=budget, seed=4) for budget in (1, 50, 16384)
    }
    want = ids(generate[16384](policy, PROMPTS, names=names, n=3))
    torch.manual_seed(123)
    assert ids(generate[1](policy, PROMPTS, names=names, n=3)) == want
    assert ids(generate[50](policy, PROMPTS[::-1], names=names[::-1], n=3)) == want[::-1]
    assert ids(generate[50](policy, PROMPTS[2:3], names=["c"], n=2)) == [want[2][:2]]
    assert len({tuple(sample) for samples in want for sample in samples}) == 15


def test_seed_and_prompt_id_change_the_samples(policy):
    def sample(seed, name):
        return ids(HFGenerator(max_new_tokens=8, temperature=1.0, seed=seed)(policy, PROMPTS[:1], names=[name]))

    assert sample(0, "a") == sample(0, "a")
    assert sample(0, "a") != sample(1, "a") and sample(0, "a") != sample(0, "b")


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.7)])
def test_first_tokens_are_distributed_as_the_models_softmax(policy, temperature, top_p):
    n = 4000
    generator = HFGenerator(max_new_tokens=1, temperature=temperature, top_p=top_p)
    samples = generator(policy, PROMPTS[:1], n=n, stop_ids=[])[0]
    observed = torch.bincount(torch.tensor([sample.token_ids[0] for sample in samples]), minlength=320).double()
    with torch.no_grad():
        p = (policy.causal_lm(torch.tensor(PROMPTS[:1])).logits[0, -1].double() / temperature).softmax(0)
    ordered, order = p.sort(descending=True)
    p[order[ordered.cumsum(0) - ordered >= top_p]] = 0.0
    assert observed[p == 0].sum() == 0
    expected = p / p.sum() * n
    often = expected >= 5  # rarer tokens are counted together
    observed = torch.cat([observed[often], observed[~often].sum()[None]])
    expected = torch.cat([expected[often], expected[~often].sum()[None].clamp(min=1e-9)])
    freedom = len(expected) - 1
    assert ((observed - expected) ** 2 / expected).sum() < freedom + 4 * (2 * freedom) ** 0.5


def test_settings_of_the_models_generation_config_do_not_apply_and_are_put_back(policy):
    want = ids(HFGenerator(max_new_tokens=10)(policy, PROMPTS))
    config = policy.causal_lm.generation_config
    config.repetition_penalty, config.top_k = 50.0, 1
    assert ids(HFGenerator(max_new_tokens=10)(policy, PROMPTS)) == want
    assert policy.causal_lm.generation_config is config
    config.repetition_penalty = config.top_k = None


def test_generates_in_eval_mode_without_gradients_and_restores_each_mode(tiny_model_dir):
    policy = build_policy(str(tiny_model_dir), gradient_checkpointing=True, lora=LoRA(r=2, dropout=0.5))
    frozen = policy.causal_lm.get_decoder().layers[0].eval()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                parameter.fill_(0.1)  # dropout of the adapters' inputs would now change the completions
    modes = [module.training for module in policy.modules()]
    seen = []
    policy.causal_lm.model.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((module.training, kwargs["past_key_values"] is not None)),
        with_kwargs=True,
    )
    generator = HFGenerator(max_new_tokens=6)
    first = ids(generator(policy, PROMPTS, stop_ids=[]))
    assert {training for training, _ in seen} == {False}
    seen.clear()  # among them were those that find out how the model generates
    assert first == ids(generator(policy, PROMPTS, stop_ids=[]))
    assert set(seen) == {(False, True)}  # eval mode, with cache
    assert [module.training for module in policy.modules()] == modes and not frozen.training and policy.training
    assert torch.is_grad_enabled()


def test_nothing_to_generate_and_bad_arguments(policy):
    assert HFGenerator()(policy, []) == []
    with pytest.raises(ValueError, match="Prompts must not be empty and need one name each: 1 prompts, 2 names"):
        HFGenerator()(policy, [[1]], names=["a", "b"])
    with pytest.raises(ValueError, match="Prompts must not be empty"):
        HFGenerator()(policy, [[1], []])
    with pytest.raises(ValueError, match=r"top_p in \(0, 1\], got 0.0 and 0"):
        HFGenerator(top_p=0)
    for temperature in (-1.0, float("inf")):
        with pytest.raises(ValueError, match="temperature must be at least 0"):
            HFGenerator(temperature=temperature)
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        HFGenerator(max_new_tokens=0)


def test_settings_of_one_call_go_before_those_of_the_generator(policy):
    sampled = HFGenerator(max_new_tokens=6, temperature=0.8, top_p=0.9)(policy, PROMPTS, n=2)
    assert HFGenerator(max_new_tokens=6)(policy, PROMPTS, n=2, temperature=0.8, top_p=0.9) == sampled
    greedy = HFGenerator(max_new_tokens=6, temperature=0.8)(policy, PROMPTS, temperature=0.0)
    assert greedy == HFGenerator(max_new_tokens=6)(policy, PROMPTS) and sampled[0][:1] != greedy[0]
    with pytest.raises(ValueError, match="top_p"):
        HFGenerator()(policy, PROMPTS, top_p=0.0)

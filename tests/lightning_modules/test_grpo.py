"""GRPOModule against a float64 oracle that sees one rollout at a time, on recorded rollouts; what it refuses."""

import math
import warnings
from collections import Counter

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from training_runs import Steps, assert_same
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from datamodules import Example, XLAMPromptDataModule
from datamodules.loading import PromptBatch
from lightning_modules import GRPOModule, grpo
from lightning_modules.generators import Completion, HFGenerator
from lightning_modules.objectives import EntropyBonus, ImportanceSampling, PolicyLoss, advantages
from lightning_modules.objectives.advantages import BonusParts
from lightning_modules.policy.lora import LoRA
from lightning_modules.rollout import batching
from lightning_modules.rollout.batching import cot_mask
from lightning_modules.rollout.dynamic import DynamicSampling
from lightning_modules.rollout.groups import Overlong
from lightning_modules.rollout.sampling import Sampling
from lightning_modules.rollout.scoring import RewardTerm
from rewards import FunctionCallReward, function_call, parser

TEMPERATURE = 0.7
NO_BONUS = EntropyBonus(scale=0.0)  # plain GRPO
PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
TEXTS = [
    ["<think>The weather.</think>\n\n[]", "<think>No.</think>[]", "no thought"],
    ["<think>Days and city, so get_weather.</think>\n\n[f(a=1)]", "<think>a", "[]"],
    ["[f()]", "[g()]", "<think>alike</think>[]"],
]
REWARDS = {text: r for group, rs in zip(TEXTS, [[1.0, 0.0, 0.5], [0.0, 1.0, 1.0], [1.0] * 3], strict=True)
           for text, r in zip(group, rs, strict=True)}  # fmt: skip


class Recorded:
    """A generator that returns what it was given, with log-probabilities of its own if wanted."""

    max_new_tokens = 64

    def __init__(self, tokenizer, reports_logprobs=False, cut=()):
        self.tokenizer, self.reports_logprobs, self.cut, self.names = tokenizer, reports_logprobs, cut, []

    def completion(self, text):
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += [] if text in self.cut else [self.tokenizer.eos_token_id]
        logprobs = [-3 - 0.1 * i for i in range(len(ids))] if self.reports_logprobs else None
        return Completion(ids, "length" if text in self.cut else "stop", logprobs)

    def __call__(self, policy, prompts, names, n, stop_ids, temperature, top_p):
        assert (n, temperature, top_p) == (3, TEMPERATURE, 1.0)
        self.names.append(list(names))
        return [[self.completion(text) for text in TEXTS[PROMPTS.index(prompt)]] for prompt in prompts]

    def sync(self, policy):
        pass


def batch():
    rows = [Example(id=f"row{i}", query="q", tools="[]", answers="[]") for i in range(len(PROMPTS))]
    return PromptBatch(rows, PROMPTS)


def look_up(completion, tools, answers):
    return REWARDS[completion]


def make(folder, tokenizer, reports_logprobs=False, cut=(), **options):
    options = {"micro_batch_tokens": 4096, "learning_rate": 0.01} | options
    return GRPOModule(
        init_from=str(folder),
        generator=Recorded(tokenizer, reports_logprobs, cut),
        sampling=Sampling(group_size=3, temperature=TEMPERATURE),
        loss=PolicyLoss(**{"kl_coef": 0.5} | options.pop("loss", {})),
        rewards=options.pop("rewards", {"look_up": RewardTerm(look_up)}),
        reward_timeout=None,
        **options,
    )


def fit(module, steps=1, of=None):
    """Gradients of each step before clipping, the number of micro-batches of each, and what was logged of each."""
    gradients, rounds, metrics = [], [], []
    clip, accumulate, log = module.clip_gradients, module.accumulate, module.log_metrics

    def recording_clip():
        gradients.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})
        return clip()

    def recording_accumulate(micros, count, loss):
        rounds.append(count)
        return accumulate(micros, count, loss)

    def recording_log(values, shown=None):
        metrics.append(dict(values))
        log(values, shown)

    module.clip_gradients, module.accumulate, module.log_metrics = recording_clip, recording_accumulate, recording_log
    trainer = Trainer(
        accelerator="cpu", precision="64-true", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, Steps(*[of or batch()] * steps))
    return gradients, rounds, metrics


def oracle(
    folder, tokenizer, aggregation, entropy_scale=0.4, reports_logprobs=False, masked=(), level="rollout_cot", failed=()
):
    """Gradient in float64 of one update, with the reference's weights all 1 % larger than the policy's."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    enlarge(reference)
    terms = []
    for prompt, texts in zip(PROMPTS, TEXTS, strict=True):
        texts = [text for text in texts if text not in failed]
        r = torch.tensor([REWARDS[text] for text in texts], dtype=torch.float64)
        advantages = (r - r.mean()) / (r.std() + 1e-6) if len(r) > 1 else torch.zeros(len(r))
        for text, advantage in zip(texts, advantages, strict=True):
            completion = Recorded(tokenizer, reports_logprobs, masked).completion(text)
            ids = torch.tensor([prompt + completion.token_ids])
            n = len(completion.token_ids)
            new, ref = ((m(ids, use_cache=False).logits[0, -n - 1 : -1] / TEMPERATURE).log_softmax(-1)
                        for m in (model, reference))  # fmt: skip
            entropy = -(new.exp() * new).sum(-1).detach()
            cot = torch.tensor(cot_mask(tokenizer, completion.token_ids))
            mean = entropy[cot].mean() if cot.any() else torch.tensor(0.0, dtype=torch.float64)
            e = mean.expand(n) if level == "rollout_cot" else entropy if level == "token" else entropy * cot
            shaped = advantage + torch.minimum(entropy_scale * e, advantage.abs() / 2)
            places = torch.arange(n), ids[0, -n:]
            new, ref = new[places], ref[places].detach()
            ratio = (new - new.detach()).exp()  # 1, with the gradient of an on-policy update; nothing is clipped
            weight = 1.0
            if reports_logprobs:
                weight = (new.detach() - torch.tensor(completion.logprobs, dtype=torch.float64)).exp().clamp(max=2.0)
            kl = (ref - new).exp() - (ref - new) - 1
            if text not in masked:
                terms.append(-shaped * ratio * weight + 0.5 * kl)
    if aggregation == "token_mean":
        loss = torch.cat(terms).mean()
    elif aggregation == "seq_mean":
        loss = torch.stack([term.mean() for term in terms]).mean()
    else:
        loss = torch.cat(terms).sum() / (len(terms) * Recorded.max_new_tokens)
    loss.backward()
    return {f"policy.model.{name}": p.grad for name, p in model.named_parameters()}


def enlarge(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    return model


@pytest.fixture(autouse=True)
def norms_of_float64(monkeypatch):
    """Qwen2's are float32 in a model of float64, too, and make 1e-8 of the last bit of a sum in another order."""

    def forward(norm, x):
        return torch.nn.functional.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)

    monkeypatch.setattr(Qwen2RMSNorm, "forward", forward)


@pytest.fixture
def moved_reference(monkeypatch):
    """A reference that is not the policy, so that the KL has a gradient from the first step on."""
    original = grpo.frozen_copy
    monkeypatch.setattr(grpo, "frozen_copy", lambda *given, **how: enlarge(original(*given, **how)))


def assert_close(got, expected, rtol=1e-9):
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=rtol, atol=1e-12, msg=name)


SPLITS = {4096: 1, 90: 2, 40: 3}  # bound on the tokens of a micro-batch -> micro-batches


@pytest.mark.parametrize("budget", SPLITS)
@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean", "dr_grpo"])
def test_gradient_is_that_of_single_rollouts_however_the_step_is_split(
    tiny_model_dir, tiny_tokenizer, moved_reference, aggregation, budget
):
    module = make(tiny_model_dir, tiny_tokenizer, loss={"aggregation": aggregation}, micro_batch_tokens=budget)
    (gradients,), rounds, (metrics,) = fit(module)
    assert rounds == [SPLITS[budget]]
    assert_close(gradients, oracle(tiny_model_dir, tiny_tokenizer, aggregation))
    assert metrics["policy/ratio_max"] == pytest.approx(1) and metrics["entropy_bonus/mean"] > 0


@pytest.mark.parametrize(
    ("options", "of_oracle"),
    [
        ({"entropy_bonus": NO_BONUS}, {"entropy_scale": 0.0}),  # without the pass for old log-probabilities
        ({"reports_logprobs": True}, {"reports_logprobs": True}),
        ({"reports_logprobs": True, "entropy_bonus": NO_BONUS}, {"reports_logprobs": True, "entropy_scale": 0.0}),
        ({"entropy_bonus": EntropyBonus(level="token")}, {"level": "token"}),
        ({"entropy_bonus": EntropyBonus(level="token_cot")}, {"level": "token_cot"}),
        ({"overlong": Overlong("mask"), "cut": ("<think>a", "no thought")}, {"masked": ("<think>a", "no thought")}),
    ],
)
def test_gradient_of_the_options(tiny_model_dir, tiny_tokenizer, moved_reference, options, of_oracle):
    (gradients,), _, _ = fit(make(tiny_model_dir, tiny_tokenizer, **options))
    assert_close(gradients, oracle(tiny_model_dir, tiny_tokenizer, "token_mean", **of_oracle))


FAILED = ("<think>No.</think>[]", "[f()]", "<think>alike</think>[]")  # of the first group one, of the third two
CRASHES = {"raise": KeyError("judge"), "nan": math.nan, "none": None}


@pytest.mark.parametrize("way", CRASHES)
@pytest.mark.parametrize("level", ["rollout_cot", "token"])
def test_a_completion_that_nobody_could_judge_is_as_if_it_had_not_been_sampled(
    tiny_model_dir, tiny_tokenizer, moved_reference, way, level
):
    def judge(completion, tools, answers):
        if completion not in FAILED:
            return REWARDS[completion]
        if way == "raise":
            raise CRASHES[way]
        return CRASHES[way]

    rewards = {"judge": RewardTerm(judge), "length": RewardTerm(lambda completion, *_: len(completion), weight=0.0)}
    options = {"rewards": rewards, "max_reward_errors": 0.5, "entropy_bonus": EntropyBonus(level=level)}
    module = make(tiny_model_dir, tiny_tokenizer, **options)
    (gradients,), _, (metrics,) = fit(module)
    assert_close(gradients, oracle(tiny_model_dir, tiny_tokenizer, "token_mean", level=level, failed=FAILED))
    assert metrics["reward/errors"] == 3
    assert metrics["reward/mean"] == metrics["reward/judge/mean"] == pytest.approx((1 + 0.5 + 0 + 1 + 1 + 1) / 6)
    assert metrics["reward/length/mean"] == pytest.approx(sum(map(len, REWARDS)) / 9)
    assert metrics["reward/frac_zero_std"] == pytest.approx(1 / 3)
    assert [r.rewarded for r in module.rollouts] == [text not in FAILED for group in TEXTS for text in group]
    assert all(math.isfinite(value) for value in metrics.values())


def test_where_right_is_1_and_wrong_is_minus_1_a_failure_is_worth_nothing(tiny_model_dir, tiny_tokenizer):
    def judge(completion, tools, answers):
        return {"<think>No.</think>[]": -1.0, "no thought": None}.get(completion, 1.0)

    module = make(tiny_model_dir, tiny_tokenizer, rewards={"judge": RewardTerm(judge)}, entropy_bonus=NO_BONUS)
    fit(module)
    # 1, -1 and a failure: mean 0, deviation sqrt(2). A failure at 0 would have been as good as the mean.
    assert module.rollout_advantages[:3].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5), 0], abs=1e-5)


def test_too_many_failures_stop_the_run_with_the_function_and_an_input(tiny_model_dir, tiny_tokenizer):
    def judge(completion, tools, answers):
        if completion in FAILED:
            raise KeyError("city")
        return 1.0

    rewards = {"judge": RewardTerm(judge)}
    with pytest.raises(RuntimeError) as error:
        fit(make(tiny_model_dir, tiny_tokenizer, rewards=rewards, max_reward_errors=0.3))  # 3 of 9
    words = "Reward function judge failed for 3 of 9 completions, more than model.max_reward_errors 0.3 allows; first "
    words += "with KeyError: 'city'; its input was completion '<think>No.</think>[]', tools '[]', answers '[]'."
    assert str(error.value) == words


@pytest.mark.parametrize("function", [None, FunctionCallReward()])
def test_each_completion_is_judged_and_parsed_once(tiny_model_dir, tiny_tokenizer, monkeypatch, function):
    counts = Counter()

    def counted(place, name):
        original = getattr(place, name)

        def counting(*args):
            counts[name] += 1
            return original(*args)

        monkeypatch.setattr(place, name, counting)

    for module in (function_call, parser, batching):
        for name in ("split_completion", "parse_calls"):
            if hasattr(module, name):
                counted(module, name)
    counted(FunctionCallReward, "__call__")
    rewards = None if function is None else {"strict": RewardTerm(function)}
    _, _, (metrics,) = fit(make(tiny_model_dir, tiny_tokenizer, rewards=rewards))
    assert counts == {"__call__": 9, "split_completion": 9, "parse_calls": 9}
    assert metrics["reward/mean"] == metrics["rollout/exact_match"] == pytest.approx(3 / 9)


@pytest.mark.parametrize("options", [{}, {"ratio_level": "sequence", "aggregation": "seq_mean"}, {"dual_clip": 1.5}])
def test_off_policy_steps_do_not_depend_on_the_split(tiny_model_dir, tiny_tokenizer, options):
    runs = []
    for budget in SPLITS:
        module = make(tiny_model_dir, tiny_tokenizer, inner_epochs=3, micro_batch_tokens=budget, loss=options)
        gradients, rounds, metrics = fit(module, steps=3)
        assert rounds == [SPLITS[budget]] * 3
        runs.append((gradients, metrics))
    for gradients, metrics in runs[1:]:
        for mine, first in zip(gradients, runs[0][0], strict=True):
            assert_close(mine, first, rtol=1e-7)  # Adam divides by small numbers between the steps
        for mine, first in zip(metrics, runs[0][1], strict=True):
            names = [name for name in first if not name.startswith(("time/", "perf/"))]
            assert {n: mine[n] for n in names} == pytest.approx({n: first[n] for n in names}, rel=1e-6, abs=1e-9)
    last = runs[0][1][-1]
    assert last["policy/ratio_max"] > 1.2 and last["policy/clip_low"] + last["policy/clip_high"] > 0
    assert last["policy/kl"] > runs[0][1][0]["policy/kl"] == 0


@pytest.mark.parametrize("inner_epochs", [1, 2])  # without the pass for old log-probabilities, and with it
def test_entropy_scale_zero_is_plain_grpo_bit_for_bit(tiny_model_dir, tiny_tokenizer, monkeypatch, inner_epochs):
    options = {"inner_epochs": inner_epochs, "micro_batch_tokens": 90}
    egpo = make(tiny_model_dir, tiny_tokenizer, entropy_bonus=NO_BONUS, **options)
    fit(egpo, steps=2)
    nothing = lambda advantages, *_: BonusParts(advantages, *[torch.zeros_like(advantages)] * 4)  # noqa: E731
    monkeypatch.setattr(advantages, "entropy_bonus", nothing)
    grpo = make(tiny_model_dir, tiny_tokenizer, entropy_bonus=EntropyBonus(scale=0.4), **options)
    fit(grpo, steps=2)
    weights = grpo.policy.state_dict()
    for name, weight in egpo.policy.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def test_plain_grpo_needs_no_pass_for_old_logprobs(tiny_model_dir, tiny_tokenizer):
    (skipped,), _, (metrics,) = fit(make(tiny_model_dir, tiny_tokenizer, entropy_bonus=NO_BONUS))
    module = make(tiny_model_dir, tiny_tokenizer, entropy_bonus=NO_BONUS)
    module.repeats = 2
    gradients, _, (with_pass, _) = fit(module, steps=2)
    for name, gradient in skipped.items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-12, atol=1e-15)
    assert "time/old_logprob" not in metrics and "time/old_logprob" in with_pass
    assert with_pass["entropy_bonus/mean"] == 0 and with_pass["entropy_bonus/cot_entropy"] > 0


def test_the_ratio_of_the_policy_that_sampled_is_1_whatever_its_dropout(tiny_tokenizer, tmp_path):
    config = GPT2Config(
        vocab_size=len(tiny_tokenizer), n_embd=32, n_head=4, n_layer=2, n_positions=128, resid_pdrop=0.1,
        eos_token_id=tiny_tokenizer.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    for options in ({}, {"lora": LoRA(r=2, dropout=0.5)}, {"gradient_checkpointing": True}):
        _, _, metrics = fit(make(tmp_path, tiny_tokenizer, inner_epochs=2, **options), steps=4)
        for on_policy in metrics[::2]:  # in the second batch adapters are no longer 0
            assert on_policy["policy/ratio_max"] == on_policy["policy/ratio_mean"] == 1
        assert metrics[1]["policy/ratio_max"] > 1.001


def test_no_reference_without_kl_and_none_of_its_own_for_adapters(tiny_model_dir, tiny_tokenizer):
    module = make(tiny_model_dir, tiny_tokenizer, loss={"kl_coef": 0.0})
    _, _, (metrics,) = fit(module)
    assert module.reference is None and "policy/kl" not in metrics
    module = make(tiny_model_dir, tiny_tokenizer, lora=LoRA(r=2), inner_epochs=2)
    _, _, (first, second) = fit(module, steps=2)
    assert module.reference is None and first["policy/kl"] == pytest.approx(0, abs=1e-9) and second["policy/kl"] > 1e-6


def test_metrics_of_recorded_rollouts(tiny_model_dir, tiny_tokenizer):
    _, _, (metrics,) = fit(make(tiny_model_dir, tiny_tokenizer, reports_logprobs=True, cut=("no thought",)))
    assert metrics["reward/mean"] == pytest.approx(6.5 / 9) == metrics["reward/look_up/mean"]
    assert metrics["reward/frac_zero_std"] == pytest.approx(1 / 3)
    assert metrics["completion/truncated_frac"] == metrics["completion/no_eos_frac"] == pytest.approx(1 / 9)
    assert metrics["rollout/format_rate"] == pytest.approx(4 / 9)  # two in the first group, one in each other
    assert metrics["rollout/exact_match"] == pytest.approx(3 / 9)  # [] is right here
    assert 0 < metrics["sampling/ess"] <= 1
    assert metrics["sampling/is_ratio_raw_max"] > 2 >= metrics["sampling/is_ratio_raw_min"] > 0
    assert all(value == value and abs(value) < 1e6 for value in metrics.values())


BY_HAND = {"clip_low": 0.002, "clip_high": 0.003, "dual_clip": 1.01, "kl_coef": 0.5}


def logged_by_hand(folder, tokenizer, cut):
    """What two updates on the batch log, worked out again rollout by rollout and token by token."""
    model, reference = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64) for _ in range(2))

    def scores(of, prompt, ids):
        logits = of(torch.tensor([prompt + ids]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        logprobs = (logits / TEMPERATURE).log_softmax(-1)
        return logprobs[range(len(ids)), ids], -(logprobs.exp() * logprobs).sum(-1)

    rollouts = []
    for prompt, texts in zip(PROMPTS, TEXTS, strict=True):
        rewards = [REWARDS[text] for text in texts]
        mean = sum(rewards) / 3
        deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 2)
        for text, reward in zip(texts, rewards, strict=True):
            completion = Recorded(tokenizer, True, cut).completion(text)
            ids, inside = completion.token_ids, cot_mask(tokenizer, completion.token_ids)
            with torch.no_grad():
                (old, entropy), (ref, _) = (scores(of, prompt, ids) for of in (model, reference))
            thought = [e for e, within in zip(entropy.tolist(), inside, strict=True) if within]
            level = sum(thought) / len(thought) if thought else None
            plain = (reward - mean) / (deviation + 1e-6)
            bonus = min(0.4 * (level or 0.0), abs(plain) / 2)
            raw = [math.exp(o - s) for o, s in zip(old.tolist(), completion.logprobs, strict=True)]
            gaps = [abs(o - s) for o, s in zip(old.tolist(), completion.logprobs, strict=True)]
            rollouts.append((prompt, ids, old, ref, level, plain, bonus, raw, gaps))

    def column(place):
        return [rollout[place] for rollout in rollouts]

    lengths, levels, plain, bonus = [len(ids) for ids in column(1)], column(4), column(5), column(6)
    shaped = [a + b for a, b in zip(plain, bonus, strict=True)]
    raw, gaps = ([value for values in column(place) for value in values] for place in (7, 8))
    thinking = [level for level in levels if level is not None]
    tokens, held = sum(lengths), [0.4 * (e or 0) > abs(a) / 2 for e, a in zip(levels, plain, strict=True) if a]
    steps = [{
        "reward/mean": 6.5 / 9, "reward/look_up/mean": 6.5 / 9, "reward/mean_first": 6.5 / 9, "reward/errors": 0,
        "reward/std": math.sqrt((6 + 0.25) / 9 - (6.5 / 9) ** 2), "reward/frac_zero_std": 1 / 3,
        "advantage/mean": sum(shaped) / 9, "advantage/min": min(shaped), "advantage/max": max(shaped),
        "advantage/std": math.sqrt(sum((a - sum(shaped) / 9) ** 2 for a in shaped) / 9),
        "entropy_bonus/cot_entropy": sum(thinking) / len(thinking), "entropy_bonus/mean": sum(bonus) / 9,
        "entropy_bonus/raw_mean": 0.4 * sum(thinking) / 9, "entropy_bonus/clipped_frac": sum(held) / len(held),
        "entropy_bonus/share_of_advantage": sum(bonus) / sum(map(abs, plain)),
        "completion/mean_length": tokens / 9, "completion/min_length": min(lengths),
        "completion/max_length": max(lengths), "completion/truncated_frac": 1 / 9, "completion/no_eos_frac": 1 / 9,
        "completion/mean_terminated_length": (tokens - lengths[2]) / 8, "sampling/resampled_frac": 0,
        "sampling/logp_diff_mean": sum(gaps) / tokens, "sampling/logp_diff_max": max(gaps),
        "sampling/is_ratio_raw_mean": sum(raw) / tokens, "sampling/is_ratio_raw_min": min(raw),
        "sampling/is_ratio_raw_max": max(raw), "sampling/masked_frac": sum(r > 2 for r in raw) / tokens,
        "sampling/ess": sum(raw) ** 2 / (tokens * sum(r * r for r in raw)),
    }, {}]  # fmt: skip
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) is many] for many in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, eps=0.001)
    for metrics, rate in zip(steps, (0.001, 0.002), strict=True):  # two steps of warm-up
        losses, kls, entropies, ratios, clipped = [], [], [], [], Counter()
        for (prompt, ids, old, ref, *_, raw_weights, _), advantage in zip(rollouts, shaped, strict=True):
            new, entropy = scores(model, prompt, ids)
            entropies += entropy.tolist()
            for n, o, r, weight in zip(new, old.tolist(), ref.tolist(), raw_weights, strict=True):
                ratio = (n - o).exp()
                bounded = min(max(ratio, 1 - 0.002), 1 + 0.003)
                gain = min(ratio * advantage, bounded * advantage)
                ratios.append(float(ratio.detach()))
                if advantage < 0:
                    clipped["low"] += ratios[-1] < 0.998
                    clipped["dual"] += ratios[-1] > 1.01
                    gain = gain if gain > 1.01 * advantage else 0 * n + 1.01 * advantage
                clipped["high"] += advantage > 0 and ratios[-1] > 1.003
                losses.append(-gain * min(weight, 2.0))
                kls.append(((r - n).exp() - (r - n) - 1).clamp(max=10))  # beyond it no gradient flows
        (sum(losses) / tokens + 0.5 * sum(kls) / tokens).backward()
        means = {"loss": sum(losses), "kl": sum(kls), "entropy": sum(entropies), "ratio_mean": sum(ratios)}
        means |= {f"clip_{bound}": clipped[bound] for bound in ("low", "high", "dual")}
        metrics |= {f"policy/{name}": float(value) / tokens for name, value in means.items()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5).item()
        metrics |= {"policy/ratio_max": max(ratios), "train/grad_norm": norm, "train/lr": rate, "samples": 9}
        metrics |= {"tokens": tokens + 3 * sum(map(len, PROMPTS))}
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    return steps


def test_every_number_that_two_updates_log_by_hand(tiny_model_dir, tiny_tokenizer):
    module = make(
        tiny_model_dir, tiny_tokenizer, reports_logprobs=True, cut=("no thought",), loss=BY_HAND, inner_epochs=2,
        learning_rate=0.002, warmup_ratio=1.0, weight_decay=0.1, epsilon=0.001, max_grad_norm=0.5,
        micro_batch_tokens=90,
    )  # fmt: skip
    module.speed = lambda start, tokens, samples: {"tokens": tokens, "samples": samples}
    _, _, metrics = fit(module, steps=2)
    expected = logged_by_hand(tiny_model_dir, tiny_tokenizer, ("no thought",))
    for got, want in zip(metrics, expected, strict=True):
        got = {name: value for name, value in got.items() if not name.startswith(("time/", "perf/", "rollout/"))}
        assert got == pytest.approx(want, rel=1e-6, abs=1e-9)
    assert metrics[0]["train/grad_norm"] > 0.5  # it is clipped
    assert min(metrics[1][f"policy/clip_{bound}"] for bound in ("low", "high", "dual")) > 0


def test_equal_rewards_leave_only_the_kl(tiny_model_dir, tiny_tokenizer, moved_reference):
    rewards = {"one": RewardTerm(lambda *_: 1)}
    with pytest.warns(UserWarning, match="all rewards were equal"):
        (gradients,), _, (metrics,) = fit(make(tiny_model_dir, tiny_tokenizer, rewards=rewards))
    assert metrics["reward/frac_zero_std"] == 1 and metrics["policy/loss"] == 0 and metrics["policy/kl"] > 0
    with pytest.warns(UserWarning, match="all rewards were equal"):
        (half,), _, _ = fit(make(tiny_model_dir, tiny_tokenizer, rewards=rewards, loss={"kl_coef": 0.25}))
    assert_close({name: 2 * g for name, g in half.items()}, gradients)


def test_completions_that_are_all_cut_are_told_of_their_limit(tiny_model_dir, tiny_tokenizer):
    every = tuple(text for texts in TEXTS for text in texts)
    with pytest.warns(UserWarning, match=r"Every completion of a batch was cut at model\.generator\.max_new_tokens"):
        fit(make(tiny_model_dir, tiny_tokenizer, cut=every))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(make(tiny_model_dir, tiny_tokenizer, cut=every[1:]))
    assert not any("was cut" in str(warning.message) for warning in told)


class AllMove(PolicyLoss):
    """The same loss; the training does not know that."""


@pytest.mark.parametrize("micro_batch_tokens", [4096, 30])
def test_rollouts_without_advantage_get_no_backward_and_count_all_the_same(
    tiny_model_dir, tiny_tokenizer, micro_batch_tokens
):
    seen = []
    for loss in (PolicyLoss(kl_coef=0.0), AllMove(kl_coef=0.0)):
        module = make(tiny_model_dir, tiny_tokenizer, micro_batch_tokens=micro_batch_tokens)
        module.loss = loss
        learnt, accumulate = set(), module.accumulate

        def recording(micros, count, loss, learnt=learnt, accumulate=accumulate):
            learnt.update(i for micro in micros for i in micro["doc_ids"].flatten().tolist() if i >= 0)
            return accumulate(micros, count, loss)

        module.accumulate = recording
        seen.append((*fit(module)[::2], learnt))
    (one, metrics, some), (other, all_metrics, everything) = seen
    # The reward of the third one, 0.5, is the mean of its group, and the last three have one reward.
    assert some == {0, 1, 3, 4, 5} and everything == set(range(9))
    assert_close(one[0], other[0], rtol=1e-12)
    names = [name for name in metrics[0] if not name.startswith(("time/", "perf/"))]
    assert {"policy/entropy", "train/grad_norm", "policy/ratio_mean"} <= set(names)
    for name in names:
        assert metrics[0][name] == pytest.approx(all_metrics[0][name], rel=1e-9), name


def test_alike_groups_are_sampled_again_under_other_names(tiny_model_dir, tiny_tokenizer):
    module = make(tiny_model_dir, tiny_tokenizer, dynamic_sampling=DynamicSampling(max_resample=2), inner_epochs=2)
    _, _, metrics = fit(module, steps=4)
    first = [["0/row0", "0/row1", "0/row2"], ["0/row2/1"], ["0/row2/2"]]
    assert module.generator.names == first + [[name.replace("0/", "2/", 1) for name in names] for names in first]
    assert metrics[0]["sampling/resampled_frac"] == pytest.approx(2 / 3)
    assert metrics[0]["reward/frac_zero_std"] == pytest.approx(1 / 3) and "reward/mean" not in metrics[1]


def test_the_mean_of_the_first_attempts_is_logged_beside_that_of_the_last(tiny_model_dir, tiny_tokenizer):
    asked = Counter()

    def judge(completion, tools, answers):
        asked[completion] += 1
        return REWARDS[completion] if asked[completion] == 1 else float(completion == "[f()]")

    again = DynamicSampling(max_resample=2)
    module = make(tiny_model_dir, tiny_tokenizer, rewards={"judge": RewardTerm(judge)}, dynamic_sampling=again)
    _, _, (metrics,) = fit(module)
    assert module.generator.names == [["0/row0", "0/row1", "0/row2"], ["0/row2/1"]]
    assert metrics["reward/mean_first"] == pytest.approx(6.5 / 9)  # 1.5, 2 and 3 of the groups
    assert metrics["reward/mean"] == pytest.approx(4.5 / 9)  # 1.5, 2 and, of the second attempt, 1


def test_a_group_is_sampled_again_where_those_that_could_be_judged_are_alike(tiny_model_dir, tiny_tokenizer):
    def judge(completion, tools, answers):
        return None if completion == "no thought" else float(completion not in ("[]", "[g()]"))

    # 1, 1 and a failure; 1, 1, 0; 1, 0, 1.
    again = DynamicSampling(max_resample=1)
    module = make(tiny_model_dir, tiny_tokenizer, rewards={"judge": RewardTerm(judge)}, dynamic_sampling=again)
    fit(module)
    assert module.generator.names == [["0/row0", "0/row1", "0/row2"], ["0/row0/1"]]


def rows(names, numbers):
    examples = [Example(id=name, query="q", tools="[]", answers="[]") for name in names]
    return PromptBatch(examples, [PROMPTS[i] for i in numbers])


def test_other_prompts_take_the_place_of_groups_that_are_alike(tiny_model_dir, tiny_tokenizer):
    module = make(tiny_model_dir, tiny_tokenizer, dynamic_sampling=DynamicSampling(4), inner_epochs=2)
    given = batch()  # of which the last is alike
    given.further = lambda draw: {1: rows("abc", [2, 2, 2]), 2: rows("def", [2, 0, 1])}[draw]
    gradients, _, metrics = fit(module, steps=2, of=given)
    assert module.generator.names == [["0/row0", "0/row1", "0/row2"], ["0/a", "0/b", "0/c"], ["0/d", "0/e", "0/f"]]
    assert metrics[0]["sampling/tries"] == 2 and metrics[0]["sampling/filled_frac"] == 1
    assert metrics[0]["reward/frac_zero_std"] == 0 and "sampling/tries" not in metrics[1]
    want, _, _ = fit(make(tiny_model_dir, tiny_tokenizer, inner_epochs=2), steps=2, of=rows("xyz", [0, 1, 0]))
    for mine, theirs in zip(gradients, want, strict=True):
        assert_close(mine, theirs)


def test_a_batch_that_cannot_be_filled_is_the_one_without_dynamic_sampling(tiny_model_dir, tiny_tokenizer):
    given, draws = batch(), []
    given.further = lambda draw: draws.append(draw) or rows("abc", [2, 2, 2])
    module = make(tiny_model_dir, tiny_tokenizer, dynamic_sampling=DynamicSampling(3))
    (gradients,), _, (metrics,) = fit(module, of=given)
    assert draws == [1, 2, 3] and metrics["sampling/tries"] == 3
    assert metrics["sampling/filled_frac"] == pytest.approx(2 / 3) == 1 - metrics["reward/frac_zero_std"]
    (want,), _, _ = fit(make(tiny_model_dir, tiny_tokenizer))
    assert_close(gradients, want)


def test_an_engine_lets_go_of_its_weights_when_the_rollouts_are_there(tiny_model_dir, tiny_tokenizer, monkeypatch):
    told = []
    monkeypatch.setattr(Recorded, "prepare", lambda self, *given: told.append(given), raising=False)
    monkeypatch.setattr(Recorded, "sync", lambda self, policy: told.append("sync"))
    monkeypatch.setattr(Recorded, "rest", lambda self, stale=False: told.append(("rest", stale)), raising=False)
    fit(make(tiny_model_dir, tiny_tokenizer, inner_epochs=2), steps=2)
    assert told == [("64-true", None), "sync", ("rest", True)]


def test_overlong_penalty_is_part_of_the_advantage_and_not_of_the_reward(tiny_model_dir, tiny_tokenizer):
    options = {"overlong": Overlong("penalty", buffer=64)}  # the whole limit: -length / 64
    module = make(tiny_model_dir, tiny_tokenizer, **options)
    _, _, (metrics,) = fit(module)
    assert metrics["reward/mean"] == pytest.approx(6.5 / 9) and metrics["reward/frac_zero_std"] == 0
    assert metrics["reward/overlong_penalty"] == pytest.approx(-metrics["completion/mean_length"] / 64)


def test_a_step_without_tokens_moves_nothing(tiny_model_dir, tiny_tokenizer):
    every = tuple(text for group in TEXTS for text in group)
    module = make(tiny_model_dir, tiny_tokenizer, overlong=Overlong("mask"), cut=every, weight_decay=0.5)
    gradients, _, (metrics,) = fit(module)
    start = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float64).state_dict()
    for name, weight in module.policy.model.state_dict().items():
        assert torch.equal(weight, start[name])
    assert gradients == [] and "train/grad_norm" not in metrics and module.global_step == 1


def test_other_prompts_before_the_rollouts_have_served(tiny_model_dir, tiny_tokenizer, monkeypatch):
    module = make(tiny_model_dir, tiny_tokenizer, inner_epochs=2)
    other = PromptBatch([Example(id="x", query="q", tools="[]", answers="[]")], PROMPTS[:1])
    monkeypatch.setattr(Steps, "__iter__", lambda self: iter([batch(), other]))
    with pytest.raises(ValueError, match=r"serve 2 optimizer steps .* after 1 of them other prompts came"):
        fit(module, steps=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mini_batches": 0}, "model.mini_batches is 0; give at least 1"),
        ({"inner_epochs": 0}, "model.inner_epochs is 0; give at least 1"),
        ({"micro_batch_tokens": 0}, "model.micro_batch_tokens is 0; give at least 1"),
        ({"advantage_scale": "mean"}, "GRPOModule: advantage_scale is 'mean'; give std or none"),
        ({"sampling": {"group_size": 4}}, "GRPOModule: sampling is {'group_size': 4}; give an object of .*Sampling"),
        ({"rewards": [look_up]}, r"GRPOModule: rewards is \[<function look_up .*\]; give a dict, by name, of"),
        ({"max_reward_errors": 1.5}, "max_reward_errors"),
        ({"reward_workers": 0}, "reward_workers"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_loaded(options, words):
    with pytest.raises(ValueError, match=words):
        GRPOModule(init_from="/absent", **options)


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        (Sampling, {"group_size": 1}, "sampling.group_size is 1; give at least 2: a group of one has no advantage"),
        (Sampling, {"temperature": 0.0}, "model.sampling.temperature must be greater than 0"),
        (Sampling, {"temperature": math.inf}, "model.sampling.temperature must be greater than 0"),
        (Sampling, {"top_p": 0.0}, r"model.sampling.top_p lie in \(0, 1\], got 0.7 and 0.0"),
        (DynamicSampling, {"max_resample": -1}, "model.dynamic_sampling.max_resample is -1; give at least 0"),
        (DynamicSampling, {"max_draws": -1}, "model.dynamic_sampling.max_draws is -1; give at least 0"),
        (DynamicSampling, {"max_draws": 1, "max_resample": 1}, r"max_resample 1 samples .*max_draws 1 others"),
        (Overlong, {"buffer": 0}, "model.overlong.buffer is 0; give at least 1"),
        (Overlong, {"treatment": "cut"}, "Overlong: treatment is 'cut'; give none, mask or penalty"),
    ],
)
def test_impossible_settings_of_rollouts_are_refused_when_they_are_made(settings, options, words):
    with pytest.raises(ValueError, match=words):
        settings(**options)


@pytest.mark.parametrize("reports_logprobs", [False, True])
def test_a_cut_distribution_is_refused_with_any_generator(tiny_tokenizer, reports_logprobs):
    generator = Recorded(tiny_tokenizer, reports_logprobs)
    with pytest.raises(ValueError, match=r"model\.sampling\.top_p 0\.9 samples from a cut distribution"):
        GRPOModule(init_from="/absent", sampling=Sampling(top_p=0.9), generator=generator)
    uncorrected = ImportanceSampling(cap=None)
    GRPOModule(init_from="/absent", sampling=Sampling(top_p=0.9), generator=generator, importance_sampling=uncorrected)


def test_validation_before_training_on_one_module_changes_nothing(tiny_model_dir, rows_file, tmp_path):
    """With a KL that needs a reference, which a validation does not make."""

    def run(ckpt_path=None, validates=True):
        module = GRPOModule(
            init_from=str(tiny_model_dir), loss=PolicyLoss(kl_coef=0.5), sampling=Sampling(group_size=2),
            learning_rate=0.01, reward_timeout=None, generator=HFGenerator(max_new_tokens=4),
            rewards={"length": RewardTerm(lambda text, *_: len(text))},
        )  # fmt: skip
        trainer = Trainer(
            accelerator="cpu", max_steps=3, logger=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1),
        )  # fmt: skip
        options = {"cache_dir": str(tmp_path), "prompts_per_step": 4, "val_fraction": 0.1}
        data = XLAMPromptDataModule(str(tiny_model_dir), str(rows_file), **options)
        if validates:
            trainer.validate(module, data, ckpt_path=ckpt_path)
            assert module.reference is None
        trainer.fit(module, data, ckpt_path=ckpt_path)
        assert module.logged["policy/kl"] > 0
        return module.policy.state_dict()

    want = run(validates=False)
    assert_same(run(), want)
    assert_same(run(tmp_path / "step=2.ckpt"), want)

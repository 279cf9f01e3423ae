"""Steps inside a bfloat16 default dtype, as Lightning's *-true sets it, are those outside of it to the bit."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from training_runs import Steps, assert_same

from datamodules import Example
from datamodules.loading import PromptBatch
from datamodules.packing import Encoded, collate_packed
from lightning_modules import GRPOModule, SRMLModule
from lightning_modules.generators import Completion, HFGenerator
from lightning_modules.generators.vllm_probe import probe_ids
from lightning_modules.objectives import ImportanceSampling, PolicyLoss, overlong_penalty
from lightning_modules.policy.model import build_policy
from lightning_modules.rollout.groups import Overlong
from lightning_modules.rollout.sampling import Sampling
from lightning_modules.rollout.scoring import RewardTerm

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
TIMES = ("time/", "perf/tokens_per_s", "perf/samples_per_s")


class Engine:
    """A generator that reports log-probabilities, which bfloat16 would round, of random completions."""

    max_new_tokens, reports_logprobs = 64, True

    def __call__(self, policy, prompts, names, n, stop_ids, temperature, top_p):
        return [[self.completion(len(prompt) + 7 * i) for i in range(n)] for prompt in prompts]

    def completion(self, length):
        ids = torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(length)).tolist()
        return Completion(ids, "length", [-3.1 - i / 7 for i in range(length)])

    def sync(self, policy):
        pass


def reward(completion, tools, answers):
    return 1 / (1 + len(completion))


def rollouts(folder):
    module = GRPOModule(
        init_from=str(folder), generator=Engine(), sampling=Sampling(group_size=3), mini_batches=1, inner_epochs=3,
        importance_sampling=ImportanceSampling(cap=2.1), loss=PolicyLoss(kl_coef=0.3), learning_rate=0.01,
        overlong=Overlong("penalty"), rewards={"length": RewardTerm(reward, 0.7)}, reward_timeout=None,
    )  # fmt: skip
    rows = [Example(id=f"row{i}", query="q", tools="[]", answers="[]") for i in range(len(PROMPTS))]
    return module, [PromptBatch(rows, PROMPTS)] * 2


def documents(folder):
    ids = torch.randint(3, 300, (30,), generator=torch.Generator().manual_seed(0)).tolist()
    batch = [collate_packed([Encoded(ids, [0] * 5 + [1] * 15 + [2] * 10)], [[0]])]
    return SRMLModule(init_from=str(folder), cot_weight=0.7, learning_rate=0.01), [batch] * 2


def outcome(module, batches, default):
    """Everything that two optimizer steps inside a default dtype leave."""
    step, metrics = module.training_step, []

    def inside(batch, batch_idx):
        torch.set_default_dtype(default)
        try:
            step(batch, batch_idx)
        finally:
            torch.set_default_dtype(torch.float32)
        metrics.append({name: value for name, value in module.logged.items() if not name.startswith(TIMES)})

    module.training_step = inside
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, Steps(*batches))
    logged = {name: value for name, value in trainer.logged_metrics.items() if not name.startswith(TIMES)}
    buffer = module.buffer.state_dict() if isinstance(module, GRPOModule) else {}
    return {"metrics": metrics, "logged": logged, "weights": module.state_dict(), "buffer": buffer}


@pytest.mark.parametrize("kind", [rollouts, documents])
def test_a_step_does_not_depend_on_the_default_dtype(tiny_model_dir, kind):
    expected, got = (outcome(*kind(tiny_model_dir), default) for default in (torch.float32, torch.bfloat16))
    assert_same(expected, got)


def test_sampling_does_not_depend_on_the_default_dtype(tiny_model_dir, request):
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    policy, samples = build_policy(str(tiny_model_dir)), []
    for default in (torch.float32, torch.bfloat16):
        torch.set_default_dtype(default)
        samples.append(HFGenerator(max_new_tokens=12, temperature=1.0, top_p=0.9)(policy, PROMPTS, n=2, stop_ids=[0]))
    assert samples[0] == samples[1]


def test_overlong_penalty_and_ids_of_the_probe(request):
    torch.set_default_dtype(torch.bfloat16)
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    # 257 of 300 tokens, from 200 on: -57 / 100; bfloat16 would make it -0.5703.
    assert overlong_penalty(torch.tensor([257]), 300, 100).item() == pytest.approx(-0.57, abs=1e-7)
    config = SimpleNamespace(vocab_size=151_936, pad_token_id=None)
    ids = probe_ids(SimpleNamespace(causal_lm=SimpleNamespace(config=config)))
    assert (ids[0], ids[-1], len(set(ids))) == (0, 151_935, 64)  # bfloat16 would end at 152,064, which there is not

"""Every family of models that people train, tiny and random, against its own logits as transformers computes them."""

import re
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from datamodules.packing import CALL, COT, PROMPT, Encoded, collate_packed, micro_batches
from lightning_modules.callbacks.memory import Plan, adapters, estimate
from lightning_modules.checkpointing import exported_weights
from lightning_modules.checkpointing.export import export_hf
from lightning_modules.generators import HFGenerator
from lightning_modules.objectives import Totals, multiscale_loss
from lightning_modules.policy.lora import LoRA
from lightning_modules.policy.model import build_policy
from lightning_modules.policy.probe import probe

LENGTHS = [9, 30, 14, 6, 22]
CAPACITY = 64  # tokens of a packed row: 30 + 22 + 9 and 14 + 6, or as near to that as bins go
TOLERANCE = 2e-4  # float32; log-probabilities are around 6 and gradients of a step around 0.1 to 1


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.kind)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def policy(family, tmp_path_factory, tiny_tokenizer):
    folder = family.save(tmp_path_factory.mktemp(family.kind), tiny_tokenizer)
    policy = build_policy(str(folder))
    leak = probe(policy)
    assert (not leak) == family.packed == policy.packed == policy.by_document == policy.shares_prefixes, leak
    assert policy.training
    return policy.eval()  # without the dropout that some families have by default


@pytest.fixture(scope="module")
def documents():
    draw = torch.Generator().manual_seed(5)
    segments = [[PROMPT] * 3 + [COT] * (n // 2) + [CALL] * (n - 3 - n // 2) for n in LENGTHS]
    return [
        Encoded(torch.randint(3, 320, (n,), generator=draw).tolist(), s) for n, s in zip(LENGTHS, segments, strict=True)
    ]


def own_logits(policy, document):
    """The oracle: transformers alone, one document, all logits; those that predict what is supervised."""
    ids = torch.tensor(document.input_ids)
    logits = policy.causal_lm(input_ids=ids[None], use_cache=False).logits[0, :-1].double()
    supervised = torch.tensor(document.segments[1:]) != PROMPT
    return logits[supervised], ids[1:][supervised], torch.tensor(document.segments[1:])[supervised]


def gradients(policy, losses):
    policy.zero_grad()
    total = 0.0
    for loss in losses:
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("budget", [64, 192], ids=["two or more micro-batches", "few"])
def test_a_step_in_rows_equals_one_document_at_a_time_by_the_models_own_logits(policy, documents, budget):
    counts = torch.bincount(torch.tensor([s for d in documents for s in d.segments[1:]]))
    totals = Totals(len(documents), float(counts[COT]), float(counts[CALL]))

    def alone(document):
        logits, targets, segments = own_logits(policy, document)
        nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        return multiscale_loss(nll, segments, torch.zeros_like(segments), 0.7, "sample", totals)[0]

    def together(rows):
        batch = collate_packed(documents, rows)
        scored = batch["targets"] != -100
        nll = -policy(batch["input_ids"], batch["position_ids"], batch["targets"]).logprobs
        return multiscale_loss(nll, batch["segments"][scored], batch["doc_ids"][scored], 0.7, "sample", totals)[0]

    want, want_grads = gradients(policy, (alone(document) for document in documents))
    batches = micro_batches(LENGTHS, CAPACITY, budget, policy.packed)
    assert (max(len(row) for rows in batches for row in rows) > 1) == policy.packed
    got, got_grads = gradients(policy, (together(rows) for rows in batches))
    assert got == pytest.approx(want, abs=TOLERANCE)
    assert {name for name, grad in want_grads.items() if grad.abs().max() > 1e-6} <= got_grads.keys()
    for name, grad in got_grads.items():
        other = want_grads.get(name, torch.zeros_like(grad))
        torch.testing.assert_close(
            grad, other, rtol=2e-3, atol=TOLERANCE * max(1.0, float(other.abs().max())), msg=name
        )


@torch.no_grad()
def test_scores_and_entropies_of_rollouts_are_those_of_the_own_logits_over_the_temperature(policy, documents):
    rows = [row for batch in micro_batches(LENGTHS, CAPACITY, 10_000, policy.packed) for row in batch]
    batch = collate_packed(documents, rows)
    scored = policy(batch["input_ids"], batch["position_ids"], batch["targets"], temperature=0.7, entropy=True)
    logprobs, entropies = [], []
    for i in (i for row in rows for i in row):
        logits, targets, _ = own_logits(policy, documents[i])
        log_p = torch.log_softmax(logits / 0.7, -1)
        logprobs.append(log_p.gather(1, targets[:, None]).squeeze(1))
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    torch.testing.assert_close(scored.logprobs.double(), torch.cat(logprobs), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(scored.entropy.double(), torch.cat(entropies), rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_a_mask_of_the_row_gives_the_scores_of_attention_by_document(family, policy, documents):
    if not policy.by_document or family.kind in ("opt", "biogpt"):  # whose masks heed no restart
        pytest.skip("no attention by document, or no mask of a row")
    batch = collate_packed(documents, [[0, 1, 2], [3, 4]])
    arguments = [batch[name] for name in ("input_ids", "position_ids", "targets")]
    by_document = policy(*arguments).logprobs
    policy.by_document = False
    under_a_mask = policy(*arguments).logprobs
    policy.by_document = True
    torch.testing.assert_close(under_a_mask, by_document, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_generation_takes_the_most_likely_tokens_of_a_model_without_cache(policy, documents):
    prompt = documents[0].input_ids
    [[completion]] = HFGenerator(max_new_tokens=5)(policy, [prompt], stop_ids=[])
    ids = list(prompt)
    for token in completion.token_ids:
        last = policy.causal_lm(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        assert last.max() - last[token] < 1e-4
        ids.append(token)
    assert len(completion.token_ids) == 5


@torch.no_grad()
def test_the_export_has_the_weights_that_transformers_writes_and_loads_to_equal_logits(
    policy, documents, tiny_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(exported_weights, "LARGEST", 10_000)
    export_hf(policy, tiny_tokenizer, tmp_path / "hf")
    policy.causal_lm.save_pretrained(tmp_path / "whole")
    got, want = (
        {name: weight for file in (tmp_path / place).glob("*.safetensors") for name, weight in load_file(file).items()}
        for place in ("hf", "whole")
    )
    assert got.keys() == want.keys() and all(torch.equal(weight, want[name]) for name, weight in got.items())
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    ids = torch.tensor([documents[1].input_ids])
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", use_safetensors=True)
    torch.testing.assert_close(exported(ids).logits, policy.causal_lm(ids).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_adapters_of_all_linear_layers_are_merged_into_what_is_exported(family, documents, tiny_tokenizer, tmp_path):
    family.save(tmp_path / "base", tiny_tokenizer)
    torch.manual_seed(0)  # of what peft starts `lora_A` at
    adapted = build_policy(str(tmp_path / "base"), lora=LoRA(r=4)).eval()
    ids = torch.tensor([documents[1].input_ids])
    before = adapted.causal_lm(ids).logits
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name:  # peft starts it at zero
            parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    live = adapted.causal_lm(ids).logits
    assert (live - before).abs().max() > 0.01
    export_hf(adapted, tiny_tokenizer, tmp_path / "hf")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", use_safetensors=True)
    torch.testing.assert_close(exported(ids).logits, live, rtol=0, atol=2e-4)


def test_the_page_on_models_lists_it_where_it_belongs(family):
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    start = page.index("\nPacked: " if family.packed else "\nOne document per row: ")
    assert family.kind in re.findall(r"\w+", page[start : page.index("\n\n", start + 1)])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_its_memory_is_estimated(policy, checkpointing):
    config, parameters = policy.causal_lm.config, sum(p.numel() for p in policy.parameters())
    plan = Plan(config, parameters, 0, "32-true", rows=2, length=64, checkpointing=checkpointing)
    assert estimate(plan).peak > 4 * 4 * parameters  # weights, gradients and AdamW's two states
    assert adapters(config, 4) > 0

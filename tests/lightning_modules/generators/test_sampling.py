"""The counter-based noise: its distribution, its independence, and that it is the algorithm it says it is."""

import math

import pytest
import torch
from transformers import TopPLogitsWarper

from lightning_modules.generators.sampling import (
    GumbelMax,
    _split_mix,
    gumbel_noise,
    keep_top_p,
    row_key,
    sample,
    sampled_scores,
)

# Chi-square with 7 degrees of freedom exceeds 24.32 once in a thousand draws; the seeds here are fixed.
CHI_SQUARE_7 = 24.32


def chi_square(samples, probabilities):
    observed = torch.bincount(samples, minlength=len(probabilities)).double()
    expected = probabilities.double() * len(samples)
    return ((observed - expected) ** 2 / expected).sum().item()


def keys_of(count, seed=0):
    return torch.tensor([row_key(seed, prompt, 0) for prompt in range(count)])


def test_split_mix_equals_the_published_algorithm_in_python_integers():
    def reference(state):
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        return state ^ (state >> 31)

    states = [0, 1, 2**63 - 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15, 123456789123456789]
    signed = torch.tensor([state - 2**64 if state >= 2**63 else state for state in states])
    assert [value % 2**64 for value in _split_mix(signed).tolist()] == [reference(state) for state in states]
    # First output of SplitMix64 seeded with 0, from its reference implementation.
    assert reference(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("over", ["rows", "positions"])
def test_argmax_with_noise_is_a_sample_of_the_softmax(over):
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -0.5, 1.5, -2.0])
    if over == "rows":
        noise = gumbel_noise(keys_of(20_000), 0, 8)
    else:
        noise = torch.cat([gumbel_noise(keys_of(1), position, 8) for position in range(5_000)])
    assert chi_square((logits + noise).argmax(-1), logits.softmax(0)) < CHI_SQUARE_7


def test_a_wrong_distribution_would_be_noticed():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -0.5, 1.5, -2.0])
    picked = (logits + gumbel_noise(keys_of(20_000), 0, 8)).argmax(-1)
    assert chi_square(picked, (1.05 * logits).softmax(0)) > CHI_SQUARE_7


def test_noise_has_the_moments_of_a_gumbel_and_no_correlation_between_rows_positions_or_entries():
    keys = keys_of(200)
    noise = torch.stack([gumbel_noise(keys, position, 200) for position in range(5)]).double()  # [5, 200, 200]
    deviation = math.pi / math.sqrt(6)
    # Of 200,000 numbers: the mean errs by deviation / sqrt(200,000) = 0.003.
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.012)
    assert noise.std().item() == pytest.approx(deviation, abs=0.015)
    noise = (noise - noise.mean()) / noise.std()
    for dim in range(3):
        length = noise.shape[dim]
        product = noise.narrow(dim, 0, length - 1) * noise.narrow(dim, 1, length - 1)
        assert abs(product.mean().item()) < 4 / math.sqrt(product.numel())


def test_large_noise_keeps_its_resolution():
    # The largest of 4,000,000 Gumbels is about ln(4e6) = 15.2; 24-bit uniforms would give the largest ones ties.
    largest = gumbel_noise(keys_of(200), 0, 20_000).flatten().topk(50).values
    assert 13 < largest[0] < 22 and len(largest.unique()) == 50


def test_noise_of_a_row_does_not_depend_on_the_other_rows_or_the_vocabulary():
    keys = keys_of(6)
    together = gumbel_noise(keys, 7, 50)
    assert torch.equal(together[[4, 1]], gumbel_noise(keys[[4, 1]], 7, 50))
    assert torch.equal(together[:, :20], gumbel_noise(keys, 7, 20))


def test_keys_differ_by_seed_prompt_and_sample():
    keys = {row_key(seed, prompt, sample) for seed in (0, 1) for prompt in ("a", "1/1", 1, 11) for sample in (0, 1, 11)}
    assert len(keys) == 2 * 4 * 3
    assert row_key(0, 1, 0) == row_key(0, "1", 0)  # ids read from JSON or from a tensor are the same ids


def test_top_p_by_hand_and_as_transformers_does_it():
    # Probabilities 0.5, 0.3, 0.15, 0.05 in mixed order; 0.5 + 0.3 first reaches 0.7.
    logits = torch.tensor([[0.05, 0.5, 0.15, 0.3]]).log()
    assert keep_top_p(logits, 0.7).isfinite().tolist() == [[False, True, False, True]]
    assert keep_top_p(logits, 1e-9).isfinite().tolist() == [[False, True, False, False]]
    assert keep_top_p(torch.zeros(1, 4), 0.5).isfinite().sum() == 2  # two of 1/4 reach it, exactly
    logits = torch.randn(30, 100, generator=torch.Generator().manual_seed(0)) * 2
    for top_p in (0.1, 0.5, 0.95):
        assert torch.equal(keep_top_p(logits, top_p), TopPLogitsWarper(top_p)(None, logits))


def test_the_processor_applies_temperature_then_top_p_then_noise():
    keys, logits = keys_of(3), torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    scores = GumbelMax(keys, prompt_length=5, temperature=0.5, top_p=0.9)(torch.zeros(3, 7, dtype=torch.long), logits)
    expected = keep_top_p(logits / 0.5, 0.9) + gumbel_noise(keys, 2, 40)  # the third generated token
    torch.testing.assert_close(scores, expected)
    assert scores.isinf().any() and not scores.isnan().any()


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0, 30.0])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9)])
def test_noise_where_it_can_matter_gives_the_tokens_of_all_noise(monkeypatch, spread, temperature, top_p):
    monkeypatch.setattr("lightning_modules.generators.sampling.BLOCK", 2**16)
    generator = torch.Generator().manual_seed(0)
    for size in (50, 4000):  # the second in blocks
        keys, positions = keys_of(150), torch.arange(150) % 7
        logits = (torch.randn(150, size, generator=generator) * spread).bfloat16()  # equal logits among them
        want = sampled_scores(logits, keys, positions, temperature, top_p).argmax(-1)
        assert torch.equal(sample(logits, keys, positions, temperature, top_p), want)


def test_all_noise_is_computed_where_none_reaches_the_floor(monkeypatch):
    monkeypatch.setattr("lightning_modules.generators.sampling.MARGIN", -2.0)  # most rows stay below it
    keys, logits = keys_of(50), torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    want = sampled_scores(logits, keys, torch.zeros(50, dtype=torch.long), 1.0, 1.0).argmax(-1)
    assert torch.equal(sample(logits, keys, torch.zeros(50, dtype=torch.long), 1.0, 1.0), want)

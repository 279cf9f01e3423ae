"""Truncated importance weights by hand."""

import math

import pytest
import torch

from lightning_modules.objectives import ImportanceSampling, truncated_importance_weights

# Ratios 1/2, 1, 4 and 2 of policy to sampler.
OLD = torch.tensor([math.log(r) - 1 for r in (0.5, 1.0, 4.0, 2.0)], dtype=torch.float64)
SAMPLING = torch.full((4,), -1.0, dtype=torch.float64)


@pytest.mark.parametrize(("above", "last"), [("truncate", 2.0), ("mask", 0.0)])
def test_weights_are_cut_at_the_cap(above, last):
    weights, _ = truncated_importance_weights(OLD, SAMPLING, cap=2.0, above=above)
    assert weights.tolist() == pytest.approx([0.5, 1.0, last, 2.0])


@pytest.mark.parametrize("above", ["truncate", "mask"])
def test_parts_are_of_the_raw_ratios(above):
    _, parts = truncated_importance_weights(OLD, SAMPLING, cap=1.5, above=above)
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(
        {
            "tokens": 4,
            "ratio": 7.5,  # 1/2 + 1 + 4 + 2
            "ratio_squared": 21.25,  # 1/4 + 1 + 16 + 4
            "capped": 2,
            "logprob_gap": 4 * math.log(2),  # ln 2 + 0 + 2 ln 2 + ln 2
            "ratio_min": 0.5,
            "ratio_max": 4.0,
            "logprob_gap_max": 2 * math.log(2),
        }
    )


def test_the_greatest_gap_is_one_of_either_sign():
    _, parts = truncated_importance_weights(torch.tensor([-4.0, -1.0]), torch.tensor([-1.0, -2.0]))
    assert parts["logprob_gap_max"].item() == 3  # |-4 + 1|, not -1 + 2


def test_effective_sample_size_from_the_parts():
    # All alike: the whole sample counts. One token with all the weight of n: 1 / n of it.
    _, parts = truncated_importance_weights(SAMPLING, SAMPLING)
    assert (parts["ratio"] ** 2 / (parts["tokens"] * parts["ratio_squared"])).item() == 1.0
    far = torch.tensor([19.0, -19.0, -19.0, -19.0], dtype=torch.float64)
    _, parts = truncated_importance_weights(far, torch.zeros(4, dtype=torch.float64))
    assert (parts["ratio"] ** 2 / (parts["tokens"] * parts["ratio_squared"])).item() == pytest.approx(0.25)


def test_equal_probabilities_weigh_exactly_one():
    assert truncated_importance_weights(OLD, OLD)[0].tolist() == [1.0] * 4


def test_huge_gaps_stay_finite_and_gradients_are_cut():
    old = torch.tensor([0.0, -1000.0], requires_grad=True)
    weights, parts = truncated_importance_weights(old, torch.tensor([-1000.0, 0.0]))
    assert weights[0] == 2.0 and 0 <= weights[1] < 1e-8 and not weights.requires_grad
    assert parts["ratio_max"].item() == pytest.approx(math.exp(20), rel=1e-5)
    assert all(torch.isfinite(value) and not value.requires_grad for value in parts.values())


def test_no_tokens():
    weights, parts = truncated_importance_weights(torch.zeros(0), torch.zeros(0))
    assert weights.shape == (0,)
    assert parts.pop("ratio_min").item() == math.inf
    assert all(value.item() == 0 for value in parts.values())


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"must both be \[N\], got \[\[4\], \[3\]\]"):
        truncated_importance_weights(OLD, SAMPLING[1:])
    for cap, above in ((0.0, "mask"), (2.0, "drop")):
        with pytest.raises(ValueError, match="cap must be greater than 0 and above 'truncate' or 'mask'"):
            truncated_importance_weights(OLD, SAMPLING, cap, above)


def test_settings():
    old, reported = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0, -4.0])
    weights, parts = ImportanceSampling(cap=3.0, above="mask")(old, reported)
    assert weights.tolist() == [1, 0] and parts["capped"] == 1  # e^2 is above 3
    assert ImportanceSampling(cap=None)(old, reported) == (None, {})
    for options, words in (({"cap": 0.0}, r"cap is 0\.0; give"), ({"above": "cut"}, "above is 'cut'; give truncate")):
        with pytest.raises(ValueError, match=rf"model\.importance_sampling\.{words}"):
            ImportanceSampling(**options)

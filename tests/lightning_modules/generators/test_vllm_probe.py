"""How far an engine's scores may be from the policy's before a sync counts as failed."""

import pytest
import torch

from lightning_modules.generators.vllm_probe import check_scores

FLAT, WIDE = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([0.0, -40.0, -80.0])


@pytest.mark.parametrize(
    ("want", "dtype", "tolerance", "most"),
    [
        (WIDE, torch.float32, None, 5e-3),
        (FLAT, torch.bfloat16, None, 0.25),
        (WIDE, torch.bfloat16, None, 40 * 2**-3.5),  # 3.54: the deviation is 40, and bfloat16 has 7 bits
        (WIDE, torch.bfloat16, 0.1, 0.1),
        (FLAT, torch.float32, 0.5, 0.5),
    ],
)
def test_scores_may_differ_by_what_rounding_does_unless_a_tolerance_is_set(want, dtype, tolerance, most):
    check_scores("the engine", want, want + 0.99 * most, None, dtype, tolerance)
    with pytest.raises(RuntimeError, match=r"the engine are .* nats from the policy's on average, more than"):
        check_scores("the engine", want, want - 1.01 * most, None, dtype, tolerance)


def test_scores_that_are_no_numbers_are_never_near_enough():
    with pytest.raises(RuntimeError, match="are nan nats"):
        check_scores("the engine", WIDE, WIDE * torch.nan, None, torch.bfloat16, None)

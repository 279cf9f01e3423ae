import pytest

from lightning_modules.optimization import warmup_constant, warmup_cosine


def test_warm_up_and_cosine_by_hand():
    # 10 steps, 2 of warm-up: 1/2, 1, then (1 + cos(pi * k / 8)) / 2 for k = 0, 1, ...
    rates = [warmup_cosine(step, 2, 10) for step in range(11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)  # k = 4: cos(pi / 2) = 0
    assert rates[10] == pytest.approx(0.0) and warmup_cosine(12, 2, 10) == pytest.approx(0.0)  # it rises no more
    assert warmup_cosine(0, 0, 1) == 1.0


def test_warm_up_and_a_constant_rate_by_hand():
    assert [warmup_constant(step, 4, 10) for step in range(11)] == [0.25, 0.5, 0.75, *[1.0] * 8]
    assert warmup_constant(0, 0, 1) == 1.0

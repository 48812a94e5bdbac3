from __future__ import annotations

import pytest

from finepruning.training import cosine, rise_and_decay


def test_cosine_rises_to_its_peak_and_falls_towards_zero() -> None:
    rates = [cosine(step, 20, 0.5, 4) for step in range(20)]
    assert max(rates) == rates[3] == rates[4] == 0.5
    assert rates[:4] == sorted(rates[:4])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 0.01


def test_slow_start_then_fast_decay() -> None:
    rates = [rise_and_decay(step, 20, 0.5) for step in range(20)]
    assert max(rates) == rates[9] == pytest.approx(0.5)
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.005)
    assert rates[11] / rates[10] == pytest.approx(rates[15] / rates[14])  # equal ratios


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_phases_have_positive_rates(steps: int) -> None:
    assert all(rise_and_decay(step, steps, 1.0) > 0 for step in range(steps))

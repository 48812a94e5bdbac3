from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finepruning.pruning import ALLOCATION_RULES, exact_cut, scaled_magnitudes, theta_for


@pytest.fixture
def weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 3, 3, 3), (16, 8, 3, 3), (32, 16, 1, 1), (10, 32)]
    return [
        torch.randn(*shape, generator=generator) * scale
        for shape, scale in zip(shapes, (1, 0.3, 0.1, 0.02), strict=True)
    ]


@pytest.mark.parametrize("rule", sorted(ALLOCATION_RULES))
@pytest.mark.parametrize("density", [0.003, 0.05, 0.5, 0.97, 1.0])
def test_counts_add_up_and_fit(rule: str, density: float, weights: list[Tensor]) -> None:
    total = sum(w.numel() for w in weights)
    keep = max(len(weights), round(density * total))
    counts = ALLOCATION_RULES[rule](weights, keep)
    assert sum(counts) == keep
    assert all(1 <= count <= w.numel() for count, w in zip(counts, weights, strict=True))


def test_uniform_is_uniform(weights: list[Tensor]) -> None:
    keep = round(0.25 * sum(w.numel() for w in weights))
    counts = ALLOCATION_RULES["uniform"](weights, keep)
    assert all(abs(count - 0.25 * w.numel()) <= 1 for count, w in zip(counts, weights, strict=True))


def test_erk_keeps_proportion_of_its_factors(weights: list[Tensor]) -> None:
    keep = round(0.05 * sum(w.numel() for w in weights))
    counts = ALLOCATION_RULES["erk"](weights, keep)
    density = [count / w.numel() for count, w in zip(counts, weights, strict=True)]
    factor = [sum(w.shape) / w.numel() for w in weights]
    assert density[1] / density[2] == pytest.approx(factor[1] / factor[2], rel=0.1)


def test_erk_fills_small_layers_and_gives_the_rest_to_others(weights: list[Tensor]) -> None:
    keep = round(0.8 * sum(w.numel() for w in weights))
    counts = ALLOCATION_RULES["erk"](weights, keep)
    assert counts[0] == weights[0].numel()
    assert counts[1] < weights[1].numel()
    assert sum(counts) == keep


def test_lamp_matches_its_definition() -> None:
    weights = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.1, 0.1, 5.0, 0.2])]
    # scores: 1/14, 4/13, 1 and .01/25.06, .01/25.05, 1, .04/25.04
    assert ALLOCATION_RULES["lamp"](weights, 4) == [3, 1]
    assert ALLOCATION_RULES["lamp"](weights, 5) == [3, 2]


def test_theta_reproduces_counts(weights: list[Tensor]) -> None:
    keep = round(0.1 * sum(w.numel() for w in weights))
    counts = ALLOCATION_RULES["uniform"](weights, keep)
    theta = theta_for(weights, counts)
    assert sum(theta) == pytest.approx(0, abs=1e-9)
    masks = exact_cut(scaled_magnitudes(weights, theta), keep)
    assert all(abs(int(m.sum()) - count) <= 1 for m, count in zip(masks, counts, strict=True))


def test_theta_of_global_magnitude_is_zero(weights: list[Tensor]) -> None:
    keep = round(0.5 * sum(w.numel() for w in weights))
    theta = theta_for(weights, ALLOCATION_RULES["global"](weights, keep))
    masks = exact_cut(scaled_magnitudes(weights, theta), keep)
    plain = exact_cut(scaled_magnitudes(weights, [0.0] * len(weights)), keep)
    assert sum(int((a ^ b).sum()) for a, b in zip(masks, plain, strict=True)) <= 2 * len(weights)

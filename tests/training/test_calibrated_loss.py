"""The search's loss: what the logits know, not how loud they are."""

from __future__ import annotations

import math

import pytest
import torch

from finepruning.training.evaluate import calibrated_loss


def some_logits(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (200,), generator=generator)
    logits = torch.randn(200, 5, generator=generator)
    logits[torch.arange(200), labels] += 1.0
    return logits, labels


@pytest.mark.parametrize("scale", [1e-3, 0.3, 7.0, 500.0])
def test_the_size_of_the_logits_does_not_matter(scale: float) -> None:
    logits, labels = some_logits()
    assert calibrated_loss(scale * logits, labels) == pytest.approx(calibrated_loss(logits, labels), rel=1e-5)


def test_it_is_the_smallest_loss_over_a_grid_of_temperatures() -> None:
    logits, labels = some_logits()
    grid = [float(torch.nn.functional.cross_entropy(s * logits, labels)) for s in torch.linspace(0, 4, 400)]
    assert calibrated_loss(logits, labels) == pytest.approx(min(grid), abs=1e-4)


def test_a_silent_network_is_at_chance_and_never_beats_one_that_knows_something() -> None:
    logits, labels = some_logits()
    silent = calibrated_loss(torch.zeros_like(logits), labels)
    assert silent == pytest.approx(math.log(5))
    assert torch.nn.functional.cross_entropy(40 * logits, labels) > silent
    assert calibrated_loss(40 * logits, labels) < silent


def test_misleading_and_broken_logits_are_at_chance() -> None:
    logits, labels = some_logits()
    assert calibrated_loss(-5 * logits, labels) == pytest.approx(math.log(5))
    assert calibrated_loss(torch.full_like(logits, torch.nan), labels) == pytest.approx(math.log(5))


def test_perfect_logits_cost_nothing() -> None:
    labels = torch.arange(5)
    assert calibrated_loss(torch.eye(5), labels) == pytest.approx(0.0, abs=1e-6)

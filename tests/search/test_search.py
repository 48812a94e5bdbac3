from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from finepruning.search import (
    BayesianSearch,
    BudgetSpace,
    PaperSpace,
    RandomSearch,
    Search,
    Space,
    Trial,
    best,
    trust_region_length,
)


def weights(layers: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 4 + 2 * (i % 3), generator=generator) * 0.8**i for i in range(layers)]


def bowl(space: Space, target: Sequence[float]) -> Callable[[tuple[float, ...]], float]:
    """Lowest at ``target`` (unit cube), which the canonical form makes unique."""
    center = space.canonical(target)
    return lambda x: 0.01 + sum((a - b) ** 2 for a, b in zip(x, center, strict=True))


def run(search: Search, space: Space, loss: Callable[[tuple[float, ...]], float], trials: int) -> list[Trial]:
    history: list[Trial] = []
    for index in range(trials):
        (proposal,) = search.propose(history, 1)
        value = loss(proposal.x)
        history.append(
            Trial(1, index, proposal.kind, proposal.x, space.theta(proposal.x), value, value, 0.5, 0.1, 0.0)
        )
    return history


def test_the_first_trial_is_global_magnitude_pruning() -> None:
    space = BudgetSpace(weights(5), 40, 2.0)
    for search in (BayesianSearch(space, 0), RandomSearch(space, 0)):
        (first,) = search.propose([], 1)
        assert first.kind == "global"
        assert space.theta(first.x) == pytest.approx([0.0] * 5)


def test_starts_hold_the_allocations_and_the_previous_best() -> None:
    space = BudgetSpace(weights(5), 40, 2.0)
    kinds = [start.kind for start in space.starts([0.5, -0.5, 0.0, 0.0, 0.0])]
    assert kinds == ["global", "previous", "lamp", "erk", "uniform"]
    assert "previous" not in [start.kind for start in space.starts([0.0] * 5)]  # equal to global


@pytest.mark.parametrize("layers", [3, 5])
def test_every_point_of_the_budget_space_has_the_same_density(layers: int) -> None:
    space = BudgetSpace(weights(layers), 31, 2.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        masks = space.masks(torch.rand(layers, generator=generator).tolist())
        assert sum(int(mask.sum()) for mask in masks) == 31
        assert all(mask.any() for mask in masks)


def test_canonical_points_mean_the_same_masks() -> None:
    space = BudgetSpace(weights(4), 31, 2.0)
    x = [0.45, 0.5, 0.62, 0.4]
    shifted = [value + 0.1 for value in x]
    assert space.canonical(x) == pytest.approx(space.canonical(shifted))
    for a, b in zip(space.masks(x), space.masks(space.canonical(shifted)), strict=True):
        assert torch.equal(a, b)


def test_paper_space_thresholds_rise_along_each_coordinate() -> None:
    space = PaperSpace(weights(3), 20, 0.5)
    kept = [[int(mask.sum()) for mask in space.masks([value] * 3)] for value in (0.0, 0.25, 0.5, 0.75, 1.0)]
    for earlier, later in itertools.pairwise(kept):
        assert all(a >= b for a, b in zip(earlier, later, strict=True))
    assert sum(kept[0]) > 20 > sum(kept[-1])
    assert all(count >= 1 for count in kept[-1])


def test_paper_starts_have_about_the_rounds_density() -> None:
    space = PaperSpace(weights(4), 30, 0.5)
    first = space.starts(None)[0]
    assert first.kind == "global"
    assert abs(sum(int(mask.sum()) for mask in space.masks(first.x)) - 30) <= 4
    assert space.objective(1.0, 0.2, 0.1) == pytest.approx(0.2 - 0.5 * 0.9)


@pytest.mark.parametrize("layers", [4, 30], ids=["global", "trust-region"])
def test_search_improves_on_its_starts(layers: int) -> None:
    space = BudgetSpace(weights(layers), layers * 4, 2.0)
    target = [0.5 + 0.3 * math.sin(3 * i) for i in range(layers)]
    history = run(BayesianSearch(space, 0), space, bowl(space, target), 12)
    starts = [trial for trial in history if trial.kind != "search"]
    assert best(history).kind == "search"
    assert best(history).loss < 0.9 * best(starts).loss
    assert all(0 <= value <= 1 for trial in history for value in trial.x)


def test_paper_search_runs_on_its_own_objective() -> None:
    space = PaperSpace(weights(4), 30, 0.5)
    history = run(BayesianSearch(space, 0), space, bowl(space, [0.8, 0.2, 0.6, 0.4]), 8)
    assert best(history).kind == "search"


@pytest.mark.parametrize("make", [BayesianSearch, RandomSearch])
def test_proposals_depend_on_history_and_seed_alone(
    make: Callable[[Space, int], Search],
) -> None:
    space = BudgetSpace(weights(4), 30, 2.0)
    loss = bowl(space, [0.9, 0.1, 0.5, 0.5])
    history = run(make(space, 3), space, loss, 6)
    torch.manual_seed(99)
    resumed = make(space, 3)
    assert resumed.propose(history[:4], 1)[0].x == history[4].x
    assert resumed.propose(history[:5], 1)[0].x == history[5].x
    other = run(make(space, 4), space, loss, 6)
    assert other[-1].x != history[-1].x


def test_proposing_leaves_the_global_generator_alone() -> None:
    space = BudgetSpace(weights(4), 30, 2.0)
    history = run(BayesianSearch(space, 0), space, bowl(space, [0.5] * 4), 5)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    BayesianSearch(space, 0).propose(history, 1)
    assert torch.equal(torch.rand(3), expected)


def test_trust_region_grows_with_success_and_shrinks_with_failure() -> None:
    start = trust_region_length([0.0, 1.0], 2)
    assert trust_region_length([0.0, 1.0, 2.0, 3.0], 2) == 2 * start
    assert trust_region_length([0.0, 1.0, 0.5, 0.5, 0.5], 2) == start / 2


def test_the_earliest_of_equal_trials_wins() -> None:
    trials = [
        Trial(1, index, "search", (0.5,), (0.0,), value, value, 0.5, 0.1, 0.0)
        for index, value in enumerate([2.0, 1.0, 1.0])
    ]
    assert best(trials).index == 1


def test_trials_survive_json() -> None:
    trial = Trial(2, 3, "erk", (0.1, 1 / 3), (-0.2, 0.7), 0.5, 0.5, 0.9, 0.1, 1.5)
    assert Trial.from_json(trial.to_json()) == trial

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from botorch.exceptions.errors import ModelFittingError

from finepruning.search import BayesianSearch, BudgetSpace, PaperSpace, Proposal, Space, Trial, new_trials
from finepruning.search.batches import batch_at
from finepruning.training.distributed import ALONE


def space(layers: int, name: str = "budget") -> Space:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(4, 5, generator=generator) for _ in range(layers)]
    if name == "paper":
        return PaperSpace(weights, 10 * layers, 1.0)
    return BudgetSpace(weights, 10 * layers, 2.0)


def judge(proposal: Proposal, index: int) -> Trial:
    value = 0.01 + sum((coordinate - 0.7) ** 2 for coordinate in proposal.x)
    return Trial(1, index, proposal.kind, proposal.x, proposal.x, value, value, 0.5, 0.5, 0.0)


def searched(where: Space, total: int, size: int, history: list[Trial] | None = None) -> list[Trial]:
    before = history or []
    return [*before, *new_trials(BayesianSearch(where, 0), judge, before, total, size, ALONE)]


@pytest.mark.parametrize(("starts", "size"), [(0, 1), (3, 1), (5, 2), (4, 2), (2, 4), (5, 8)])
def test_batches_follow_each_other_and_do_not_mix_starts_with_proposals(starts: int, size: int) -> None:
    at = 0
    while at < 30:
        begin, end = batch_at(at, starts, size)
        assert begin == at < end <= at + size
        assert not begin < starts < end
        assert all(batch_at(number, starts, size) == (begin, end) for number in range(begin, end))
        at = end


@pytest.mark.parametrize("layers", [4, 26])  # all of the cube, a trust region
@pytest.mark.parametrize("name", ["budget", "paper"])
def test_proposals_of_a_batch_differ(layers: int, name: str) -> None:
    where = space(layers, name)
    history = searched(where, BayesianSearch(where, 0).starts, 1)
    batch = BayesianSearch(where, 0).propose(history, 3)
    assert len(batch) == 3
    for a, b in itertools.combinations(batch, 2):
        assert max(abs(x - y) for x, y in zip(a.x, b.x, strict=True)) > 1e-3


def test_one_at_a_time_is_the_usual_search() -> None:
    where = space(3)
    search, history = BayesianSearch(where, 0), list[Trial]()
    for index in range(6):
        history.append(judge(search.propose(history, 1)[0], index))
    assert searched(where, 6, 1) == history


def test_a_search_stopped_within_a_batch_goes_on_with_the_same_proposals() -> None:
    where = space(3)
    whole = searched(where, 9, 3)
    for done in (1, 4, 6, 7):
        assert searched(where, 9, 3, whole[:done]) == whole


@pytest.mark.parametrize("layers", [4, 26])
@pytest.mark.parametrize("name", ["budget", "paper"])
def test_float_noise_of_the_losses_does_not_reach_the_proposals(layers: int, name: str) -> None:
    where = space(layers, name)
    history = searched(where, BayesianSearch(where, 0).starts + 2, 2)
    noisy = [
        replace(trial, objective=trial.objective * (1 + (-1) ** trial.index * 2e-6)) for trial in history
    ]
    assert BayesianSearch(where, 0).propose(noisy, 3) == BayesianSearch(where, 0).propose(history, 3)


@pytest.mark.parametrize("layers", [4, 26])
@pytest.mark.parametrize("name", ["budget", "paper"])
@pytest.mark.parametrize("value", [0.0, 0.95238096])
def test_a_search_goes_on_where_all_trials_are_alike(layers: int, name: str, value: float) -> None:
    """Nothing tells the candidates of a network that answers the same for every image apart."""
    where = space(layers, name)
    history: list[Trial] = []
    while len(history) < 10:
        trial = judge(BayesianSearch(where, 0).propose(history, 1)[0], len(history))
        history.append(replace(trial, objective=value, loss=value))
    assert all(0 <= coordinate <= 1 for trial in history for coordinate in trial.x)


@pytest.mark.parametrize("layers", [4, 26])
@pytest.mark.parametrize("name", ["budget", "paper"])
def test_a_search_goes_on_where_no_model_fits(
    layers: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BoTorch gives up, for instance, on points that nearly coincide."""

    def fail(_: object) -> None:
        raise ModelFittingError("All attempts to fit the model have failed.")

    where = space(layers, name)
    history = searched(where, 7, 1)
    monkeypatch.setattr("botorch.fit.fit_gpytorch_mll", fail)
    proposals = BayesianSearch(where, 0).propose(history, 2)
    assert len({proposal.x for proposal in proposals} - {trial.x for trial in history}) == 2

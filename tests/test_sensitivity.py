"""Pruning layers alone: the figures are those of the network pruned by hand, which is left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from finepruning.errors import ArgumentError
from finepruning.pruning import prunable_layers
from finepruning.report.sensitivity import holds_to
from finepruning.sensitivity import measure, sensitivity_of_run
from finepruning.training import evaluate


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def test_one_layer_at_a_time(network: nn.Module) -> None:
    batches = [(torch.randn(20, 3, 8, 8), torch.randint(0, 3, (20,))) for _ in range(2)]
    before = copy.deepcopy(network.state_dict())
    found = measure(network, prunable_layers(network), batches, [0.1, 0.5])
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert found["images"] == 40
    assert found["densities"] == [0.5, 0.1]
    assert [layer["name"] for layer in found["layers"]] == ["0", "3"]
    weight = network[3].weight
    kept = weight.abs() >= weight.abs().flatten().topk(round(0.1 * weight.numel())).values[-1]
    with torch.no_grad():
        weight.mul_(kept)
    by_hand = evaluate(network, batches, torch.device("cpu"))
    assert found["layers"][1]["accuracy"][1] == by_hand.accuracy
    assert found["layers"][1]["loss"][1] == by_hand.calibrated_loss


def test_a_layer_that_is_pruned_further_already_stays_as_it_is(network: nn.Module) -> None:
    with torch.no_grad():
        network[3].weight[:, 10:] = 0.0
    batches = [(torch.randn(20, 3, 8, 8), torch.randint(0, 3, (20,)))]
    found = measure(network, prunable_layers(network), batches, [0.5, 0.01])
    layer = found["layers"][1]
    assert layer["density"] == pytest.approx(10 / 144)
    assert layer["loss"][0] == found["loss"] != layer["loss"][1]


def test_holds_to_is_the_last_density_before_accuracy_falls() -> None:
    content = {"densities": [0.5, 0.2, 0.1], "accuracy": 0.9}
    for accuracy, expected in (
        ([0.9, 0.895, 0.7], 0.2),
        ([0.7, 0.9, 0.9], None),
        ([0.91, 0.9, 0.9], 0.1),
    ):
        assert holds_to(content, {"accuracy": accuracy}) == expected


@pytest.mark.parametrize("densities", [[], [0.0], [1.5], [float("nan")]])
def test_impossible_densities_are_refused(densities: list[float], tmp_path: object) -> None:
    with pytest.raises(ArgumentError, match="densities"):
        sensitivity_of_run(tmp_path, densities=densities)  # type: ignore[arg-type]

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from finepruning.errors import ArgumentError
from finepruning.pruning import Surgery, prunable_layers, update_probability, weights_to_keep


def linear(values: list[float]) -> nn.Linear:
    layer = nn.Linear(len(values), 1, bias=False)
    layer.weight.data = torch.tensor([values])
    return layer


def test_prunable_layers_are_all_convolutions_and_linears_once() -> None:
    shared = nn.Linear(4, 4)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), shared, nn.ReLU(), nn.Linear(4, 4)
    )
    net.append(nn.Linear(4, 4))
    net[6].weight = shared.weight
    assert list(prunable_layers(net)) == ["0", "3", "5"]


def test_networks_without_layers_are_refused() -> None:
    with pytest.raises(ArgumentError, match="nothing to prune"):
        prunable_layers(nn.Sequential(nn.ReLU()))


def test_density_below_one_weight_a_layer_is_refused() -> None:
    layers = prunable_layers(nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10)))
    assert weights_to_keep(layers, 0.01) == 2
    with pytest.raises(ArgumentError, match=r"fewer than one in each of the 2 layers.*0\.01"):
        weights_to_keep(layers, 0.005)


def test_cut_masks_the_network_and_keeps_what_is_behind() -> None:
    layer = linear([4.0, -3.0, 2.0, 1.0])
    surgery = Surgery(prunable_layers(layer))
    surgery.cut([0.0], 2)
    assert layer.weight.tolist() == [[4.0, -3.0, 0.0, 0.0]]
    assert surgery.weights[0].tolist() == [[4.0, -3.0, 2.0, 1.0]]
    assert surgery.kept == 2


def test_gradient_reaches_dropped_weights_and_they_come_back() -> None:
    layer = linear([4.0, 3.0, 2.0, 1.0])
    surgery = Surgery(prunable_layers(layer))
    surgery.cut([0.0], 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer(torch.tensor([[0.0, 0.0, -2.0, 0.0]])).sum().backward()
    with surgery.dense():
        assert layer.weight.tolist() == [[4.0, 3.0, 2.0, 1.0]]
        optimizer.step()
    assert layer.weight.tolist() == [[4.0, 3.0, 0.0, 0.0]]
    assert surgery.weights[0].tolist() == [[4.0, 3.0, 4.0, 1.0]]
    assert surgery.update([0.0], 2) == 1
    assert layer.weight.tolist() == [[4.0, 0.0, 4.0, 0.0]]


@pytest.mark.parametrize(("challenger", "spliced"), [(1.15, 0), (1.3, 1)])
def test_hysteresis_protects_kept_weights(challenger: float, spliced: int) -> None:
    """A dropped weight must beat a kept one by 1.1 / 0.9 = 1.22 to take its place."""
    layer = linear([2.0, 1.0, 0.5])
    surgery = Surgery(prunable_layers(layer))
    surgery.cut([0.0], 2)
    surgery.weights[0][0, 2] = challenger
    assert surgery.update([0.0], 2) == spliced
    assert surgery.kept == 2


def test_theta_moves_the_cut_between_layers() -> None:
    net = nn.Sequential(linear([4.0, 3.0]), linear([2.0, 1.0]))
    surgery = Surgery(prunable_layers(net))
    surgery.cut([0.0, 0.0], 3)
    assert [int(mask.sum()) for mask in surgery.masks] == [2, 1]
    surgery.cut([0.0, math.log(4)], 3)
    assert [int(mask.sum()) for mask in surgery.masks] == [1, 2]


def test_frozen_weights_stay_zero_while_the_optimizer_steps() -> None:
    layer = linear([4.0, 3.0, 2.0, 1.0])
    surgery = Surgery(prunable_layers(layer))
    surgery.cut([0.0], 2)
    surgery.freeze()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.tensor([[1.0, 0.0, -9.0, -9.0]])).sum().backward()
        with surgery.dense():
            optimizer.step()
    assert layer.weight[0, 2:].tolist() == [0.0, 0.0]
    assert surgery.weights[0][0, 2:].tolist() == [0.0, 0.0]
    assert layer.weight[0, 0] < 4.0


def test_masks_change_ever_less() -> None:
    chances = [update_probability(step, 0.01, 1.0) for step in (0, 100, 900)]
    assert chances == pytest.approx([1.0, 0.5, 0.1])


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 5])
def test_a_cut_can_put_weights_first(keep: int) -> None:
    """Also those with nothing to say for themselves; among the first and among the rest, size decides."""
    weight = nn.Parameter(torch.tensor([[0.0, 5.0, 1.0, 3.0, 2.0]]))
    surgery = Surgery({"layer": weight})
    surgery.cut([0.7], keep, first=[torch.tensor([[True, False, True, False, False]])])
    order = [2, 0, 1, 3, 4]
    assert sorted(order[:keep]) == surgery.masks[0].flatten().nonzero().flatten().tolist()

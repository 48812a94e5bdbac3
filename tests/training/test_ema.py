from __future__ import annotations

import torch
from torch import nn

from finepruning.training import WeightAverage


def test_the_average_lies_between_old_and_new_weights_and_nears_the_new_ones() -> None:
    layer = nn.Linear(3, 2)
    old = layer.weight.detach().clone()
    average = WeightAverage(layer, 0.9)
    with torch.no_grad():
        layer.weight.add_(1.0)
    distances = []
    for _ in range(30):
        average.update()
        distances.append(float((layer.weight.detach() - average.tensors["weight"]).abs().max()))
    assert distances == sorted(distances, reverse=True)
    assert 0 < distances[-1] < 0.1 < distances[0] < 1.0
    with average.applied():
        assert torch.equal(layer.weight, average.tensors["weight"])
    assert torch.equal(layer.weight, old + 1.0)


def test_it_goes_on_from_what_was_saved() -> None:
    layer = nn.BatchNorm1d(4)
    average = WeightAverage(layer, 0.5)
    with torch.no_grad():
        layer.weight.mul_(3.0)
        layer.running_mean.fill_(2.0)
    average.update()
    again = WeightAverage(layer, 0.5, average.tensors, average.updates)
    average.update()
    again.update()
    for name, value in average.tensors.items():
        assert torch.equal(value, again.tensors[name])
    assert "num_batches_tracked" not in average.tensors


def test_zeros_stay_zero() -> None:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight[0].zero_()
    average = WeightAverage(layer, 0.9)
    for _ in range(3):
        with torch.no_grad():
            layer.weight[1:].add_(0.1)
        average.update()
    assert torch.equal(average.tensors["weight"][0], torch.zeros(4))

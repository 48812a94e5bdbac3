from __future__ import annotations

import torch
from torch import nn

from finepruning.training import StartingPoint


def test_it_pulls_kept_weights_back_to_where_they_started() -> None:
    layer = nn.Linear(3, 1)
    start = StartingPoint(layer, 0.1)
    with torch.no_grad():
        layer.weight += torch.tensor([[1.0, -2.0, 3.0]])
    layer.weight.grad = torch.ones_like(layer.weight)
    start.add_gradients({layer.weight: torch.tensor([[True, True, False]])})
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[1.1, 0.8, 1.0]]))
    assert layer.bias.grad is None


def test_weights_that_did_not_move_feel_nothing() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.grad = torch.zeros_like(layer.weight)
    StartingPoint(layer, 10.0).add_gradients({})
    assert (layer.weight.grad == 0).all()

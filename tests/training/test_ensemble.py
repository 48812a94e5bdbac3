from __future__ import annotations

import pytest
import torch
from torch import nn

from finepruning.training import ensemble


def networks() -> tuple[nn.Module, dict[str, torch.Tensor], dict[nn.Parameter, torch.Tensor]]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    start = {name: value.clone() for name, value in module.state_dict().items()}
    layer = module[0]
    assert isinstance(layer, nn.Linear)
    mask = torch.rand(4, 6) < 0.5
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 6) * mask)
        layer.bias += 1.0
    module[1].running_mean += 1.0  # type: ignore[operator]
    return module, start, {layer.weight: mask}


@pytest.mark.parametrize("best", [0.0, 0.3, 1.0])
def test_the_best_mixture_is_what_remains_and_zeros_stay(best: float) -> None:
    module, start, masks = networks()
    tuned = {name: value.clone() for name, value in module.state_dict().items()}
    (weight, mask) = next(iter(masks.items()))
    expected = (best * tuned["0.weight"] + (1 - best) * start["0.weight"]) * mask

    def score() -> float:
        return float((weight - expected).abs().sum())

    assert ensemble(module, start, masks, score) == best
    assert torch.allclose(weight, expected, atol=1e-6)
    state = module.state_dict()
    for name in ("0.bias", "1.running_mean"):
        assert torch.allclose(state[name], best * tuned[name] + (1 - best) * start[name], atol=1e-6)
    assert state["1.num_batches_tracked"] == 0


def test_without_a_difference_the_fine_tuned_weights_stay_bit_for_bit() -> None:
    module, start, masks = networks()
    tuned = {name: value.clone() for name, value in module.state_dict().items()}
    assert ensemble(module, start, masks, lambda: 1.0) == 1.0
    assert all(torch.equal(value, tuned[name]) for name, value in module.state_dict().items())

"""Layers of well-known networks, one by one: `python -m pytest benchmarks --benchmark-only`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from finepruning import SparseModel
from finepruning.bench.networks import prune_uniform

# name -> (layer, shape of one input)
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "alexnet-conv2-5x5": (lambda: nn.Conv2d(64, 192, 5, padding=2), (64, 27, 27)),
    "vgg16-conv3-3x3": (lambda: nn.Conv2d(256, 256, 3, padding=1), (256, 56, 56)),
    "resnet50-layer3-1x1": (lambda: nn.Conv2d(1024, 256, 1), (1024, 14, 14)),
    "resnet50-layer4-3x3": (lambda: nn.Conv2d(512, 512, 3, padding=1), (512, 7, 7)),
    "alexnet-fc6": (lambda: nn.Linear(9216, 4096), (9216,)),
}


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("density", [0.1, 0.05, 1.0])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(benchmark: Any, name: str, density: float, batch: int) -> None:
    """Density 1.0 is PyTorch's dense layer, for comparison in the same run."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = nn.Sequential(make(), nn.ReLU()).eval()
    prune_uniform(layer, density, first=density)
    x = torch.randn(batch, *shape)
    with torch.inference_mode():
        expected = layer(x)
        run = layer if density == 1.0 else SparseModel.from_dense(layer, x)
        torch.testing.assert_close(run(x), expected, rtol=1e-3, atol=1e-4)
        benchmark(run, x)

"""A small pruned model on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from finepruning import SparseModel
from finepruning.bench.networks import prune_uniform


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1, groups=2),
        nn.ReLU6(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 10),
    ).eval()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = small_network()
    prune_uniform(module, 0.2)
    path = tmp_path_factory.mktemp("bench") / "model"
    SparseModel.from_dense(module, torch.zeros(1, 3, 24, 24)).save_pretrained(path)
    return path

from __future__ import annotations

import pytest
import torch
from torch import nn

from finepruning.training import evaluate, recalibrated

CPU = torch.device("cpu")


def test_counts_each_image_once_in_uneven_batches() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    labels = torch.tensor([0, 1, 1])
    model = nn.Flatten()
    batches = [(logits[:2].reshape(2, 2, 1, 1), labels[:2]), (logits[2:].reshape(1, 2, 1, 1), labels[2:])]
    result = evaluate(model, batches, CPU)
    assert result.accuracy == pytest.approx(2 / 3)
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))


def test_evaluates_in_eval_mode_and_restores_training_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.999), nn.Flatten())
    model.train()
    x = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)
    assert evaluate(model, [(x, torch.tensor([1]))], CPU).accuracy == 1.0
    assert model.training


def test_recalibration_estimates_statistics_and_restores_them() -> None:
    norm = nn.BatchNorm2d(3)
    norm.running_mean.fill_(7.0)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    batches = [(torch.randn(8, 3, 4, 4) * 2 + 1, torch.zeros(8)) for _ in range(3)]
    with recalibrated(norm, batches, CPU):
        mean = torch.stack([x.mean((0, 2, 3)) for x, _ in batches]).mean(0)
        variance = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x, _ in batches]).mean(0)
        torch.testing.assert_close(norm.running_mean, mean)
        torch.testing.assert_close(norm.running_var, variance)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert norm.momentum == 0.1


def test_recalibration_restores_after_an_error() -> None:
    norm = nn.BatchNorm2d(1)
    batches = [(torch.rand(2, 1, 2, 2), torch.zeros(2))]
    with (
        pytest.raises(RuntimeError, match="stop"),
        recalibrated(norm, batches, CPU),
    ):
        raise RuntimeError("stop")
    assert float(norm.running_mean) == 0.0

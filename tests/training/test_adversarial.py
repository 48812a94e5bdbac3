from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finepruning.training.adversarial import Attack, robust_accuracy

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
CPU = torch.device("cpu")


def images(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(count, 3, 8, 8, generator=generator)
    labels = (pixels[:, 0].mean((1, 2)) > 0.5).long()
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), labels


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))


@pytest.mark.parametrize("epsilon", [2.0, 8.0, 400.0])
def test_images_stay_within_epsilon_and_remain_images(epsilon: float) -> None:
    module, (x, y) = network().train(), images(16)
    changed = Attack(epsilon, 5, MEAN, STD)(module, x, y)
    std, mean = torch.tensor(STD).view(3, 1, 1), torch.tensor(MEAN).view(3, 1, 1)
    assert float(((changed - x) * std * 255).abs().max()) <= epsilon * 1.0001
    pixels = changed * std + mean
    assert float(pixels.min()) >= -1e-6
    assert float(pixels.max()) <= 1 + 1e-6
    assert module.training
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_loss_rises_more_than_by_chance() -> None:
    module, (x, y) = network().eval(), images(64)
    attack = Attack(8.0, 10, MEAN, STD)
    chance = Attack(8.0, 0, MEAN, STD)
    losses = [F.cross_entropy(module(z), y).item() for z in (x, chance(module, x, y), attack(module, x, y))]
    assert losses[2] > max(losses[:2]) + 0.05


def test_robust_accuracy_falls_with_epsilon_and_repeats() -> None:
    module, (x, y) = network().eval(), images(64)
    labels = module(x).argmax(1)  # right everywhere
    shares = [
        robust_accuracy(module, [(x, labels)], Attack(epsilon, 10, MEAN, STD), CPU)
        for epsilon in (0.0, 1.0, 4.0, 4.0, 32.0)
    ]
    assert shares[0] == 1.0
    assert shares == sorted(shares, reverse=True)
    assert shares[4] < 0.5
    assert shares[2] == shares[3]
    assert len(y) == 64

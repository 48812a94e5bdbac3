from __future__ import annotations

import torch
from torch import Tensor, nn

from finepruning.pruning import Surgery, prunable_layers
from finepruning.training import sensitivities
from finepruning.training.epoch import Recipe

RECIPE = Recipe(torch.device("cpu"), "float32")


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 16, 3, 4, 4, generator=generator)
    images[:, :, 2] = 0.0
    labels = torch.randint(3, (count, 16), generator=generator)
    return list(zip(images, labels, strict=True))


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3))


def test_weights_without_influence_have_no_sensitivity() -> None:
    module = network().train()
    with torch.no_grad():
        module[0].bias[1] = -100.0  # this channel is always 0
    convolution, head = sensitivities(module, prunable_layers(module), batches(4), RECIPE)
    assert convolution.shape == (4, 3, 1, 1)
    assert (convolution[:, 2] == 0).all()  # the third colour is black
    assert (convolution[1] == 0).all()
    assert (convolution[0, :2] > 0).all()
    assert (head[:, 16:32] == 0).all()
    assert module.training
    assert all(parameter.grad is None for parameter in module.parameters())


def test_it_is_the_root_mean_square_of_the_batches_gradients() -> None:
    module = network().eval()
    gradients = []
    for x, y in batches(3):
        module.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        gradients.append(module[4].weight.grad.clone())
    expected = torch.stack(gradients).square().mean(0).sqrt()
    _, head = sensitivities(module, prunable_layers(module), batches(3), RECIPE)
    torch.testing.assert_close(head, expected)


def test_surgery_keeps_what_matters_before_what_is_large() -> None:
    layer = nn.Linear(4, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
    surgery = Surgery({"layer": layer.weight})
    surgery.sensitivity = [torch.tensor([[0.0, 1.0, 1.0, 5.0]])]
    surgery.cut([0.0], 2)
    assert layer.weight.tolist() == [[0.0, 3.0, 0.0, 1.0]]

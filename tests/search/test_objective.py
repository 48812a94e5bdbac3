from __future__ import annotations

import torch
from torch import Tensor, nn

from finepruning.pruning import Surgery, prunable_layers
from finepruning.search import BudgetSpace, LookAhead, Objective, Proposal
from finepruning.training.epoch import Recipe


def task(images: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of two classes that differ in brightness."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (images,), generator=generator)
    x = torch.randn(images, 3, 8, 8, generator=generator) + labels[:, None, None, None]
    return list(zip(x.split(16), labels.split(16), strict=True))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2)
    )


def objective(module: nn.Module, surgery: Surgery, look_ahead: LookAhead | None) -> Objective:
    space = BudgetSpace(surgery.weights, 60, 1.0)
    recipe = Recipe(torch.device("cpu"), "float32")
    return Objective(module, surgery, space, task(64), task(32), recipe, look_ahead)


def test_a_trial_leaves_network_masks_and_hidden_weights_as_they_were() -> None:
    module = network()
    surgery = Surgery(prunable_layers(module))
    surgery.cut([0.0, 0.0], 200)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    hidden = [weight.clone() for weight in surgery.weights]
    masks = surgery.masks
    for look_ahead in (None, LookAhead(task(64), 0.05, 0.9, 0.0, 1)):
        trial = objective(module, surgery, look_ahead)(1, Proposal((0.6, 0.4), "search"), 0)
        assert trial.density == 60 / sum(mask.numel() for mask in masks)
        assert not surgery.frozen
        for name, value in module.state_dict().items():
            assert torch.equal(value, before[name]), name
        for weight, saved in zip(surgery.weights, hidden, strict=True):
            assert torch.equal(weight, saved)
        for mask, saved in zip(surgery.masks, masks, strict=True):
            assert torch.equal(mask, saved)


def test_looking_ahead_scores_what_training_makes_of_a_candidate() -> None:
    module = network()
    surgery = Surgery(prunable_layers(module))
    proposal = Proposal((0.5, 0.5), "global")
    at_once = objective(module, surgery, None)(1, proposal, 0)
    trained = objective(module, surgery, LookAhead(task(64), 0.05, 0.9, 0.0, 1))
    ahead = trained(1, proposal, 0)
    assert ahead.loss < at_once.loss
    assert trained(1, proposal, 1).loss == ahead.loss  # the same batches and dropout for every trial

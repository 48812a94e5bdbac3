"""Projected gradient descent: images changed a little so that a network takes them for another class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finepruning.training.evaluate import Batches

OVERSHOOT = 2.5  # times epsilon is the way that all steps together could go


@dataclass(frozen=True)
class Attack:
    """An attack within a box around each image (PGD; Madry et al., ICLR 2018).

    Attributes:
        epsilon: largest change of a pixel value, of 255. steps: of gradient ascent on the cross entropy, each
            of size 2.5 * epsilon / steps, from a random point of the box.
        mean, std: of the normalisation of the images, a channel.
    """

    epsilon: float
    steps: int
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(
        self, module: nn.Module, x: Tensor, labels: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Changed images.

        Args:
            module: attacked in eval mode; left in the mode it was in, without new gradients.
            x: normalised images, float32 [b, c, h, w], on the module's device. labels: int64 [b].
            generator: draws the starting points, on the CPU; None for PyTorch's own.

        Returns:
            Of the form of ``x``, within epsilon of it and of the values that images have.
        """
        mean, std = (x.new_tensor(list(values)).view(1, -1, 1, 1) for values in (self.mean, self.std))
        radius = self.epsilon / 255.0 / std
        low = torch.maximum(x - radius, (0.0 - mean) / std)
        high = torch.minimum(x + radius, (1.0 - mean) / std)
        training = module.training
        module.eval()
        start = torch.rand(x.shape, generator=generator).to(x)
        changed = torch.minimum(torch.maximum(x + (2.0 * start - 1.0) * radius, low), high)
        for _ in range(self.steps):
            changed.requires_grad_(True)
            with torch.enable_grad():
                loss = F.cross_entropy(module(changed).float(), labels)
            (gradient,) = torch.autograd.grad(loss, changed)
            changed = changed.detach() + gradient.sign() * radius * (OVERSHOOT / self.steps)
            changed = torch.minimum(torch.maximum(changed, low), high)
        module.train(training)
        return changed.detach()


def robust_accuracy(module: nn.Module, batches: Batches, attack: Attack, device: torch.device) -> float:
    """Fraction of images that are classified correctly after the attack, the same one every time."""
    generator = torch.Generator().manual_seed(0)
    module.eval()
    hits = images = 0
    for x, y in batches:
        x, labels = x.to(device), y.to(device)
        changed = attack(module, x, labels, generator)
        with torch.no_grad():
            hits += int((module(changed).argmax(1) == labels).sum())
        images += len(labels)
    return hits / images

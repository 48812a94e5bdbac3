"""Loss and accuracy of a network, and statistics of its normalisation layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finepruning.training.precision import autocast

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """Mean cross entropy (nats) and fraction of images classified correctly."""

    loss: float
    accuracy: float


@torch.no_grad()
def evaluate(
    model: Callable[[Tensor], Tensor],
    batches: Batches,
    device: torch.device,
    precision: str = "float32",
) -> Evaluation:
    """Evaluate ``model``, which maps [b, 3, s, s] to logits; a module is evaluated in eval mode."""
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    loss, correct, images = 0.0, 0, 0
    for x, y in batches:
        labels = y.to(device)
        with autocast(precision, device):
            logits = model(_to(x, device))
        logits = logits.float()
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        correct += int((logits.argmax(1) == labels).sum())
        images += len(labels)
    if training and isinstance(model, nn.Module):
        model.train()
    return Evaluation(loss / images, correct / images)


@contextmanager
def recalibrated(
    module: nn.Module, batches: Batches, device: torch.device, precision: str = "float32"
) -> Iterator[None]:
    """Inside, BatchNorm statistics are means over ``batches`` for the weights the module has now.

    Afterwards the statistics are what they were. Without BatchNorm layers nothing happens.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    saved = [{k: v.clone() for k, v in norm.named_buffers()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    try:
        if norms:
            _estimate(module, norms, batches, device, precision)
        yield
    finally:
        for norm, buffers, momentum in zip(norms, saved, momenta, strict=True):
            norm.momentum = momentum
            for name, value in norm.named_buffers():
                value.copy_(buffers[name])


@torch.no_grad()
def _estimate(
    module: nn.Module, norms: list[_BatchNorm], batches: Batches, device: torch.device, precision: str
) -> None:
    training = module.training
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    for x, _ in batches:
        with autocast(precision, device):
            module(_to(x, device))
    module.train(training)


def _to(x: Tensor, device: torch.device) -> Tensor:
    return x.to(device, memory_format=torch.channels_last, non_blocking=True)

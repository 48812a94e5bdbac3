"""Loss and accuracy of a network, and statistics of its normalisation layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finepruning.training.distributed import ALONE, Ranks
from finepruning.training.precision import autocast

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Evaluation:
    """Figures over a set of images.

    Attributes:
        loss: mean cross entropy in nats. accuracy: fraction of images classified correctly.
        calibrated_loss: mean cross entropy at the temperature that makes it smallest, see `calibrated_loss`.
    """

    loss: float
    accuracy: float
    calibrated_loss: float


@torch.no_grad()
def evaluate(
    model: Callable[[Tensor], Tensor],
    batches: Batches,
    device: torch.device,
    precision: str = "float32",
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Evaluate ``model``, which maps [b, 3, s, s] to logits; a module is evaluated in eval mode.

    Several ranks take turns at the batches; the figures are those of all images, each counted once.
    """
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    outputs, targets = [], []
    for number, (x, y) in enumerate(batches):
        targets.append(y.to(device))
        if number % ranks.count != ranks.rank:
            continue
        with autocast(precision, device):
            logits = model(_to(x, device))
        outputs.append(logits.float())
    if training and isinstance(model, nn.Module):
        model.train()
    if ranks.count > 1:
        parts = ranks.gather([output.cpu() for output in outputs])
        outputs = [
            parts[number % ranks.count][number // ranks.count].to(device) for number in range(len(targets))
        ]
    logits, labels = torch.cat(outputs), torch.cat(targets)
    loss = float(F.cross_entropy(logits, labels))
    accuracy = float((logits.argmax(1) == labels).float().mean())
    return Evaluation(loss, accuracy, calibrated_loss(logits, labels))


def calibrated_loss(logits: Tensor, labels: Tensor) -> float:
    """The smallest mean cross entropy over ``scale * logits`` with scale >= 0 (temperature scaling).

    It tells how much the logits know, whatever their size: constant logits give exactly the log of the
    number of classes, and none give more (Guo et al., ICML 2017). The plain loss of a network that was
    pruned and not retrained mostly measures misplaced confidence, so that a network without any output
    would look better.

    Args:
        logits: [n, classes], float. labels: [n], int64.

    Returns:
        The loss in nats; the log of the number of classes when a logit is not finite.
    """
    chance = math.log(logits.shape[1])
    logits = logits.double()
    logits = logits - logits.amax(1, keepdim=True)
    spread = float(logits.abs().max())
    if not math.isfinite(spread) or spread == 0.0:
        return chance
    hits = logits.gather(1, labels[:, None]).squeeze(1)

    def slope(scale: float) -> float:
        return float(((scale * logits).softmax(1) * logits).sum(1).mean() - hits.mean())

    # The loss is convex in the scale: bisect its derivative.
    low, high = 0.0, 1.0 / spread
    if slope(low) >= 0.0:
        return chance
    while slope(high) < 0.0 and high * spread < 1e6:
        low, high = high, 4.0 * high
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(middle) < 0.0 else (low, middle)
    return min(chance, float(F.cross_entropy(high * logits, labels)))


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

"""One epoch of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finepruning.errors import TrainingError
from finepruning.pruning import Surgery
from finepruning.training.adversarial import Attack
from finepruning.training.distributed import ALONE, Ranks
from finepruning.training.evaluate import Batches
from finepruning.training.losses import training_loss
from finepruning.training.precision import autocast
from finepruning.training.start import StartingPoint


@dataclass(frozen=True)
class Recipe:
    """What stays the same over a phase; see `finepruning.config.CompressConfig` for the fields."""

    device: torch.device
    precision: str
    max_grad_norm: float = 0.0
    distillation: float = 0.0
    temperature: float = 1.0
    label_smoothing: float = 0.0


def train_epoch(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    recipe: Recipe,
    learning_rate: Callable[[int], float],
    *,
    surgery: Surgery | None = None,
    teacher: nn.Module | None = None,
    start: StartingPoint | None = None,
    attack: Attack | None = None,
    after_step: Callable[[int, float], None] = lambda step, loss: None,
    ranks: Ranks = ALONE,
) -> float:
    """Train for one pass over ``batches``.

    Args:
        batches: with several ranks, the parts of this one.
        learning_rate: of a step, counted from 0 in this epoch.
        surgery: where given, the optimizer updates the weights behind its masks.
        teacher: in eval mode; its logits enter the loss with weight ``recipe.distillation``.
        start: where given, its penalty adds to the gradients after they were limited.
        attack: where given, changes every image against the network of the moment before it is learnt.
        after_step: called with the step and its loss when the weights have been updated.
        ranks: processes that take each step together.

    Returns:
        Mean training loss over the images.

    Raises:
        TrainingError: the loss is not finite; the weights are those before that step.
    """
    module.train()
    total, images = 0.0, 0
    for step, (x, y) in enumerate(batches):
        x = x.to(recipe.device, memory_format=torch.channels_last, non_blocking=True)
        y = y.to(recipe.device, non_blocking=True)
        rate = learning_rate(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if attack is not None:
            x = attack(module, x, y)
        optimizer.zero_grad(set_to_none=True)
        with autocast(recipe.precision, recipe.device), ranks.whole_batch(module):
            logits = module(x)
        loss = training_loss(
            logits.float(),
            y,
            _teach(teacher, x, recipe),
            distillation=recipe.distillation,
            temperature=recipe.temperature,
            label_smoothing=recipe.label_smoothing,
        )
        value = ranks.backward(loss, module, len(y))
        if not math.isfinite(value):
            raise TrainingError(f"the training loss became {value} at step {step}, learning rate {rate:.3g}")
        if recipe.max_grad_norm:
            _clip(module, surgery, recipe.max_grad_norm)
        if start is not None:
            start.add_gradients({} if surgery is None else surgery.mask_of)
        if surgery is None:
            optimizer.step()
        else:
            with surgery.dense():
                optimizer.step()
        total += value * len(y)
        images += len(y)
        after_step(step, value)
    return total / images


def _clip(module: nn.Module, surgery: Surgery | None, max_norm: float) -> None:
    """Scale all gradients so that those of the weights in use have at most the norm ``max_norm``.

    Dropped weights have gradients too, and there are many more of them: counted in the norm, they would
    shrink the steps of the weights that are kept by the root of the density.
    """
    masks = {} if surgery is None else surgery.mask_of
    used = [
        parameter.grad * masks[parameter] if parameter in masks else parameter.grad
        for parameter in module.parameters()
        if parameter.grad is not None
    ]
    nn.utils.clip_grads_with_norm_(module.parameters(), max_norm, nn.utils.get_total_norm(used))


def _teach(teacher: nn.Module | None, x: Tensor, recipe: Recipe) -> Tensor | None:
    if teacher is None or recipe.distillation == 0.0:
        return None
    with torch.no_grad(), autocast(recipe.precision, recipe.device):
        logits: Tensor = teacher(x)
    return logits.float()

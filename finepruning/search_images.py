"""Which images a search looks at: fixed by the run's seed, so that equal trials give equal results."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finepruning.config import CompressConfig
from finepruning.data import Splits
from finepruning.search import LookAhead
from finepruning.seeding import derive_seed

CALIBRATION_BATCHES = 8
FISHER_BATCHES = 16

Batch = tuple[Tensor, Tensor]


def scoring(config: CompressConfig, splits: Splits) -> list[Batch]:
    """The same validation images for every trial of the run, as ready-made batches."""
    size = min(64, config.search_images)
    batches = splits.validation.batches(size, shuffle=derive_seed(config.seed, "search images"))
    return list(itertools.islice(batches, max(1, config.search_images // size)))


def calibration(config: CompressConfig, splits: Splits, module: nn.Module) -> list[Batch]:
    """Training images for BatchNorm statistics; none are needed without such layers."""
    if not any(isinstance(child, _BatchNorm) for child in module.modules()):
        return []
    return _training(config, splits, derive_seed(config.seed, "calibration"), CALIBRATION_BATCHES)


def fisher(config: CompressConfig, splits: Splits, round_: int) -> list[Batch]:
    """Training images for a round's estimate of the Fisher information."""
    return _training(config, splits, derive_seed(config.seed, "fisher", round_), FISHER_BATCHES)


def look_ahead(config: CompressConfig, splits: Splits, round_: int, teacher: nn.Module | None) -> LookAhead:
    """The steps that every candidate of a round takes, on augmented training images."""
    seed = derive_seed(config.seed, "look-ahead", round_)
    return LookAhead(
        _training(config, splits, seed, config.look_ahead, augment=True),
        config.lr if config.prune_lr is None else config.prune_lr,
        config.momentum,
        config.weight_decay,
        seed,
        teacher,
    )


def _training(
    config: CompressConfig, splits: Splits, seed: int, count: int, *, augment: bool = False
) -> list[Batch]:
    batches = splits.train.batches(config.batch_size, shuffle=seed, augment=augment, drop_last=True)
    return list(itertools.islice(batches, count))

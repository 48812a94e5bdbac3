"""Fine-tuning and evaluation."""

from finepruning.training.ema import WeightAverage
from finepruning.training.epoch import Recipe, train_epoch
from finepruning.training.evaluate import Evaluation, evaluate, recalibrated
from finepruning.training.losses import training_loss
from finepruning.training.precision import autocast, resolve_precision
from finepruning.training.schedule import cosine

__all__ = [
    "Evaluation",
    "Recipe",
    "WeightAverage",
    "autocast",
    "cosine",
    "evaluate",
    "recalibrated",
    "resolve_precision",
    "train_epoch",
    "training_loss",
]

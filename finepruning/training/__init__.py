"""Fine-tuning and evaluation."""

from finepruning.training.adversarial import Attack, robust_accuracy
from finepruning.training.dropout import set_dropout
from finepruning.training.ema import WeightAverage
from finepruning.training.ensemble import ensemble
from finepruning.training.epoch import Recipe, train_epoch
from finepruning.training.evaluate import Evaluation, evaluate, recalibrated
from finepruning.training.fisher import sensitivities
from finepruning.training.losses import training_loss
from finepruning.training.optimizer import make_optimizer, remembered_by
from finepruning.training.precision import autocast, resolve_precision
from finepruning.training.schedule import cosine, rise_and_decay
from finepruning.training.start import StartingPoint

__all__ = [
    "Attack",
    "Evaluation",
    "Recipe",
    "StartingPoint",
    "WeightAverage",
    "autocast",
    "cosine",
    "ensemble",
    "evaluate",
    "make_optimizer",
    "recalibrated",
    "remembered_by",
    "resolve_precision",
    "rise_and_decay",
    "robust_accuracy",
    "sensitivities",
    "set_dropout",
    "train_epoch",
    "training_loss",
]

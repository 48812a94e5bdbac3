"""What a trial costs: calibrated validation loss with the masks applied, at once or after a few steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finepruning.pruning import Surgery
from finepruning.search.space import Space
from finepruning.search.trial import Proposal, Trial
from finepruning.training import evaluate, recalibrated, train_epoch
from finepruning.training.epoch import Recipe
from finepruning.training.evaluate import Batches


@dataclass(frozen=True)
class LookAhead:
    """Training that a candidate gets before it is scored: the same batches and dropout for each.

    Attributes:
        batches: one SGD step each. lr, momentum, weight_decay: of these steps. seed: of the dropout.
        teacher: as in `train_epoch`.
    """

    batches: Sequence[tuple[Tensor, Tensor]]
    lr: float
    momentum: float
    weight_decay: float
    seed: int
    teacher: nn.Module | None = None


class Objective:
    """Evaluates proposals on a network, whose masks are left as they were found."""

    def __init__(
        self,
        module: nn.Module,
        surgery: Surgery,
        space: Space,
        validation: Batches,
        calibration: Batches,
        recipe: Recipe,
        look_ahead: LookAhead | None = None,
    ) -> None:
        """``validation`` scores a trial; ``calibration`` re-estimates BatchNorm statistics before it."""
        self._module = module
        self._surgery = surgery
        self._space = space
        self._validation = validation
        self._calibration = calibration
        self._recipe = recipe
        self._look_ahead = look_ahead

    def __call__(self, round_: int, proposal: Proposal, index: int) -> Trial:
        started = time.perf_counter()
        device, precision = self._recipe.device, self._recipe.precision
        with self._unchanged():
            self._surgery.set_masks(self._space.masks(proposal.x))
            density = self._surgery.kept / sum(mask.numel() for mask in self._surgery.masks)
            if self._look_ahead is not None:
                self._train(self._look_ahead)
            with recalibrated(self._module, self._calibration, device, precision):
                result = evaluate(self._module, self._validation, device, precision)
        loss = result.calibrated_loss
        return Trial(
            round=round_,
            index=index,
            kind=proposal.kind,
            x=proposal.x,
            theta=self._space.theta(proposal.x),
            objective=self._space.objective(loss, 1.0 - result.accuracy, density),
            loss=loss,
            accuracy=result.accuracy,
            density=density,
            seconds=time.perf_counter() - started,
        )

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Afterwards the network, the weights behind the masks and the masks are what they were."""
        surgery = self._surgery
        masks, frozen = surgery.masks, surgery.frozen
        state: dict[str, Tensor] = {}
        weights: list[Tensor] = []
        if self._look_ahead is not None:
            state = {name: value.clone() for name, value in self._module.state_dict().items()}
            weights = [weight.clone() for weight in surgery.weights]
        try:
            yield
        finally:
            if state:
                self._module.load_state_dict(state)
            for weight, saved in zip(surgery.weights, weights, strict=False):
                weight.copy_(saved)
            surgery.frozen = frozen
            surgery.set_masks(masks)

    def _train(self, look_ahead: LookAhead) -> None:
        self._surgery.freeze()
        torch.manual_seed(look_ahead.seed)
        optimizer = torch.optim.SGD(
            self._module.parameters(),
            lr=look_ahead.lr,
            momentum=look_ahead.momentum,
            weight_decay=look_ahead.weight_decay,
        )
        train_epoch(
            self._module,
            optimizer,
            look_ahead.batches,
            self._recipe,
            lambda step: look_ahead.lr,
            surgery=self._surgery,
            teacher=look_ahead.teacher,
        )

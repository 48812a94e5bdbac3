"""What a trial costs: calibrated validation loss with the masks applied and no retraining."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import Tensor, nn

from finepruning.pruning import Surgery
from finepruning.search.space import Space
from finepruning.search.trial import Proposal, Trial
from finepruning.training import evaluate, recalibrated
from finepruning.training.epoch import Recipe
from finepruning.training.evaluate import Batches


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
    ) -> None:
        """``validation`` scores a trial; ``calibration`` re-estimates BatchNorm statistics before it."""
        self._module = module
        self._surgery = surgery
        self._space = space
        self._validation = validation
        self._calibration = calibration
        self._recipe = recipe

    def __call__(self, proposal: Proposal, round_: int, index: int) -> Trial:
        started = time.perf_counter()
        found: Sequence[Tensor] = self._surgery.masks
        device, precision = self._recipe.device, self._recipe.precision
        try:
            self._surgery.set_masks(self._space.masks(proposal.x))
            density = self._surgery.kept / sum(mask.numel() for mask in found)
            with recalibrated(self._module, self._calibration, device, precision):
                result = evaluate(self._module, self._validation, device, precision)
        finally:
            self._surgery.set_masks(found)
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

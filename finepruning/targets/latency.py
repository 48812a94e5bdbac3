"""A limit on the milliseconds that the network takes on the run's device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from finepruning.config import CompressConfig
from finepruning.errors import ArgumentError
from finepruning.pruning import prunable_layers
from finepruning.sparse.storage import StoredModel, load
from finepruning.targets.base import CostTarget, Recut
from finepruning.targets.latency_table import LatencyTable

TARGET_LATENCY = "target_latency"
ATTEMPTS = 4
AIM, LOWEST = 0.98, 0.95  # of the limit: what corrections aim at, and from where on none is needed


class LatencyTarget(CostTarget):
    """``--target-latency``: at most so many milliseconds for ``latency_batch`` images.

    The table of costs predicts a candidate's latency. The last round's network is measured, and the limit of
    the prediction moved by the ratio until the measured time meets the request.
    """

    name = TARGET_LATENCY

    def __init__(
        self,
        config: CompressConfig,
        table: LatencyTable,
        capture: Callable[[nn.Module], StoredModel],
        measure: Callable[[StoredModel, int, torch.device], float],
    ) -> None:
        """``capture`` makes of the network what its model directory will hold; ``measure`` times that, for
        so many images on a device, in ms.

        Raises:
            ArgumentError: no density is fast enough.
        """
        assert config.target_latency is not None
        self.asked = config.target_latency
        self._table, self._capture, self._measure = table, capture, measure
        self._batch = config.latency_batch
        self._device = torch.device(config.device or "cpu")
        if table.least > self.asked:
            raise ArgumentError(
                f"target_latency {self.asked:g} ms cannot be reached: with one weight in each layer this "
                f"network takes {table.least:.3g} ms here ({self._place()}; dense {table.dense:.3g} ms); ask "
                "for more, or choose a smaller network, image_size or latency_batch"
            )
        super().__init__(config, table.cost, self.asked)

    def _place(self) -> str:
        threads = torch.get_num_threads()
        where = f"{threads} thread{'s' * (threads != 1)}" if self._device.type == "cpu" else str(self._device)
        return f"batch {self._batch}, {where}"

    def settle(self, module: nn.Module, recut: Recut) -> None:
        """Measure the network with these masks; where it is off, move the limit of the prediction."""
        layers = prunable_layers(module).values()
        limit = float(self.state["limit"])
        tried: list[tuple[float, float, float]] = []  # limit, predicted, measured
        while True:
            measured = self._measure(self._capture(module), self._batch, self._device)
            counts = np.array([[int(torch.count_nonzero(weight))] for weight in layers])
            tried.append((limit, float(self._table.cost(counts)[0]), measured))
            dense = bool((counts[:, 0] == [weight.numel() for weight in layers]).all())
            if LOWEST <= measured / self.asked <= 1.0 or (dense and measured <= self.asked):
                break
            if len(tried) > ATTEMPTS:
                break
            limit = max(self._table.least, _corrected(tried, AIM * self.asked))
            self.state["limit"] = limit
            recut(self.keep)
        # The best: within the request if one was, and near it.
        chosen = min(tried, key=lambda each: (each[2] > self.asked, abs(each[2] - self.asked)))
        if chosen is not tried[-1]:
            self.state["limit"] = chosen[0]
            recut(self.keep)
        self.state |= {"predicted": chosen[1], "measured": chosen[2], "corrections": len(tried) - 1}

    def outcome(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """The written model is measured once more."""
        stored = load(Path(report["config"]["out"]) / "model")
        return {
            "name": self.name,
            "asked": self.asked,
            "reached": self._measure(stored, self._batch, self._device),
            "batch": self._batch,
            "threads": torch.get_num_threads(),
            "device": str(self._device),
            "predicted": self.state.get("predicted"),
            "corrections": self.state.get("corrections"),
            "least": self._table.least,
            "dense": self._table.dense,
            "dense_torch": self._table.pytorch,
            "dense_engine": self._table.network[-1],
            "table": self._table.to_json(),
        }


def _corrected(tried: list[tuple[float, float, float]], aim: float) -> float:
    """The limit that should measure ``aim``: in proportion at first, then along the last two (a secant)."""
    limit, _, measured = tried[-1]
    if len(tried) > 1:
        before, _, measured_before = tried[-2]
        slope = (measured - measured_before) / (limit - before) if limit != before else 0.0
        if 0.2 < slope < 5.0:  # noise can turn it round
            return limit + (aim - measured) / slope
    return limit * aim / measured

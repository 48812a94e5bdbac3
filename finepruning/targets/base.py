"""What a run is to end with, and how much each of its rounds may keep on the way there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from finepruning.config import CompressConfig
from finepruning.phases import budget
from finepruning.pruning import Keep, counts_of, exact_cut, most_within, weights_to_keep
from finepruning.pruning.budget import Cost

Recut = Callable[[Keep], None]
"""Prunes the network anew, under the theta of the round."""


class Target(Protocol):
    """Decides how much each round keeps.

    Attributes:
        name: the option that asks for it. asked: its value.
        start: density before the first round; 1 unless the run starts from another.
        state: what a resumed run has to know of the current round; JSON, replaced when a run is taken up.
    """

    name: str
    asked: float
    start: float
    state: dict[str, Any]

    def begin(self, number: int, saliency: Sequence[Tensor]) -> None:
        """Round ``number`` (from 1) begins with weights worth so much; sets `keep` and `density`."""
        ...

    @property
    def keep(self) -> Keep:
        """What a cut in the current round keeps."""
        ...

    @property
    def density(self) -> float:
        """The kept share that the current round goes by."""
        ...

    def settle(self, module: nn.Module, recut: Recut) -> None:
        """The last round's masks are chosen: measure ``module`` with them and cut again where it is off."""
        ...

    def judge(self, number: int, accuracy: float, density: float) -> bool | None:
        """Round ``number`` (0: the dense phase; one more than there are: the final phase) has ended.

        Args:
            accuracy: on validation images. density: of the masks.

        Returns:
            True to remember this state, False to go back to the one remembered, None for neither.
        """
        ...

    def trim(self, module: nn.Module) -> None:
        """Training has ended: drop what is still too much."""
        ...

    def outcome(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """For the finished report: ``name``, ``asked``, what was ``reached``, and what else is known."""
        ...


class CountTarget:
    """What targets share whose rounds keep a number of weights: ``begin`` notes it, and its density."""

    start = 1.0
    state: dict[str, Any]

    @property
    def keep(self) -> Keep:
        return int(self.state["keep"])

    @property
    def density(self) -> float:
        return float(self.state["density"])

    def settle(self, module: nn.Module, recut: Recut) -> None:
        pass

    def judge(self, number: int, accuracy: float, density: float) -> bool | None:
        return None

    def trim(self, module: nn.Module) -> None:
        pass


class DensityTarget(CountTarget):
    """A kept share of all prunable weights, exactly."""

    name = "target_density"

    def __init__(self, config: CompressConfig, layers: Mapping[str, nn.Parameter]) -> None:
        """Raises ArgumentError where that is fewer than one weight a layer."""
        assert config.target_density is not None
        self.asked = config.target_density
        self.state: dict[str, Any] = {}
        self._config = config
        self._layers = layers
        weights_to_keep(layers, self.asked)

    def begin(self, number: int, saliency: Sequence[Tensor]) -> None:
        density = budget(self._config, number, self.asked, self.start)
        keep = weights_to_keep(self._layers, max(density, self.asked))
        self.state |= {"density": density, "keep": keep}

    def outcome(self, report: Mapping[str, Any]) -> dict[str, Any]:
        return {"name": self.name, "asked": self.asked, "reached": report["density"]}


class CostTarget:
    """A limit on what the network costs, in bytes or milliseconds, whatever layers its weights lie in.

    A round's density falls as in a run with a target density: the target is the density at which global
    magnitude pruning of the weights of the moment costs the limit. What that density costs is then the limit
    of the round, under which every candidate keeps as many weights as it can; the last round's is the limit
    asked for.
    """

    name: str
    asked: float
    start = 1.0

    def __init__(self, config: CompressConfig, cost: Cost, limit: float) -> None:
        self.state: dict[str, Any] = {}
        self._config = config
        self._cost = cost
        self._limit = limit  # in the units of the cost, for the last round

    def begin(self, number: int, saliency: Sequence[Tensor]) -> None:
        total = sum(weight.numel() for weight in saliency)
        density = most_within(saliency, self._cost, self._limit) / total
        limit, most = self._limit, total
        if number < self._config.rounds:
            density = budget(self._config, number, density, self.start)
            counts = counts_of(exact_cut(saliency, max(len(saliency), round(density * total))))
            limit = max(limit, float(self._cost(counts[:, None])[0]))
            sizes = np.array([[weight.numel()] for weight in saliency])
            if float(self._cost(sizes)[0]) <= limit:  # nearly dense costs as much as dense
                most = int(counts.sum())
        self.state |= {"density": density, "limit": limit, "most": most}

    @property
    def keep(self) -> Keep:
        limit, most = float(self.state["limit"]), int(self.state["most"])
        return lambda scores: min(most, most_within(scores, self._cost, limit))

    @property
    def density(self) -> float:
        return float(self.state["density"])

    def judge(self, number: int, accuracy: float, density: float) -> bool | None:
        return None

    def trim(self, module: nn.Module) -> None:
        pass

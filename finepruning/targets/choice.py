"""From the options to the target of a run."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from finepruning.config import CompressConfig
from finepruning.pruning import prunable_layers
from finepruning.sparse.storage import StoredModel
from finepruning.targets.base import DensityTarget, Target
from finepruning.targets.file_size import FileSizeTarget


def choose(config: CompressConfig, module: nn.Module, capture: Callable[[nn.Module], StoredModel]) -> Target:
    """The target that ``config`` (resolved) asks for.

    Args:
        module: the network before training. capture: makes of it what the run's model directory will hold.

    Raises:
        ArgumentError: the target cannot be reached with this network.
    """
    layers = prunable_layers(module)
    if config.target_bytes is not None:
        return FileSizeTarget(config, layers, capture(module), capture)
    return DensityTarget(config, layers)

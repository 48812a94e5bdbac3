"""From the options to the target of a run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from finepruning.config import CompressConfig
from finepruning.pruning import prunable_layers
from finepruning.sparse.storage import StoredModel
from finepruning.targets.accuracy import AccuracyTarget
from finepruning.targets.base import DensityTarget, Target
from finepruning.targets.file_size import FileSizeTarget
from finepruning.targets.latency import LatencyTarget
from finepruning.targets.latency_table import latency_table, network_ms


def choose(
    config: CompressConfig,
    module: nn.Module,
    capture: Callable[[nn.Module], StoredModel],
    say: Callable[[str], None] = lambda text: None,
) -> Target:
    """The target that ``config`` (resolved) asks for.

    Args:
        module: the network before training. capture: makes of it what the run's model directory will hold.
        say: is told before anything that takes long.

    Raises:
        ArgumentError: the target cannot be reached with this network.
    """
    layers = prunable_layers(module)
    if config.target_bytes is not None:
        return FileSizeTarget(config, layers, capture(module), capture)
    if config.max_accuracy_drop is not None:
        return AccuracyTarget(config, layers)
    if config.target_latency is not None:
        sizes = {name: weight.numel() for name, weight in layers.items()}
        device = torch.device(config.device or "cpu")
        table = latency_table(capture(module), sizes, config.latency_batch, device, say)
        return LatencyTarget(config, table, capture, network_ms)
    return DensityTarget(config, layers)

"""What a run is to end with: a density, or a limit on what the network costs."""

from finepruning.targets.accuracy import AccuracyTarget
from finepruning.targets.base import DensityTarget, Recut, Target
from finepruning.targets.choice import choose
from finepruning.targets.file_size import FileSizeTarget
from finepruning.targets.latency import LatencyTarget

__all__ = ["AccuracyTarget", "DensityTarget", "FileSizeTarget", "LatencyTarget", "Recut", "Target", "choose"]

"""Masks, surgery and allocation of the weights that remain."""

from finepruning.pruning.allocation import ALLOCATION_RULES, theta_for
from finepruning.pruning.budget import Cost, Keep, counts_of, kept, most_within
from finepruning.pruning.cut import exact_cut, scaled_magnitudes
from finepruning.pruning.layers import prunable_layers, weights_to_keep
from finepruning.pruning.surgery import Surgery, update_probability

__all__ = [
    "ALLOCATION_RULES",
    "Cost",
    "Keep",
    "Surgery",
    "counts_of",
    "exact_cut",
    "kept",
    "most_within",
    "prunable_layers",
    "scaled_magnitudes",
    "theta_for",
    "update_probability",
    "weights_to_keep",
]

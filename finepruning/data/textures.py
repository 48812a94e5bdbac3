"""The built-in data: procedural textures."""

from __future__ import annotations

from torch import Tensor


def demo_set(side: int) -> tuple[Tensor, list[int], list[str], tuple[str, ...]]:
    """Images, labels, splits and class names of the demonstration set."""
    raise NotImplementedError

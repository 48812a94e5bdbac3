"""What the texture patterns are made of: repetition, reproducible noise, scattered points, tiles.

A pattern takes ``u`` and ``v``, float32 [h, w] coordinates in which its period is about 1, and a seeded
generator for its own freedoms (line width, phase, shade of single tiles). It returns float32 [h, w] in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
Random = np.random.Generator
Pattern = Callable[[Field, Field, Random], Field]

TAU = 2 * np.pi


def fraction(x: Field) -> Field:
    return x - np.floor(x)


def lattice(i: Field, j: Field, salt: int) -> Field:
    """A reproducible random number in 0..1 for every integer point."""
    h = i.astype(np.int64) * 374761393 + j.astype(np.int64) * 668265263 + salt * 2147483647
    h = (h ^ (h >> 13)) * 1274126177
    return (((h ^ (h >> 16)) & 0xFFFF) / 65535.0).astype(np.float32)


def new_salt(random: Random) -> int:
    return int(random.integers(1 << 20))


def smooth_noise(u: Field, v: Field, salt: int) -> Field:
    """Value noise: random numbers on the lattice, smoothly interpolated."""
    i, j = np.floor(u), np.floor(v)
    x, y = u - i, v - j
    x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
    top = lattice(i, j, salt) * (1 - x) + lattice(i + 1, j, salt) * x
    bottom = lattice(i, j + 1, salt) * (1 - x) + lattice(i + 1, j + 1, salt) * x
    return top * (1 - y) + bottom * y


def octaves(u: Field, v: Field, salt: int, count: int) -> Field:
    total = np.zeros_like(u)
    for octave in range(count):
        total += smooth_noise(u * 2**octave, v * 2**octave, salt + octave) / 2 ** (octave + 1)
    return total / (1 - 0.5**count)


def scatter(u: Field, v: Field, salt: int) -> tuple[Field, Field, Field]:
    """Distance to the nearest and second nearest of randomly placed points, and a shade of the nearest."""
    i, j = np.floor(u), np.floor(v)
    first = np.full_like(u, 9)
    second = np.full_like(u, 9)
    shade = np.zeros_like(u)
    for di in (-1, 0, 1):
        for dj in (-1, 0, 1):
            x, y = i + di, j + dj
            distance = np.hypot(x + lattice(x, y, salt) - u, y + lattice(x, y, salt + 1) - v)
            second = np.minimum(second, np.maximum(first, distance))
            shade = np.where(distance < first, lattice(x, y, salt + 2), shade)
            first = np.minimum(first, distance)
    return first, second, shade


def mask(condition: NDArray[np.bool_]) -> Field:
    return condition.astype(np.float32)


def tiles(x: Field, y: Field, width: float, height: float, shade: Field, random: Random) -> Field:
    """Tiles of the given size around local coordinates, with a joint and a shade of their own."""
    joint = random.uniform(0.08, 0.2)
    inside = (x > joint / 2) & (x < width - joint / 2) & (y > joint / 2) & (y < height - joint / 2)
    return np.where(inside, 0.45 + 0.55 * shade * random.uniform(0.3, 1.0), 0.0).astype(np.float32)

"""The specialised pattern classes, masonry and cloth, that the demonstration learns to tell apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finepruning.data.texture_fields import Field, Pattern, Random, fraction, lattice, mask, new_salt, tiles


def bricks(u: Field, v: Field, random: Random) -> Field:
    """Running bond: bricks twice as long as high, each row moved by half a brick."""
    row = np.floor(v)
    along = u / 2 + 0.5 * row
    shade = lattice(np.floor(along), row, new_salt(random))
    return tiles(2 * fraction(along), v - row, 2, 1, shade, random)


def herringbone(u: Field, v: Field, random: Random) -> Field:
    i, j = np.floor(u), np.floor(v)
    step = (i - j) % 4
    x, y = u - i, v - j
    lying = step < 2
    along = np.where(lying, x + (step == 1), y + (step == 2))
    across = np.where(lying, y, x)
    shade = lattice(i - (step == 1), j - (step == 2), new_salt(random))
    return tiles(along, across, 2, 1, shade, random)


def hexagons(u: Field, v: Field, random: Random) -> Field:
    height = np.float32(np.sqrt(3))
    centres = []
    for offset in (0.0, 0.5):
        i, j = np.round(u - offset), np.round(v / height - offset)
        centres.append((i + offset, (j + offset) * height))
    (xa, ya), (xb, yb) = centres
    nearer = np.hypot(u - xa, v - ya) < np.hypot(u - xb, v - yb)
    x, y = np.where(nearer, xa, xb), np.where(nearer, ya, yb)
    dx, dy = np.abs(u - x), np.abs(v - y)
    edge = 0.5 - np.maximum(dx, dx / 2 + dy * height / 2)
    shade = lattice(np.round(2 * x), np.round(2 * y / height), new_salt(random))
    inside = edge > random.uniform(0.04, 0.09)
    return np.where(inside, 0.45 + 0.55 * shade * random.uniform(0.3, 1.0), 0.0).astype(np.float32)


def scales(u: Field, v: Field, random: Random) -> Field:
    """Overlapping round shingles: of the discs that cover a point, the lowest row lies on top."""
    width = random.uniform(0.06, 0.14)
    value = np.zeros_like(u)
    row = np.floor(v * 2)
    for below in (1, 0, -1):
        own = row + below
        shift = 0.5 * (own % 2)
        centre = np.round(u - shift) + shift
        radius = np.hypot(u - centre, v - own / 2)
        value = np.where(
            radius < 0.56, np.where(radius > 0.56 - width, 0.0, 0.5 + 0.5 * radius / 0.56), value
        )
    return value.astype(np.float32)


def plain_weave(u: Field, v: Field, random: Random) -> Field:
    i, j = np.floor(u * 2), np.floor(v * 2)
    return _threads(u * 2, v * 2, (i + j) % 2 == 0, random)


def twill_weave(u: Field, v: Field, random: Random) -> Field:
    i, j = np.floor(u * 2), np.floor(v * 2)
    return _threads(u * 2, v * 2, (i + j) % 4 < 2, random)


def _threads(u: Field, v: Field, warp_on_top: NDArray[np.bool_], random: Random) -> Field:
    """Round threads, lit from above, in two shades."""
    across = np.where(warp_on_top, fraction(u), fraction(v))
    bulge = 1 - (2 * across - 1) ** 2
    shade = np.where(warp_on_top, 1.0, random.uniform(0.2, 0.9))
    return (bulge * shade).astype(np.float32)


def houndstooth(u: Field, v: Field, random: Random) -> Field:
    i, j = np.floor(u * 3), np.floor(v * 3)
    warp_on_top = (i + j) % 4 < 2
    return mask(np.where(warp_on_top, i % 8 < 4, j % 8 < 4))


def argyle(u: Field, v: Field, random: Random) -> Field:
    a, b = u / 2 + v / 3, u / 2 - v / 3
    diamonds = (np.floor(a) + np.floor(b)) % 2
    width = random.uniform(0.06, 0.14)
    lines = (fraction(a + 0.5) < width) | (fraction(b + 0.5) < width)
    return np.where(lines, 0.5, diamonds).astype(np.float32)


TILINGS: dict[str, Pattern] = {
    "bricks": bricks,
    "herringbone": herringbone,
    "hexagons": hexagons,
    "scales": scales,
    "plain weave": plain_weave,
    "twill weave": twill_weave,
    "houndstooth": houndstooth,
    "argyle": argyle,
}
"""Classes of the demonstration; none of them is among the broad ones."""

"""The broad pattern classes, on which the built-in network's weights are pretrained."""

from __future__ import annotations

import numpy as np

from finepruning.data.texture_fields import (
    TAU,
    Field,
    Pattern,
    Random,
    fraction,
    lattice,
    mask,
    new_salt,
    octaves,
    scatter,
    smooth_noise,
)


def stripes(u: Field, v: Field, random: Random) -> Field:
    return mask(fraction(u) < random.uniform(0.25, 0.75))


def waves(u: Field, v: Field, random: Random) -> Field:
    bend = random.uniform(0.2, 0.45) * np.sin(TAU * v * random.uniform(0.3, 0.6))
    return mask(fraction(u + bend) < random.uniform(0.3, 0.7))


def zigzag(u: Field, v: Field, random: Random) -> Field:
    bend = random.uniform(0.6, 1.2) * np.abs(fraction(v * random.uniform(0.4, 0.7)) - 0.5)
    return mask(fraction(u + bend) < random.uniform(0.3, 0.7))


def ramps(u: Field, v: Field, random: Random) -> Field:
    return fraction(u * random.uniform(0.5, 1.0))


def checks(u: Field, v: Field, random: Random) -> Field:
    return (np.floor(u) + np.floor(v)) % 2


def grid(u: Field, v: Field, random: Random) -> Field:
    width = random.uniform(0.12, 0.3)
    return mask((fraction(u) < width) | (fraction(v) < width))


def hatch(u: Field, v: Field, random: Random) -> Field:
    slope = random.uniform(0.5, 1.2)
    width = random.uniform(0.12, 0.3)
    return (mask(fraction(u + slope * v) < width) + mask(fraction(u - slope * v) < width)) / 2


def dots(u: Field, v: Field, random: Random) -> Field:
    return mask(np.hypot(fraction(u) - 0.5, fraction(v) - 0.5) < random.uniform(0.2, 0.42))


def staggered_dots(u: Field, v: Field, random: Random) -> Field:
    u = u + 0.5 * (np.floor(v) % 2)
    return mask(np.hypot(fraction(u) - 0.5, fraction(v) - 0.5) < random.uniform(0.2, 0.42))


def circles(u: Field, v: Field, random: Random) -> Field:
    radius = np.hypot(fraction(u * 0.7) - 0.5, fraction(v * 0.7) - 0.5)
    return mask(np.abs(radius - random.uniform(0.25, 0.4)) < random.uniform(0.05, 0.1))


def crosses(u: Field, v: Field, random: Random) -> Field:
    x, y = np.abs(fraction(u) - 0.5), np.abs(fraction(v) - 0.5)
    arm, width = random.uniform(0.3, 0.42), random.uniform(0.07, 0.13)
    return mask(((x < arm) & (y < width)) | ((y < arm) & (x < width)))


def triangles(u: Field, v: Field, random: Random) -> Field:
    row = np.floor(v)
    return mask(fraction(u + 0.5 * (row % 2)) + fraction(v) < 1)


def nested_squares(u: Field, v: Field, random: Random) -> Field:
    edge = np.maximum(np.abs(fraction(u / 2) - 0.5), np.abs(fraction(v / 2) - 0.5))
    return mask(fraction(edge * random.uniform(4, 7)) < 0.5)


def rings(u: Field, v: Field, random: Random) -> Field:
    return mask(fraction(np.hypot(u - u.mean(), v - v.mean())) < random.uniform(0.3, 0.7))


def spirals(u: Field, v: Field, random: Random) -> Field:
    x, y = u - u.mean(), v - v.mean()
    turns = np.arctan2(y, x) / TAU * random.choice([-2, -1, 1, 2])
    return mask(fraction(np.hypot(x, y) + turns) < random.uniform(0.3, 0.7))


def rays(u: Field, v: Field, random: Random) -> Field:
    turn = np.arctan2(v - v.mean(), u - u.mean()) / TAU
    return mask(fraction(turn * random.integers(6, 16) + random.random()) < 0.5)


def cells(u: Field, v: Field, random: Random) -> Field:
    return scatter(u, v, new_salt(random))[2]


def cracks(u: Field, v: Field, random: Random) -> Field:
    first, second, _ = scatter(u, v, new_salt(random))
    return mask(second - first < random.uniform(0.06, 0.15))


def bubbles(u: Field, v: Field, random: Random) -> Field:
    first, _, shade = scatter(u, v, new_salt(random))
    return mask(first < 0.15 + 0.35 * shade)


def clouds(u: Field, v: Field, random: Random) -> Field:
    return octaves(u * 0.5, v * 0.5, new_salt(random), 4)


def blobs(u: Field, v: Field, random: Random) -> Field:
    return mask(smooth_noise(u, v, new_salt(random)) > random.uniform(0.4, 0.6))


def marble(u: Field, v: Field, random: Random) -> Field:
    bend = octaves(u * 0.5, v * 0.5, new_salt(random), 3) * random.uniform(1.5, 3)
    return (0.5 + 0.5 * np.sin(TAU * (u * 0.5 + bend))).astype(np.float32)


def wood(u: Field, v: Field, random: Random) -> Field:
    bend = smooth_noise(u * 0.3, v * 0.08, new_salt(random)) * random.uniform(2, 4)
    return fraction(u * 0.6 + bend)


def grain(u: Field, v: Field, random: Random) -> Field:
    return lattice(np.floor(u * 4), np.floor(v * 4), new_salt(random))


def confetti(u: Field, v: Field, random: Random) -> Field:
    i, j = np.floor(u * 2), np.floor(v * 2)
    return lattice(i, j, new_salt(random)) * mask(lattice(i, j, new_salt(random)) > 0.5)


BROAD: dict[str, Pattern] = {
    "stripes": stripes,
    "waves": waves,
    "zigzag": zigzag,
    "ramps": ramps,
    "checks": checks,
    "grid": grid,
    "hatch": hatch,
    "dots": dots,
    "staggered dots": staggered_dots,
    "circles": circles,
    "crosses": crosses,
    "triangles": triangles,
    "nested squares": nested_squares,
    "rings": rings,
    "spirals": spirals,
    "rays": rays,
    "cells": cells,
    "cracks": cracks,
    "bubbles": bubbles,
    "clouds": clouds,
    "blobs": blobs,
    "marble": marble,
    "wood": wood,
    "grain": grain,
    "confetti": confetti,
}
"""Pretraining classes."""

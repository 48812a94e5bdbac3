"""The built-in data: procedural textures, drawn in code from a seed.

Each image is one pattern in random scale, turn, stretch, bend, colours, light, blur and noise. Image k of a
class depends on (seed, class, k) alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from finepruning.data.texture_fields import Field, Pattern, Random
from finepruning.data.texture_tilings import TILINGS

SIDE = 64
"""Pixels along each side of a drawn image."""

DEMO_IMAGES = {"train": 150, "validation": 30, "test": 60}
"""Images of each class in the splits of the demonstration set."""

_DEMO_SEED = 20170904
_DEMO_TURN = np.pi / 8
_PERIOD = (7.0, 16.0)
_CONTRAST = (0.2, 0.6)
_NOISE = (0.01, 0.07)
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def demo_set(side: int) -> tuple[Tensor, list[int], list[str], tuple[str, ...]]:
    """The demonstration set: the same images every time.

    Args:
        side: pixels along each side; images are drawn at `SIDE` and resized.

    Returns:
        Images uint8 [n, 3, side, side]; and for each image its class and its split; and the class names.
    """
    pixels, labels = draw_set(TILINGS, sum(DEMO_IMAGES.values()), _DEMO_SEED, _DEMO_TURN)
    if side != SIDE:
        resized = F.interpolate(
            pixels.float(), (side, side), mode="bilinear", antialias=True, align_corners=False
        )
        pixels = resized.round().clamp(0, 255).to(torch.uint8)
    of_class = [split for split, count in DEMO_IMAGES.items() for _ in range(count)]
    return pixels, labels, of_class * len(TILINGS), tuple(TILINGS)


def draw_set(
    patterns: Mapping[str, Pattern], images: int, seed: int, max_turn: float = np.pi
) -> tuple[Tensor, list[int]]:
    """Draw ``images`` of each pattern: uint8 [n, 3, SIDE, SIDE] sorted by class, and the class of each."""
    pixels = np.empty((len(patterns) * images, 3, SIDE, SIDE), dtype=np.uint8)
    for label, pattern in enumerate(patterns.values()):
        for number in range(images):
            random = np.random.default_rng((seed, label, number))
            pixels[label * images + number] = draw(pattern, random, max_turn)
    return torch.from_numpy(pixels), [label for label in range(len(patterns)) for _ in range(images)]


def draw(pattern: Pattern, random: Random, max_turn: float = np.pi) -> NDArray[np.uint8]:
    """Draw one image, uint8 [3, SIDE, SIDE]."""
    u, v = _coordinates(random, max_turn)
    field = pattern(u, v, random)
    field = _blur(field, random.uniform(0, 0.5))
    dark, light = _palette(random)
    image = dark[:, None, None] + (light - dark)[:, None, None] * field
    image *= _light(random)
    image += random.normal(0, random.uniform(*_NOISE), (1, SIDE, SIDE)).astype(np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _coordinates(random: Random, max_turn: float) -> tuple[Field, Field]:
    """Pattern coordinates of every pixel: scaled, stretched, turned, moved and slightly bent."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) - SIDE / 2
    for _ in range(2):
        bend = random.uniform(0, 0.8)
        turn = random.uniform(0, 2 * np.pi)
        wave = np.sin(
            (x * np.cos(turn) + y * np.sin(turn)) * random.uniform(0.05, 0.15) + random.uniform(0, 6)
        )
        x, y = x + (bend * wave).astype(np.float32), y - (bend * wave).astype(np.float32)
    period = np.exp(random.uniform(*np.log(_PERIOD)))
    stretch = np.exp(random.uniform(-0.15, 0.15))
    turn = random.uniform(-max_turn, max_turn)
    u = (x * np.cos(turn) - y * np.sin(turn)) * stretch / period + random.uniform(0, 8)
    v = (x * np.sin(turn) + y * np.cos(turn)) / stretch / period + random.uniform(0, 8)
    return u.astype(np.float32), v.astype(np.float32)


def _palette(random: Random) -> tuple[Field, Field]:
    """Two colours, RGB in 0..1, whose brightness differs by the image's contrast."""
    first = random.uniform(0.15, 0.85, 3).astype(np.float32)
    second = random.uniform(0.15, 0.85, 3).astype(np.float32)
    contrast = random.uniform(*_CONTRAST) * random.choice([-1, 1])
    if not 0.1 < first @ _LUMA + contrast < 0.9:
        contrast = -contrast
    second += first @ _LUMA + contrast - second @ _LUMA
    return first, second


def _light(random: Random) -> Field:
    """Uneven light: a linear fall-off across the image."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    turn = random.uniform(0, 2 * np.pi)
    light: Field = (1 + random.uniform(0, 0.35) * (x * np.cos(turn) + y * np.sin(turn))).astype(np.float32)
    return light


def _blur(field: Field, amount: float) -> Field:
    """Mix each pixel with its neighbours, along both axes."""
    for axis in (0, 1):
        sides = np.roll(field, 1, axis) + np.roll(field, -1, axis)
        field = (field + amount * sides) / (1 + 2 * amount)
    return field.astype(np.float32)

"""Random changes of training images, vectorised over the batch and fixed by a generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from finepruning.config import AUGMENTATIONS
from finepruning.errors import ArgumentError

_CROP_AREA = (0.4, 1.0)
_CROP_ASPECT = (3 / 4, 4 / 3)


def check_augmentation(name: str) -> str:
    """Return ``name`` if it is one of `AUGMENTATIONS`; raise ArgumentError otherwise."""
    if name not in AUGMENTATIONS:
        raise ArgumentError(f"augmentation: {name!r} is not one of {', '.join(AUGMENTATIONS)}")
    return name


def margin(name: str, image_size: int) -> int:
    """Side in pixels at which images are kept for this augmentation: crops need more than they put out."""
    return round(image_size * 8 / 7) if name == "crop" else image_size


def augment(
    pixels: Tensor, name: str, size: int, generator: Generator, place: tuple[int, int] | None = None
) -> Tensor:
    """Augment a batch.

    Args:
        pixels: uint8 [b, 3, r, r] with r >= size; not modified.
        place: where the images are some of a larger batch, the first one's position in it and its size: they
            come out as they would within it.
        name: one of `AUGMENTATIONS`.
        size: side of the output in pixels.
        generator: decides every random choice.

    Returns:
        [b, 3, size, size], values 0..255; float32 for "crop", else uint8.
    """
    first, total = place or (0, len(pixels))
    part = slice(first, first + len(pixels))
    if name == "crop":
        return _random_crop(pixels, size, torch.rand((5, total), generator=generator)[:, part])
    if name == "flip":
        flipped = (torch.rand(total, generator=generator) < 0.5)[part]
        return torch.where(flipped.view(-1, 1, 1, 1), pixels.flip(-1), pixels)
    if name == "dihedral":
        return _dihedral(pixels, torch.randint(8, (total,), generator=generator)[part])
    return pixels


def _dihedral(pixels: Tensor, choice: Tensor) -> Tensor:
    """Each image by one of the 8 symmetries of the square, int64 [b] in 0..7."""
    result = torch.empty_like(pixels)
    for symmetry in range(8):
        rows = (choice == symmetry).nonzero().squeeze(1)
        if len(rows):
            turned = torch.rot90(pixels[rows], symmetry % 4, (-2, -1))
            result[rows] = turned.flip(-1) if symmetry >= 4 else turned
    return result


def _random_crop(pixels: Tensor, size: int, uniform: Tensor) -> Tensor:
    """Area, aspect, place and mirror image by ``uniform`` [5, b] in 0..1, as one affine resampling."""
    area = _CROP_AREA[0] + (_CROP_AREA[1] - _CROP_AREA[0]) * uniform[0]
    low, high = (math.log(ratio) for ratio in _CROP_ASPECT)
    aspect = torch.exp(low + (high - low) * uniform[1])
    width = (area * aspect).sqrt().clamp(max=1.0)
    height = (area / aspect).sqrt().clamp(max=1.0)
    mirror = torch.where(uniform[4] < 0.5, -1.0, 1.0)
    transform = torch.zeros(len(pixels), 2, 3)
    transform[:, 0, 0] = width * mirror
    transform[:, 1, 1] = height
    transform[:, 0, 2] = (1 - width) * (2 * uniform[2] - 1)
    transform[:, 1, 2] = (1 - height) * (2 * uniform[3] - 1)
    grid = F.affine_grid(transform, [len(pixels), 3, size, size], align_corners=False)
    return F.grid_sample(pixels.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)

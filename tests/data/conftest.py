"""Small image folders, made for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[..., Path]


def write_image(path: Path, seed: int, size: tuple[int, int] = (20, 24)) -> None:
    """An image of random pixels, unlike that of any other seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Makes ``tmp_path/images`` with the given number of images in each "class" or "split/class"."""

    def make(**counts: int) -> Path:
        root = tmp_path / "images"
        for folder_number, (folder, count) in enumerate(counts.items()):
            for number in range(count):
                name = root / folder.replace("__", "/") / f"{number:03d}.png"
                write_image(name, 1000 * folder_number + number)
        return root

    return make

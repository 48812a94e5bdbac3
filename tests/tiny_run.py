"""A compression run small enough for tests: 48 generated images, a network of a few hundred weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from finepruning import compress as module
from finepruning import models
from finepruning.config import CompressConfig

SIZE = 16
CLASSES = ("bright", "dark", "striped")


def make_images(folder: Path) -> None:
    """An ImageFolder of three classes that differ in brightness and pattern."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(16):
            pixels = generator.integers(0, 60, (SIZE, SIZE, 3))
            if label != 1:
                pixels[:: 1 + label] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")


def tiny_network(
    name: str | None, num_classes: int, weights: str, seed: int, image_size: int | None = None
) -> models.Network:
    """Stands in for `finepruning.models.create`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.MaxPool2d(4),
            nn.Dropout(0.1),
            nn.Flatten(),
            nn.Linear(96, num_classes),
        )
    return models.Network(body, "tiny", SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def use_tiny_network(patch: Any) -> None:
    """Let compress build the tiny network; ``patch(object, name, value)`` is like monkeypatch.setattr."""
    spec = models.InputSpec(SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    patch(models, "create", tiny_network)
    patch(models, "resolve", lambda name: "tiny")
    patch(models, "input_spec", lambda name: spec)


@contextmanager
def tiny_runs() -> Iterator[None]:
    """Inside, compress builds the tiny network and one thread computes."""
    patch = pytest.MonkeyPatch()
    use_tiny_network(patch.setattr)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        patch.undo()


def tiny_config(data: Path, out: Path, **options: Any) -> CompressConfig:
    """Two rounds of three trials and two epochs each, on the CPU in float32.

    Everything that a checkpoint has to keep is on.
    """
    values: dict[str, Any] = {
        "data": str(data),
        "out": str(out),
        "target_density": 0.2,
        "dense_epochs": 2,
        "rounds": 2,
        "trials": 5,
        "epochs": 2,
        "final_epochs": 2,
        "splicing": True,
        "saliency": "fisher",
        "l2_sp": 1e-3,
        "prune_dropout": None,
        "ema": 0.8,
        "batch_size": 8,
        "distillation": 0.3,
        "precision": "float32",
        "device": "cpu",
    }
    return CompressConfig(**{**values, **options})


def run_tiny(data: Path, out: Path, *, resume: bool, **options: Any) -> None:
    """A run of the tiny network in a process of its own, whose `finepruning.models` is changed for good."""
    use_tiny_network(setattr)
    if resume:
        module.compress(CompressConfig(), resume=out)
    else:
        module.compress(tiny_config(data, out, **options))

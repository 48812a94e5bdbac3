"""The options of a compression run: one name each, the same on the command line, in files and in reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CompressConfig:
    """Everything that decides the result of `finepruning compress`.

    Attributes:
        data: a folder of images, ``torchvision:NAME``, or None for the built-in textures.
        model: a torchvision classifier by name, ``timm:NAME``, or None for the built-in network.
        weights: "default" (the model's published weights), "none", or a path to a safetensors or torch file.
        target_density: kept fraction of all prunable weights, in (0, 1].
        rounds: rounds of (search, fine-tuning). trials: evaluations per search. epochs: epochs per round.
        dense_epochs: epochs of dense fine-tuning before the first round.
        final_epochs: epochs after the last round with frozen masks; None for the same as ``epochs``.
        search: "budget", "paper" or "random".
        batch_size: images per step. lr: peak learning rate (SGD, momentum 0.9). weight_decay: L2 factor.
        image_size: side of the square input in pixels; None for the model's own.
        device: "cpu", "cuda" or "cuda:N"; None picks cuda where there is one.
        seed: seeds the splits, the augmentation, the search and the weights.
        workers: processes that load images. out: run directory; None for ``runs/<model>-<time>``.
    """

    data: str | None = None
    model: str | None = None
    weights: str = "default"
    target_density: float = 0.1
    rounds: int = 4
    trials: int = 16
    epochs: int = 3
    dense_epochs: int = 6
    final_epochs: int | None = None
    search: str = "budget"
    batch_size: int = 32
    lr: float = 0.01
    weight_decay: float = 1e-4
    image_size: int | None = None
    device: str | None = None
    seed: int = 0
    workers: int = 0
    out: str | None = None

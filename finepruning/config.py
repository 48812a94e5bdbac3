"""The options of a compression run: one name each, the same on the command line, in files and in reports."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finepruning.errors import ArgumentError

SEARCHES = ("budget", "paper", "random", "none")
ALLOCATIONS = ("global", "uniform", "erk", "lamp", "kept")
AUGMENTATIONS = ("none", "flip", "dihedral", "crop")
DENSITY_SCHEDULES = ("geometric", "cubic")
LR_SCHEDULES = ("cosine", "hold", "rise")
SALIENCIES = ("magnitude", "fisher")
OPTIMIZERS = ("sgd", "adam")
TARGETS = ("target_density", "target_bytes", "target_latency", "max_accuracy_drop")
DEFAULT_DENSITY = 0.1
PRECISIONS = ("auto", "float32", "bfloat16")
CHANGEABLE = ("lr", "prune_lr", "max_grad_norm", "prune_max_grad_norm")
"""What a resumed run may go on with otherwise than it began, such as after its loss became no number."""


@dataclass(frozen=True)
class CompressConfig:
    """Everything that decides the result of `finepruning compress`.

    Attributes:
        data: a folder of images, ``torchvision:NAME``, or None for the built-in textures.
        model: a torchvision classifier by name, ``timm:NAME``, or None for the built-in network.
        weights: "default" (the model's published weights), "none", or a path to a safetensors or torch file.
        from_run: a finished run to start from, or None; `finepruning.from_run` makes the options for it.
        target_density: kept fraction of all prunable weights, in (0, 1]; 0.1 where no target is given.
        target_bytes: most bytes of the model directory, instead of a density.
        target_latency: most milliseconds that the engine takes on the run's device with PyTorch's number of
            threads, instead of a density. latency_batch: for so many images.
        max_accuracy_drop: percentage points of validation accuracy that may be lost: the rounds look for the
            smallest network that keeps the rest, instead of a density.
        rounds: rounds of (search, fine-tuning). trials: evaluations per search. epochs: epochs per round.
        dense_epochs: epochs of dense fine-tuning before the first round.
        density_schedule: how the density falls over the rounds: "geometric" (equal ratios) or "cubic" (fast
            first, slow near the target; Zhu and Gupta, 2017).
        final_epochs: epochs after the last round with frozen masks.
        search: "budget" (scale every layer's saliency under one exact global cut), "paper" (a threshold per
            layer, error minus lambda times sparsity), "random" (control of "budget") or "none".
        allocation: how search "none" spreads a budget over layers: "global", "uniform", "erk", "lamp", or
            "kept" (the per-layer scales that ``from_run`` ended with).
        saliency: what a weight is worth: "magnitude", or "fisher" (times the root of its Fisher information,
            estimated at the start of each round).
        search_images: validation images per trial; all are used when there are fewer.
        proposals: candidates that a search proposes at a time, jointly; None for the number of processes.
        look_ahead: training steps that a candidate gets before it is scored.
        theta_bound: the search scales a layer's saliency by exp(theta), |theta| <= theta_bound.
        paper_lambda: worth of one unit of sparsity in units of error, reached in the last round of "paper".
        splicing: let dropped weights come back while fine-tuning; False fixes each round's masks.
        surgery_gamma, surgery_power: masks change with probability (1 + gamma * step) ** -power.
        batch_size: images per step. lr: peak learning rate of dense fine-tuning (SGD, cosine per phase).
        prune_lr: peak learning rate of the rounds and the final phase; None for the same as ``lr``.
        optimizer: "sgd" or "adam" (AdamW, which wants a tenth of the learning rate or less).
        lr_schedule: "cosine" (each phase falls to 0) or "hold" (rounds stay at the peak; the dense and the
            final phase fall to 0) or "rise" (each phase rises, then falls exponentially).
        warmup: epochs over which the dense phase's learning rate rises from 0, at most half of them.
        max_grad_norm: gradients are scaled down to this L2 norm; 0 leaves them as they are.
        prune_max_grad_norm: the same in the rounds and the final phase; None for the same as
            ``max_grad_norm``.
        l2_sp: factor of a penalty on the distance from the weights of the beginning; 0 is off.
        momentum: of SGD. weight_decay: L2 factor.
        distillation: weight of the dense teacher's soft targets in the loss, in [0, 1]; 0 is off.
        temperature: softens the logits of teacher and student.
        prune_dropout: probability in the network's dropout layers while it is pruned; None leaves it.
        label_smoothing: in [0, 1).
        ema: decay a step of the mean of the weights that the final phase ends with, in [0, 1); 0 is off.
        wise_ft: the run ends with the best mixture, on the validation images, of its weights and those it
            began with, where the masks keep them.
        adversarial_epsilon: train on images that projected gradient descent changed by up to so much, in
            pixel values of 255; 0 is off. adversarial_steps: of that descent.
        precision: "float32", "bfloat16" (autocast) or "auto" (bfloat16 where the device has it in hardware).
        image_size: side of the square input in pixels; None for the model's own.
        augmentation: random changes of training images: "none"; "flip" (left-right); "dihedral" (flips and
            quarter turns, for images without an up); "crop" (random resized crops, and flips).
        device: "cpu", "cuda" or "cuda:N"; None picks cuda where there is one.
        seed: seeds the splits, the augmentation, the search and the weights.
        tensorboard: also write the figures of the run for TensorBoard, into ``tensorboard`` in the run.
        workers: processes that load images. out: run directory; None for ``runs/<model>-<time>``.

    Raises:
        ArgumentError: a value is outside what is allowed.
    """

    data: str | None = None
    model: str | None = None
    weights: str = "default"
    from_run: str | None = None
    target_density: float | None = None
    target_bytes: int | None = None
    target_latency: float | None = None
    latency_batch: int = 1
    max_accuracy_drop: float | None = None
    rounds: int = 12
    trials: int = 8
    epochs: int = 1
    dense_epochs: int = 12
    final_epochs: int = 12
    density_schedule: str = "cubic"
    search: str = "budget"
    allocation: str = "global"
    saliency: str = "magnitude"
    search_images: int = 512
    proposals: int | None = None
    look_ahead: int = 0
    theta_bound: float = 0.5
    paper_lambda: float = 1.0
    splicing: bool = False
    surgery_gamma: float = 0.01
    surgery_power: float = 1.0
    batch_size: int = 32
    lr: float = 0.01
    prune_lr: float | None = None
    optimizer: str = "sgd"
    lr_schedule: str = "hold"
    warmup: float = 1.0
    max_grad_norm: float = 1.0
    prune_max_grad_norm: float | None = 3.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    l2_sp: float = 0.0
    distillation: float = 0.0
    temperature: float = 4.0
    prune_dropout: float | None = 0.0
    label_smoothing: float = 0.0
    ema: float = 0.0
    wise_ft: bool = False
    adversarial_epsilon: float = 0.0
    adversarial_steps: int = 5
    precision: str = "auto"
    image_size: int | None = None
    augmentation: str = "flip"
    device: str | None = None
    seed: int = 0
    workers: int = 0
    tensorboard: bool = False
    out: str | None = None

    def __post_init__(self) -> None:
        self._check_targets()
        for name, allowed in (
            ("search", SEARCHES),
            ("allocation", ALLOCATIONS),
            ("density_schedule", DENSITY_SCHEDULES),
            ("lr_schedule", LR_SCHEDULES),
            ("saliency", SALIENCIES),
            ("optimizer", OPTIMIZERS),
            ("precision", PRECISIONS),
            ("augmentation", AUGMENTATIONS),
        ):
            if getattr(self, name) not in allowed:
                raise ArgumentError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        if self.from_run is None and self.allocation == "kept":
            raise ArgumentError("allocation is 'kept', which needs a run to start from; give from_run")
        for name in (
            "rounds",
            "trials",
            "epochs",
            "batch_size",
            "search_images",
            "latency_batch",
            "proposals",
            "adversarial_steps",
        ):
            self._at_least(name, 1)
        for name in ("dense_epochs", "final_epochs", "look_ahead", "seed", "workers"):
            self._at_least(name, 0)
        for name in ("lr", "prune_lr", "temperature", "theta_bound", "target_latency"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ArgumentError(f"{name} is {value}; it must be a positive number")
        for name in (
            "warmup",
            "max_grad_norm",
            "prune_max_grad_norm",
            "weight_decay",
            "l2_sp",
            "paper_lambda",
            "surgery_gamma",
            "surgery_power",
            "adversarial_epsilon",
        ):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ArgumentError(f"{name} is {value}; it must be a number of at least 0")
        for name in ("momentum", "label_smoothing", "ema"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ArgumentError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if not 0.0 <= self.distillation <= 1.0:
            raise ArgumentError(f"distillation is {self.distillation}; it must lie between 0 and 1")
        if self.prune_dropout is not None and not 0.0 <= self.prune_dropout < 1.0:
            raise ArgumentError(f"prune_dropout is {self.prune_dropout}; it must be at least 0 and below 1")
        if self.image_size is not None and self.image_size < 1:
            raise ArgumentError(f"image_size is {self.image_size}; it must be at least 1 pixel")

    def _check_targets(self) -> None:
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ArgumentError(
                f"{' and '.join(given)} are given; a run has one target, leave out the others"
            )
        if self.target_density is not None and not 0.0 < self.target_density <= 1.0:
            raise ArgumentError(f"target_density is {self.target_density}; it must be above 0 and at most 1")
        self._at_least("target_bytes", 1)
        if self.max_accuracy_drop is not None and not 0.0 <= self.max_accuracy_drop < 100.0:
            raise ArgumentError(
                f"max_accuracy_drop is {self.max_accuracy_drop}; it must be at least 0 and below 100, in "
                "percentage points: 1 lets 95 % become 94 %"
            )

    def _at_least(self, name: str, smallest: int) -> None:
        value = getattr(self, name)
        if value is not None and value < smallest:
            raise ArgumentError(f"{name} is {value}; it must be at least {smallest}")

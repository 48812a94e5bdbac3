"""What a finished model confuses: its confusion matrix, the worst pairs of classes, and example images."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from finepruning.data import Images
from finepruning.files import replace_file

EXAMPLES = "examples"
"""Folder of a run that holds the example images, ``<index in the test split>.jpg``."""

MATRIX_CLASSES = 256  # a matrix of more classes is not kept
PAIRS, SHOTS, SIDE = 9, 3, 128


@dataclass(frozen=True)
class Answers:
    """What a model said about labelled images.

    Attributes:
        labels, predicted: int64 [n]. probability: float32 [n], of the predicted class.
        classes: how many there are.
    """

    labels: Tensor
    predicted: Tensor
    probability: Tensor
    classes: int

    @property
    def accuracy(self) -> float:
        return float((self.labels == self.predicted).float().mean())

    def matrix(self) -> Tensor:
        """int64 [classes, classes]: images of class i that were taken for class j."""
        cells = self.labels * self.classes + self.predicted
        return torch.bincount(cells, minlength=self.classes**2).reshape(self.classes, self.classes)

    def worst_pairs(self) -> list[dict[str, Any]]:
        """The pairs (true, predicted) with the most mistakes, each with its most confident ones."""
        counts = self.matrix().fill_diagonal_(0).flatten()
        order = torch.sort(counts, descending=True, stable=True).indices[:PAIRS].tolist()
        pairs = []
        for cell in order:
            if not counts[cell]:
                break
            true, predicted = divmod(cell, self.classes)
            rows = ((self.labels == true) & (self.predicted == predicted)).nonzero().squeeze(1)
            ranked = rows[torch.sort(self.probability[rows], descending=True, stable=True).indices]
            examples = [
                {"index": row, "probability": float(self.probability[row])} for row in ranked[:SHOTS].tolist()
            ]
            pairs.append(
                {"true": true, "predicted": predicted, "count": int(counts[cell]), "examples": examples}
            )
        return pairs


@torch.no_grad()
def ask(
    model: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Answers:
    """Run ``model`` (float32 [b, 3, s, s] -> logits [b, classes]) over labelled batches."""
    labels, predicted, probability = [], [], []
    classes = 0
    for x, y in batches:
        shares = model(x.to(device)).float().softmax(1).cpu()
        classes = shares.shape[1]
        best = shares.max(1)
        labels.append(y)
        predicted.append(best.indices)
        probability.append(best.values)
    return Answers(torch.cat(labels), torch.cat(predicted), torch.cat(probability), classes)


def describe(answers: Answers, images: Images, run_dir: Path) -> dict[str, Any] | None:
    """The report's ``confusion`` entry; the example images go into the run directory.

    Returns:
        ``matrix`` (rows are true classes) and ``pairs`` (true, predicted, count, examples of index, name,
        probability), or None for more than `MATRIX_CLASSES` classes.
    """
    if answers.classes > MATRIX_CLASSES:
        return None
    pairs = answers.worst_pairs()
    folder = run_dir / EXAMPLES
    if pairs:
        folder.mkdir(exist_ok=True)
    for pair in pairs:
        for example in pair["examples"]:
            example["name"] = images.name(example["index"])
            replace_file(folder / f"{example['index']}.jpg", _jpeg(images.picture(example["index"])))
    return {"matrix": answers.matrix().tolist(), "pairs": pairs}


def _jpeg(pixels: Tensor) -> bytes:
    """uint8 [3, h, w] as a small JPEG."""
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()

"""What a model confuses, and the pictures kept of it."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from finepruning.data import Images, Preprocessing
from finepruning.mistakes import Answers, ask, describe

COLOURS = [30, 120, 220]


def coloured(labels: list[int], shades: list[int]) -> Images:
    """8x8 images of one shade each."""
    pixels = torch.tensor(shades, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    preprocessing = Preprocessing(8, 8, (0.0,) * 3, (1.0,) * 3)
    names = [f"{i}.png" for i in range(len(labels))]
    return Images(pixels, torch.arange(len(labels)), torch.tensor(labels), preprocessing, names=names)


def by_shade(x: Tensor) -> Tensor:
    """Logits: how near the shade is to that of each class."""
    shade = x.mean((1, 2, 3))[:, None]
    return -(shade - torch.tensor(COLOURS) / 255).abs() * 20


def test_answers_become_a_matrix_and_the_worst_pairs(tmp_path: Path) -> None:
    images = coloured([0, 0, 0, 1, 1, 2], [30, 118, 90, 121, 219, 220])
    answers = ask(by_shade, images.batches(4), torch.device("cpu"))
    assert answers.accuracy == 0.5
    found = describe(answers, images, tmp_path)
    assert found is not None
    assert found["matrix"] == [[1, 2, 0], [0, 1, 1], [0, 0, 1]]
    assert [(p["true"], p["predicted"], p["count"]) for p in found["pairs"]] == [(0, 1, 2), (1, 2, 1)]
    first = found["pairs"][0]["examples"]
    assert [example["name"] for example in first] == ["1.png", "2.png"]  # the most confident first
    assert first[0]["probability"] > first[1]["probability"]
    for example in first:
        with Image.open(tmp_path / "examples" / f"{example['index']}.jpg") as picture:
            assert abs(picture.convert("L").getpixel((4, 4)) - [30, 118, 90][example["index"]]) < 4


def test_without_mistakes_there_are_no_pairs(tmp_path: Path) -> None:
    images = coloured([0, 1, 2], COLOURS)
    found = describe(ask(by_shade, images.batches(2), torch.device("cpu")), images, tmp_path)
    assert found == {"matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "pairs": []}
    assert list(tmp_path.iterdir()) == []


def test_a_matrix_of_too_many_classes_is_left_out(tmp_path: Path) -> None:
    images = coloured([0], [0])
    answers = Answers(torch.tensor([0]), torch.tensor([1]), torch.tensor([1.0]), 1000)
    assert describe(answers, images, tmp_path) is None

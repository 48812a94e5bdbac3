"""Batches: order, augmentation, sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finepruning import ArgumentError
from finepruning.config import AUGMENTATIONS
from finepruning.data import Images, Preprocessing
from finepruning.data.augmentation import augment, margin

PREPROCESSING = Preprocessing(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def images(count: int = 10, augmentation: str = "flip", resize: int = 8) -> Images:
    pixels = torch.randint(0, 256, (count, 3, resize, resize), dtype=torch.uint8, generator=seeded(0))
    preprocessing = Preprocessing(8, resize, PREPROCESSING.mean, PREPROCESSING.std)
    return Images(pixels, torch.arange(count), torch.arange(count), preprocessing, augmentation=augmentation)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def everything(source: Images, **options: object) -> tuple[Tensor, list[int]]:
    batches = list(source.batches(4, **options))  # type: ignore[arg-type]
    return torch.cat([values for values, _ in batches]), torch.cat([labels for _, labels in batches]).tolist()


def test_in_order_without_a_seed() -> None:
    values, labels = everything(images())
    assert labels == list(range(10))
    assert values.shape == (10, 3, 8, 8)
    assert values.dtype == torch.float32
    assert values.is_contiguous()


def test_shuffling_keeps_every_image_once_with_its_label() -> None:
    plain, _ = everything(images())
    values, labels = everything(images(), shuffle=5)
    assert labels != list(range(10))
    assert sorted(labels) == list(range(10))
    assert torch.equal(values, plain[labels])


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_the_seed_fixes_order_and_augmentation(augmentation: str) -> None:
    source = images(augmentation=augmentation, resize=margin(augmentation, 8))
    first, again, other = (everything(source, shuffle=seed, augment=True) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert first[1] != other[1]
    assert first[0].shape == (10, 3, 8, 8)


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_last_batch(drop_last: bool) -> None:
    sizes = [len(labels) for _, labels in images().batches(4, drop_last=drop_last)]
    assert sizes == ([4, 4] if drop_last else [4, 4, 2])


def test_a_split_smaller_than_a_batch_is_never_dropped() -> None:
    assert [len(labels) for _, labels in images().batches(64, drop_last=True)] == [10]


def test_no_images_no_batches() -> None:
    assert list(images(0).batches(4, shuffle=1, augment=True)) == []


def test_the_batch_size_must_be_positive() -> None:
    with pytest.raises(ArgumentError, match="batch_size"):
        next(images().batches(0))


def test_flips_mirror_about_half_of_the_images() -> None:
    pixels = torch.randint(0, 256, (400, 3, 4, 4), dtype=torch.uint8, generator=seeded(0))
    result = augment(pixels, "flip", 4, seeded(1))
    kept = (result == pixels).flatten(1).all(1)
    mirrored = (result == pixels.flip(-1)).flatten(1).all(1)
    assert (kept | mirrored).all()
    assert 140 < int(mirrored.sum()) < 260


def test_dihedral_uses_all_eight_symmetries() -> None:
    pixels = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).expand(400, 3, 4, 4)
    result = augment(pixels, "dihedral", 4, seeded(1))
    symmetries = [
        torch.rot90(view, turns, (-2, -1)) for turns in range(4) for view in (pixels[0], pixels[0].flip(-1))
    ]
    counts = [int((result == symmetry).flatten(1).all(1).sum()) for symmetry in symmetries]
    assert sum(counts) == 400
    assert min(counts) > 20


def test_crops_stay_inside_the_image_and_vary() -> None:
    ramp = torch.linspace(50, 200, 32).to(torch.uint8).expand(64, 3, 32, 32)
    result = augment(ramp, "crop", 28, seeded(1))
    assert result.shape == (64, 3, 28, 28)
    assert result.min() >= 50
    assert result.max() <= 200
    spread = (result[:, 0, 0, -1] - result[:, 0, 0, 0]).abs()
    assert spread.max() - spread.min() > 20
    assert torch.allclose(result[:, 0], result[:, 0, :1].expand(-1, 28, -1), atol=0.1)


def test_augmentation_leaves_the_cache_untouched() -> None:
    source = images(augmentation="dihedral")
    before, _ = everything(source)
    everything(source, shuffle=3, augment=True)
    after, _ = everything(source)
    assert torch.equal(before, after)

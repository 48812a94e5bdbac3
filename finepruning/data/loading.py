"""From the DATA argument to three splits that are ready to use."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from finepruning.data import splitting, textures, torchvision_sets
from finepruning.data.augmentation import check_augmentation, margin
from finepruning.data.folders import SPLIT_NAMES, File, scan, some
from finepruning.data.images import Images, Source
from finepruning.data.preprocessing import Preprocessing
from finepruning.data.sources import DatasetSource, FileSource, read_all
from finepruning.errors import ArgumentError, DataError

CACHE_LIMIT = 4 << 30
"""Bytes of decoded images held in memory; a larger data set is decoded anew in every epoch."""


@dataclass(frozen=True)
class Splits:
    """A data set ready for training.

    Attributes:
        train, validation, test: disjoint; the search uses validation, test is for the end.
        classes: names; a label is an index into them.
        preprocessing: how an image becomes network input, to be stored with the model.
        name: what was loaded, for reports.
        messages: what was done that the user did not ask for, such as making a missing split.
    """

    train: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    name: str
    messages: tuple[str, ...] = ()


def load(
    data: str | None,
    *,
    image_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    seed: int,
    workers: int = 0,
    augmentation: str = "flip",
    cache_limit: int = CACHE_LIMIT,
) -> Splits:
    """Load, check and split a data set.

    Every image is decoded once before this returns, so that a damaged one never ends a run halfway.

    Args:
        data: a folder of images, ``torchvision:NAME``, or None for the built-in textures.
        image_size: side of the square network input in pixels.
        mean, std: per RGB channel, for values in 0..1.
        seed: fixes which images missing splits take.
        workers: processes that decode images where the set exceeds ``cache_limit``.
        augmentation: one of `AUGMENTATIONS`, applied to training batches on request.
        cache_limit: bytes of decoded images that may be held in memory.

    Raises:
        DataError: the data cannot be used; the message names the folder or files and the way out.
        ArgumentError: an option is out of range, or the torchvision data set is unknown.
    """
    if not 8 <= image_size <= 4096:
        raise ArgumentError(f"image_size must be 8 to 4096 pixels, got {image_size}")
    check_augmentation(augmentation)
    preprocessing = Preprocessing(image_size, margin(augmentation, image_size), mean, std)
    if data is None:
        return _load_textures(preprocessing, seed, augmentation)
    if data.lower().startswith("torchvision:"):
        return _load_torchvision(data, preprocessing, seed, workers, augmentation, cache_limit)
    return _load_folder(data, preprocessing, seed, workers, augmentation, cache_limit)


def _load_folder(
    data: str, preprocessing: Preprocessing, seed: int, workers: int, augmentation: str, cache_limit: int
) -> Splits:
    root = Path(data).expanduser()
    classes, files = scan(root)
    source = FileSource([file.path for file in files], preprocessing.resize)
    cache = _fits(len(files), preprocessing, cache_limit)
    digests, pixels = read_all(source, preprocessing.resize, cache=cache, name=str(root), workers=workers)
    rows, messages = _leave_out_leaks(files, digests)
    assigned, made = _assign(
        [files[row].label for row in rows],
        [files[row].split for row in rows],
        [digests[row] for row in rows],
        classes,
        seed,
        str(root),
    )
    return _splits(
        source if pixels is None else pixels,
        rows,
        [files[row].label for row in rows],
        assigned,
        classes,
        preprocessing,
        str(root),
        [*messages, *made],
        augmentation,
        workers,
    )


def _load_torchvision(
    data: str, preprocessing: Preprocessing, seed: int, workers: int, augmentation: str, cache_limit: int
) -> Splits:
    known = torchvision_sets.open_set(data.split(":", 1)[1])
    source = DatasetSource([part for _, part in known.parts], preprocessing.resize)
    cache = _fits(len(source), preprocessing, cache_limit)
    labels, pixels = read_all(source, preprocessing.resize, cache=cache, name=known.name, workers=workers)
    classes = known.classes or tuple(str(label) for label in range(max(labels) + 1))
    given = [split for split, part in known.parts for _ in range(len(part))]
    assigned, messages = _assign(labels, given, list(range(len(labels))), classes, seed, known.name)
    return _splits(
        source if pixels is None else pixels,
        list(range(len(labels))),
        labels,
        assigned,
        classes,
        preprocessing,
        known.name,
        messages,
        augmentation,
        workers,
    )


def _load_textures(preprocessing: Preprocessing, seed: int, augmentation: str) -> Splits:
    pixels, labels, splits, classes = textures.demo_set(preprocessing.resize)
    rows = list(range(len(labels)))
    return _splits(
        pixels, rows, labels, splits, classes, preprocessing, "built-in textures", [], augmentation, workers=0
    )


def _fits(images: int, preprocessing: Preprocessing, limit: int) -> bool:
    return images * 3 * preprocessing.resize**2 <= limit


def _leave_out_leaks(files: list[File], digests: list[bytes]) -> tuple[list[int], list[str]]:
    """Rows to use: a file that also lies in a later split (train < validation < test) counts there only."""
    rank: dict[str | None, int] = {None: 0, "train": 0, "validation": 1, "test": 2}
    last: dict[bytes, int] = {}
    for file, digest in zip(files, digests, strict=True):
        last[digest] = max(last.get(digest, 0), rank[file.split])
    rows: list[int] = []
    dropped: list[int] = []
    for row, (file, digest) in enumerate(zip(files, digests, strict=True)):
        (rows if rank[file.split] == last[digest] else dropped).append(row)
    if not dropped:
        return rows, []
    names = some([f"{files[row].split}/{files[row].path.name}" for row in dropped], 3)
    return rows, [f"{len(dropped)} images left out, since the same file is also in a held-out split: {names}"]


def _assign(
    labels: list[int],
    given: list[str | None],
    groups: list[bytes] | list[int],
    classes: tuple[str, ...],
    seed: int,
    name: str,
) -> tuple[list[str], list[str]]:
    """The split of every image, with missing splits taken from training images."""
    present = {split for split in given if split is not None}
    shares = {"test": splitting.TEST_FRACTION, "validation": splitting.VALIDATION_FRACTION}
    shares = {split: share for split, share in shares.items() if split not in present}
    assigned = [split or "train" for split in given]
    if not shares:
        return assigned, []
    free = [row for row, split in enumerate(assigned) if split == "train"]
    chosen = splitting.carve(
        [labels[row] for row in free], [groups[row] for row in free], shares, classes, seed, name
    )
    for row, split in zip(free, chosen, strict=True):
        assigned[row] = split
    counts = Counter(assigned)
    made = " and ".join(f"{counts[split]} for {split}" for split in shares)
    return assigned, [
        f"no {' or '.join(shares)} split given: {made} taken from the training images (seed {seed})"
    ]


def _splits(
    pixels: Tensor | Source,
    rows: list[int],
    labels: list[int],
    assigned: list[str],
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    name: str,
    messages: list[str],
    augmentation: str,
    workers: int,
) -> Splits:
    images = {}
    for split in SPLIT_NAMES:
        members = [position for position, own in enumerate(assigned) if own == split]
        missing = set(range(len(classes))) - {labels[position] for position in members}
        if missing:
            lacking = some([classes[label] for label in sorted(missing)])
            raise DataError(
                f"{name}: the {split} split has no image of {lacking} (add images or remove the class)"
            )
        images[split] = Images(
            pixels,
            torch.tensor([rows[position] for position in members], dtype=torch.int64),
            torch.tensor([labels[position] for position in members], dtype=torch.int64),
            preprocessing,
            augmentation=augmentation,
            workers=workers,
        )
    return Splits(
        images["train"], images["validation"], images["test"], classes, preprocessing, name, tuple(messages)
    )

"""From the DATA argument to three splits that are ready to use."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finepruning.data import textures
from finepruning.data.augmentation import check_augmentation, margin
from finepruning.data.folders import SPLIT_NAMES, File, scan, some
from finepruning.data.images import Images, Source
from finepruning.data.preprocessing import Preprocessing
from finepruning.data.sources import DatasetSource, FileSource, read_all
from finepruning.data.splitting import TEST_FRACTION, VALIDATION_FRACTION, carve
from finepruning.data.torchvision_sets import open_set
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
        table = _textures(preprocessing.resize)
    elif data.lower().startswith("torchvision:"):
        table = _torchvision_set(data.split(":", 1)[1], preprocessing.resize, workers, cache_limit)
    else:
        table = _folder(Path(data).expanduser(), preprocessing.resize, workers, cache_limit)
    splits = table.fill_splits(seed)
    images = {
        split: Images(
            table.pixels,
            torch.tensor([table.rows[position] for position in members], dtype=torch.int64),
            torch.tensor([table.labels[position] for position in members], dtype=torch.int64),
            preprocessing,
            augmentation=augmentation,
            workers=workers,
            names=table.names,
        )
        for split, members in splits.items()
    }
    return Splits(
        images["train"],
        images["validation"],
        images["test"],
        table.classes,
        preprocessing,
        table.name,
        tuple(table.messages),
    )


@dataclass
class _Table:
    """All images of a data set, before it is known which split the unassigned ones go to.

    Attributes:
        name: the data set, for messages. classes: names.
        pixels: uint8 [m, 3, r, r], or a source of m images.
        rows: which of the m images are used. labels: their classes.
        given: their splits, None where the data set does not say.
        groups: equal for images that must stay in one split.
        names: of the m images, where they have any.
        messages: what was done that the user did not ask for.
    """

    name: str
    classes: tuple[str, ...]
    pixels: Tensor | Source
    rows: list[int]
    labels: list[int]
    given: list[str | None]
    groups: list[Any]
    names: list[str] | None = None
    messages: list[str] = field(default_factory=list)

    def fill_splits(self, seed: int) -> dict[str, list[int]]:
        """Positions in ``rows`` of every split; missing splits are taken from the training images."""
        shares = {
            split: share
            for split, share in (("test", TEST_FRACTION), ("validation", VALIDATION_FRACTION))
            if split not in self.given
        }
        assigned = [split or "train" for split in self.given]
        if shares:
            free = [position for position, split in enumerate(assigned) if split == "train"]
            labels = [self.labels[position] for position in free]
            groups = [self.groups[position] for position in free]
            chosen = carve(labels, groups, shares, self.classes, seed, self.name)
            for position, split in zip(free, chosen, strict=True):
                assigned[position] = split
            counts = " and ".join(f"{assigned.count(split)} for {split}" for split in shares)
            self.messages.append(
                f"no {' or '.join(shares)} split given: {counts} taken from the training images (seed {seed})"
            )
        splits = {
            split: [position for position, own in enumerate(assigned) if own == split]
            for split in SPLIT_NAMES
        }
        self._check_complete(splits)
        return splits

    def _check_complete(self, splits: dict[str, list[int]]) -> None:
        for split, members in splits.items():
            missing = set(range(len(self.classes))) - {self.labels[position] for position in members}
            if missing:
                lacking = some([self.classes[label] for label in sorted(missing)])
                raise DataError(
                    f"{self.name}: the {split} split has no image of {lacking} (add some or remove the class)"
                )


def _folder(root: Path, side: int, workers: int, cache_limit: int) -> _Table:
    classes, files = scan(root)
    source = FileSource([file.path for file in files], side)
    cache = _fits(len(files), side, cache_limit)
    digests, pixels = read_all(source, side, cache=cache, name=str(root), workers=workers)
    rows, messages = _leave_out_leaks(files, digests)
    messages += _contradictions(root, files, digests)
    return _Table(
        name=str(root),
        classes=classes,
        pixels=source if pixels is None else pixels,
        rows=rows,
        labels=[files[row].label for row in rows],
        given=[files[row].split for row in rows],
        groups=[digests[row] for row in rows],
        names=[str(file.path.relative_to(root)) for file in files],
        messages=messages,
    )


def _torchvision_set(name: str, side: int, workers: int, cache_limit: int) -> _Table:
    known = open_set(name)
    source = DatasetSource([part for _, part in known.parts], side)
    cache = _fits(len(source), side, cache_limit)
    labels, pixels = read_all(source, side, cache=cache, name=known.name, workers=workers)
    return _Table(
        name=known.name,
        classes=known.classes or tuple(str(label) for label in range(max(labels) + 1)),
        pixels=source if pixels is None else pixels,
        rows=list(range(len(labels))),
        labels=labels,
        given=[split for split, part in known.parts for _ in range(len(part))],
        groups=list(range(len(labels))),
    )


def _textures(side: int) -> _Table:
    pixels, labels, splits, classes = textures.demo_set(side)
    rows = list(range(len(labels)))
    return _Table("built-in textures", classes, pixels, rows, labels, [*splits], rows)


def _fits(images: int, side: int, limit: int) -> bool:
    return images * 3 * side**2 <= limit


def _leave_out_leaks(files: list[File], digests: list[bytes]) -> tuple[list[int], list[str]]:
    """Rows to use: a file that also lies in a later split (train, validation, test) counts there only."""
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


def _contradictions(root: Path, files: list[File], digests: list[bytes]) -> list[str]:
    """Says so where the same file lies in two classes, since one of them must be wrong."""
    first: dict[bytes, File] = {}
    pairs = []
    for file, digest in zip(files, digests, strict=True):
        other = first.setdefault(digest, file)
        if other.label != file.label:
            pairs.append(f"{other.path.relative_to(root)} = {file.path.relative_to(root)}")
    return [f"{len(pairs)} files are the same but in different classes: {some(pairs, 3)}"] if pairs else []

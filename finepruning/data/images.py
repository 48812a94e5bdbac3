"""One split of a data set, served in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from finepruning.data.augmentation import augment as augment_batch
from finepruning.data.preprocessing import Preprocessing
from finepruning.errors import ArgumentError, DataError


class Source(Protocol):
    """Images that can be decoded one at a time, in any process."""

    def pixels(self, index: int) -> Tensor:
        """Image ``index`` as uint8 [3, resize, resize]; DataError names it where it cannot be decoded."""


class Images:
    """Labelled images of one split.

    Pixels come either from a tensor shared by all splits (decoded once) or, for sets beyond the memory
    limit, from ``source`` by worker processes. Both give the same batches.

    Attributes:
        labels: int64 [n].
    """

    def __init__(
        self,
        pixels: Tensor | Source,
        index: Tensor,
        labels: Tensor,
        preprocessing: Preprocessing,
        *,
        augmentation: str = "none",
        workers: int = 0,
        names: Sequence[str] | None = None,
    ) -> None:
        """Take rows ``index`` (int64 [n]) of ``pixels`` (uint8 [m, 3, r, r], or a source of m images).

        ``names``, where images have any, are those of all m.
        """
        if len(index) != len(labels):
            raise ArgumentError(f"images: {len(index)} rows but {len(labels)} labels")
        self.labels = labels
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self._pixels = pixels
        self._index = index
        self._workers = workers
        self._names = names

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def cached(self) -> bool:
        """Whether the decoded images are held in memory."""
        return isinstance(self._pixels, Tensor)

    def name(self, position: int) -> str | None:
        """Name of the image at ``position`` of the split, such as its file's, where it has one."""
        return None if self._names is None else self._names[int(self._index[position])]

    def picture(self, position: int) -> Tensor:
        """Pixels of the image at ``position`` of the split: uint8 [3, image_size, image_size]."""
        row = int(self._index[position])
        pixels = self._pixels[row] if isinstance(self._pixels, Tensor) else self._pixels.pixels(row)
        return self.preprocessing.center(pixels)

    def batches(
        self, batch_size: int, *, shuffle: int | None = None, augment: bool = False, drop_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the split once.

        Args:
            batch_size: images in a batch; the last one may be smaller unless ``drop_last``.
            shuffle: a seed that fixes the order and the augmentation; None keeps the order of the split.
            augment: apply the split's augmentation (seeded by ``shuffle``, or 0 without one).
            drop_last: leave out an incomplete last batch (a split smaller than one batch is never left out).

        Yields:
            Images float32 [b, 3, image_size, image_size], contiguous and normalised; labels int64 [b].
        """
        if batch_size < 1:
            raise ArgumentError(f"batch_size must be at least 1, got {batch_size}")
        generator = torch.Generator().manual_seed(0 if shuffle is None else shuffle)
        order = torch.arange(len(self)) if shuffle is None else torch.randperm(len(self), generator=generator)
        chunks = list(torch.split(order, batch_size)) if len(order) else []
        if drop_last and len(chunks) > 1 and len(chunks[-1]) < batch_size:
            chunks.pop()
        for rows, pixels in zip(chunks, self._decoded(chunks), strict=True):
            if augment and self.augmentation != "none":
                pixels = augment_batch(pixels, self.augmentation, self.preprocessing.image_size, generator)
            values = self.preprocessing.normalize(self.preprocessing.center(pixels))
            yield values, self.labels[rows]

    def _decoded(self, chunks: list[Tensor]) -> Iterator[Tensor]:
        if isinstance(self._pixels, Tensor):
            for rows in chunks:
                yield self._pixels.index_select(0, self._index[rows])
            return
        loader: DataLoader[Tensor | DataError] = DataLoader(
            _Decoding(self._pixels),
            batch_sampler=[self._index[rows].tolist() for rows in chunks],
            num_workers=min(self._workers, len(chunks)),
            generator=torch.Generator(),  # keeps the loader from drawing from the global one
            collate_fn=_stack,
        )
        for pixels in loader:
            if isinstance(pixels, DataError):
                raise pixels
            yield pixels


class _Decoding(Dataset["Tensor | DataError"]):
    """What the processes of a DataLoader index; errors are values, since the loader would reword them."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, index: int) -> Tensor | DataError:
        try:
            return self._source.pixels(index)
        except DataError as error:
            return DataError(str(error))


def _stack(items: list[Tensor | DataError]) -> Tensor | DataError:
    images = []
    for item in items:
        if isinstance(item, DataError):
            return item
        images.append(item)
    return torch.stack(images)

"""Where images come from before they are decoded, and the one pass that checks them all."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from finepruning.data.preprocessing import decode
from finepruning.errors import DataError


class FileSource:
    """Image files, decoded to squares of ``side`` pixels."""

    def __init__(self, paths: Sequence[Path], side: int) -> None:
        self._paths = paths
        self._side = side

    def __len__(self) -> int:
        return len(self._paths)

    def pixels(self, index: int) -> Tensor:
        """Image ``index`` as uint8 [3, side, side]; DataError names a file that is not an intact image."""
        return self.read(index)[1]

    def read(self, index: int) -> tuple[bytes, Tensor]:
        """A digest of the file's bytes, and its pixels."""
        path = self._paths[index]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from error
        if not content:
            raise DataError(f"{path}: the file is empty")
        try:
            pixels = decode(Image.open(io.BytesIO(content)), self._side)
        except UnidentifiedImageError as error:
            raise DataError(f"{path}: not an image") from error
        except Exception as error:  # a damaged file can raise nearly anything in its format's decoder
            raise DataError(f"{path}: damaged image ({error})") from error
        return hashlib.blake2b(content, digest_size=16).digest(), torch.from_numpy(pixels)


class DatasetSource:
    """The images of one or more torchvision data sets, one after the other."""

    def __init__(self, parts: Sequence[Any], side: int) -> None:
        self._parts = parts
        self._side = side

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def pixels(self, index: int) -> Tensor:
        """Image ``index`` as uint8 [3, side, side]."""
        return self.read(index)[1]

    def read(self, index: int) -> tuple[int, Tensor]:
        """The class number and the pixels of image ``index``."""
        position = index
        for part in self._parts:
            if position < len(part):
                try:
                    image, label = part[position]
                    return int(label), torch.from_numpy(decode(image, self._side))
                except Exception as error:  # whatever the data set's reader raises
                    raise DataError(f"{type(part).__name__} image {position}: damaged ({error})") from error
            position -= len(part)
        raise IndexError(index)


def read_all(
    source: FileSource | DatasetSource, side: int, *, cache: bool, name: str, workers: int = 0
) -> tuple[list[Any], Tensor | None]:
    """Decode every image once, so that a damaged one is found before any training.

    Args:
        source: the images.
        side: side of the decoded squares in pixels.
        cache: keep the pixels.
        name: the data set, for messages.
        workers: decoding threads; 0 for as many as there are usable cores.

    Returns:
        What ``source.read`` gives beside the pixels, per image, and uint8 [n, 3, side, side] or None.

    Raises:
        DataError: naming the first few images that cannot be decoded, and how many there are.
    """
    pixels = torch.empty((len(source), 3, side, side), dtype=torch.uint8) if cache else None
    facts: list[Any] = [None] * len(source)
    failures: list[str] = []

    def read(index: int) -> None:
        try:
            facts[index], image = source.read(index)
            if pixels is not None:
                pixels[index] = image
        except DataError as error:
            failures.append(str(error))

    _in_threads(read, len(source), workers or len(os.sched_getaffinity(0)))
    if failures:
        failures.sort()
        shown = "\n  ".join(failures[:5])
        rest = f"\n  and {len(failures) - 5} more" if len(failures) > 5 else ""
        raise DataError(
            f"{name}: {len(failures)} of {len(source)} files cannot be used as images "
            f"(remove or replace them):\n  {shown}{rest}"
        )
    return facts, pixels


def _in_threads(work: Callable[[int], None], count: int, threads: int) -> None:
    """Call ``work`` for 0..count-1; decoding releases the interpreter lock, so threads suffice."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            for _ in pool.map(work, range(count)):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise

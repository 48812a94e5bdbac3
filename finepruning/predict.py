"""Class names and probabilities for image files, prepared as the model file says."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from finepruning.data import Preprocessing
from finepruning.data.folders import IMAGE_SUFFIXES, is_hidden
from finepruning.engine import SparseModel
from finepruning.errors import ArgumentError, DataError, ModelFileError


@dataclass(frozen=True)
class Prediction:
    """What a model says about one image.

    Attributes:
        image: the file. top: (class name, probability) by falling probability; empty where the file could
            not be used. error: why, else None.
    """

    image: Path
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready: ``image`` with ``class``, ``probability`` and ``top``, or with ``error``."""
        if self.error is not None:
            return {"image": str(self.image), "error": self.error}
        name, probability = self.top[0]
        top = [{"class": n, "probability": p} for n, p in self.top]
        return {"image": str(self.image), "class": name, "probability": probability, "top": top}


def find_images(named: Sequence[str]) -> list[Path]:
    """The image files that ``named`` means, each once: files, folders (searched through) and glob patterns.

    Raises:
        DataError: one of them does not exist, or holds or matches no image.
    """
    found: dict[Path, None] = {}
    for text in named:
        path = Path(text).expanduser()
        if path.is_dir():
            files = _below(path)
            if not files:
                raise DataError(f"{path}: no image files in this folder")
        elif path.exists():
            files = [path]
        elif glob.has_magic(text):
            files = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            files = [file for file in files if file.is_file()]
            if not files:
                raise DataError(f"{text}: no file matches this pattern")
        else:
            raise DataError(f"{path}: no such file or folder")
        found |= dict.fromkeys(files)
    return list(found)


def _below(folder: Path) -> list[Path]:
    files = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        paths = (Path(parent) / name for name in sorted(names) if not is_hidden(name))
        files += [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    return files


def preprocessing_of(model: SparseModel) -> Preprocessing:
    """How ``model`` wants its images, as its file says.

    Raises:
        ModelFileError: the file does not say, or not sensibly.
    """
    if model.preprocessing is None:
        raise ModelFileError(
            "the model does not say how images are prepared; give preprocessing= when it is made (from_dense)"
        )
    try:
        preprocessing = Preprocessing.from_json(model.preprocessing)
    except ArgumentError as error:
        raise ModelFileError(f"the model's {error}") from error
    side = preprocessing.image_size
    if model.input_shape != (3, side, side):
        raise ModelFileError(
            f"the model takes {list(model.input_shape)}, but its preprocessing makes {[3, side, side]}"
        )
    return preprocessing


def predict(
    model: SparseModel, images: Sequence[Path], *, top: int = 1, batch_size: int = 16
) -> Iterator[Prediction]:
    """Classify image files, in order.

    Args:
        model: with preprocessing; without class names, the numbers of its outputs are the names.
        images: files. One that is no intact image gives a `Prediction` with ``error``.
        top: how many classes to name (all, if there are fewer). batch_size: images in one call.

    Raises:
        ArgumentError: ``top`` or ``batch_size`` below 1. ModelFileError: see `preprocessing_of`.
    """
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise ArgumentError(f"{name} is {value}; it must be at least 1")
    preprocessing = preprocessing_of(model)
    for start in range(0, len(images), batch_size):
        paths = images[start : start + batch_size]
        loaded = [_load(path, preprocessing) for path in paths]
        usable = [item for item in loaded if isinstance(item, Tensor)]
        answers = iter(_classify(model, torch.stack(usable), top)) if usable else iter(())
        for path, item in zip(paths, loaded, strict=True):
            yield Prediction(path, error=item) if isinstance(item, str) else Prediction(path, next(answers))


def _load(path: Path, preprocessing: Preprocessing) -> Tensor | str:
    """The network's input, or why there is none."""
    try:
        with Image.open(path) as image:
            return preprocessing(image)
    except UnidentifiedImageError:
        return "not an image"
    except Exception as error:  # a damaged file can raise nearly anything in its format's decoder
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return f"cannot be read ({reason})"


@torch.inference_mode()
def _classify(model: SparseModel, x: Tensor, top: int) -> list[tuple[tuple[str, float], ...]]:
    logits = model(x.to(model.device, model.input_dtype)).float()
    best = logits.softmax(1).topk(min(top, logits.shape[1]))
    names = model.classes or [str(index) for index in range(logits.shape[1])]
    return [
        tuple((names[index], share) for index, share in zip(indices, shares, strict=True))
        for indices, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]

"""Classification data sets of torchvision, by name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchvision.datasets

from finepruning.errors import ArgumentError, DataError

_BY_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE = {"train": {"split": "train"}, "validation": {"split": "val"}, "test": {"split": "test"}}
_WHOLE: dict[str, dict[str, Any]] = {"train": {}}

SETS: dict[str, dict[str, dict[str, Any]]] = {
    "Caltech101": _WHOLE,
    "Caltech256": _WHOLE,
    "CIFAR10": _BY_FLAG,
    "CIFAR100": _BY_FLAG,
    "Country211": {**_THREE, "validation": {"split": "valid"}},
    "DTD": _THREE,
    "EuroSAT": _WHOLE,
    "FashionMNIST": _BY_FLAG,
    "FGVCAircraft": _THREE,
    "Flowers102": _THREE,
    "Food101": _TRAIN_TEST,
    "GTSRB": _TRAIN_TEST,
    "Imagenette": {"train": {"split": "train"}, "test": {"split": "val"}},
    "KMNIST": _BY_FLAG,
    "MNIST": _BY_FLAG,
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "QMNIST": _BY_FLAG,
    "RenderedSST2": _THREE,
    "SEMEION": _WHOLE,
    "STL10": _TRAIN_TEST,
    "SUN397": _WHOLE,
    "SVHN": _TRAIN_TEST,
    "USPS": _BY_FLAG,
}
"""Constructor arguments of each split, by torchvision's class name."""


@dataclass(frozen=True)
class OpenedSet:
    """A data set on disk: ``parts`` pairs a split (None where it has none) with its torchvision data set."""

    name: str
    classes: tuple[str, ...] | None
    parts: list[tuple[str | None, Any]]


def cache_folder() -> Path:
    """Where downloaded data sets are kept: below $XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "finepruning" / "datasets"


def find(name: str) -> str:
    """torchvision's spelling of a data set; ArgumentError with near names where there is none."""
    known = {own.lower(): own for own in SETS}
    key = name.strip().lower().replace("-", "").replace("_", "")
    if key in known:
        return known[key]
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(known[own] for own in near)}?" if near else ""
    raise ArgumentError(f"torchvision:{name}: unknown data set; {hint or 'known are ' + ', '.join(SETS)}")


def open_set(name: str) -> OpenedSet:
    """Open a data set, downloading it where it is not yet in `cache_folder`.

    Raises:
        ArgumentError: unknown name. DataError: neither on disk nor to be had from the network.
    """
    spelling = find(name)
    constructor = getattr(torchvision.datasets, spelling)
    splits = SETS[spelling]
    parts = [
        (split if len(splits) > 1 else None, _open_split(constructor, spelling, arguments))
        for split, arguments in splits.items()
    ]
    return OpenedSet(f"torchvision:{spelling}", _class_names(parts[0][1]), parts)


def _open_split(constructor: Callable[..., Any], spelling: str, arguments: dict[str, Any]) -> Any:
    root = cache_folder() / spelling
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{root}: cannot keep data sets there ({error.strerror}); set XDG_CACHE_HOME"
        ) from error
    try:
        return constructor(root, **arguments)
    except Exception:  # not on disk yet, or incomplete: each data set raises what it likes
        pass
    try:
        return constructor(root, download=True, **arguments)
    except ImportError as error:
        raise DataError(f"torchvision:{spelling}: {error}") from error
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise DataError(
            f"torchvision:{spelling}: not in {root} and the download failed "
            f"({reason[0] if reason else type(error).__name__}); connect to a network, copy the set there, "
            f"or give a folder of images"
        ) from error


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    for attribute in ("classes", "categories"):
        names = getattr(dataset, attribute, None)
        if names:
            return tuple(name if isinstance(name, str) else ", ".join(map(str, name)) for name in names)
    return None

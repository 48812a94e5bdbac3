"""Folders of images in the ImageFolder layout: which files belong to which class and split."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from finepruning.errors import DataError

SPLIT_NAMES = ("train", "validation", "test")

_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_LAYOUT = "expected one subfolder per class, or train/, val/ and test/ (the last two optional) holding them"
_SYSTEM_FILES = {"thumbs.db", "desktop.ini", "icon\r", "__macosx"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


@dataclass(frozen=True)
class File:
    """One file of a data set; ``split`` is None where the folder does not say."""

    path: Path
    label: int
    split: str | None


def scan(root: Path) -> tuple[tuple[str, ...], list[File]]:
    """List the classes (sorted by name) and files (sorted by path) under ``root``.

    Raises DataError where there is no such folder, no class or file in it, or where the splits it holds
    disagree about the classes.
    """
    try:
        return _scan(root)
    except PermissionError as error:
        raise DataError(f"{error.filename}: no permission to read it") from error


def _scan(root: Path) -> tuple[tuple[str, ...], list[File]]:
    if not root.exists():
        raise DataError(f"{root}: no such folder (DATA is a folder of images or torchvision:NAME)")
    if not root.is_dir():
        raise DataError(f"{root}: not a folder; {_LAYOUT}")
    folders = _subfolders(root)
    if not folders:
        if any(path.suffix.lower() in IMAGE_SUFFIXES for path in _visible(root)):
            raise DataError(
                f"{root}: the images lie directly in this folder, so their class is unknown; {_LAYOUT}"
            )
        raise DataError(f"{root}: the folder is empty; {_LAYOUT}")
    splits = _split_folders(root, folders)
    if splits is None:
        classes = tuple(folder.name for folder in folders)
        files = [File(path, label, None) for label, folder in enumerate(folders) for path in _files(folder)]
    else:
        classes = _common_classes(root, splits)
        files = [
            File(path, label, split)
            for split, folder in splits.items()
            for label, name in enumerate(classes)
            for path in _files(folder / name)
        ]
    _check_classes(root, classes, files, splits)
    return classes, files


def _split_folders(root: Path, folders: list[Path]) -> dict[str, Path] | None:
    """The split each subfolder holds, or None where subfolders are classes."""
    if any(folder.name.lower() not in _ALIASES for folder in folders):
        return None
    splits: dict[str, Path] = {}
    for folder in folders:
        split = _ALIASES[folder.name.lower()]
        if split in splits:
            raise DataError(
                f"{root}: {splits[split].name}/ and {folder.name}/ both name the {split} split; keep one"
            )
        splits[split] = folder
    if "train" not in splits:
        found = ", ".join(f"{folder.name}/" for folder in folders)
        raise DataError(f"{root}: has {found} but no train/; {_LAYOUT}")
    return {split: splits[split] for split in SPLIT_NAMES if split in splits}


def _common_classes(root: Path, splits: dict[str, Path]) -> tuple[str, ...]:
    names = {split: {folder.name for folder in _subfolders(path)} for split, path in splits.items()}
    train = names["train"]
    if not train:
        raise DataError(f"{splits['train']}: holds no class folders; {_LAYOUT}")
    for split, present in names.items():
        missing, extra = sorted(train - present), sorted(present - train)
        if missing or extra:
            lacks = f"{splits[split].name}/ lacks {some(missing)}" if missing else ""
            adds = f"{splits[split].name}/ has {some(extra)}, which train/ lacks" if extra else ""
            raise DataError(
                f"{root}: the splits differ in their classes: {'; '.join(filter(None, (lacks, adds)))} "
                f"(every split needs the same class folders)"
            )
    return tuple(sorted(train))


def _check_classes(
    root: Path, classes: tuple[str, ...], files: list[File], splits: dict[str, Path] | None
) -> None:
    if not files:
        raise DataError(f"{root}: no image files in its class folders ({some(classes)})")
    if len(classes) < 2:
        raise DataError(
            f"{root}: only one class ({classes[0]}); telling images apart needs at least two class folders"
        )
    for split in [*splits] if splits else [None]:
        present = {file.label for file in files if file.split == split}
        empty = [name for label, name in enumerate(classes) if label not in present]
        if empty:
            where = f"{splits[split].name}/ " if splits and split else ""
            raise DataError(
                f"{root}: {where}class folders without images: {some(empty)} (add images or remove them)"
            )


def _files(folder: Path) -> list[Path]:
    """All files below a class folder, sorted by path, hidden and system files left out."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [Path(parent) / name for name in sorted(names) if not is_hidden(name)]
    return found


def _raise(error: OSError) -> None:
    raise error


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in _visible(folder) if path.is_dir())


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not is_hidden(path.name)]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or left behind by an operating system."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first few names and how many more there are."""
    names = list(names)
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")

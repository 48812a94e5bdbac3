"""torchvision's data sets by name, with stand-ins for what would be downloaded."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from finepruning import ArgumentError, DataError
from finepruning.data import Splits, load
from finepruning.data.torchvision_sets import SETS, find


def load_small(data: str) -> Splits:
    return load(data, image_size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), seed=0)


class StandIn:
    """Four images of each of three classes; needs ``download=True`` on first use."""

    classes = ("one", "two", "three")

    def __init__(self, root: Path, train: bool = True, download: bool = False) -> None:
        marker = Path(root) / "there"
        if download:
            marker.touch()
        if not marker.exists():
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        self.offset = 0 if train else 100

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        noise = np.random.default_rng(self.offset + index).integers(0, 256, (28, 28), dtype=np.uint8)
        return Image.fromarray(noise), index % 3


class Unreachable(StandIn):
    def __init__(self, root: Path, train: bool = True, download: bool = False) -> None:
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>\nmore")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_download_split_and_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "MNIST", StandIn)
    for _ in range(2):
        splits = load_small("torchvision:mnist")
        assert splits.name == "torchvision:MNIST"
        assert splits.classes == ("one", "two", "three")
        assert (len(splits.train), len(splits.validation), len(splits.test)) == (9, 3, 12)


def test_without_network_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Unreachable)
    with pytest.raises(DataError, match=r"torchvision:CIFAR10: not in .* download failed.*name resolution"):
        load_small("torchvision:CIFAR10")


def test_a_broken_image_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(StandIn):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            if index == 7:
                raise OSError("image file is truncated")
            return super().__getitem__(index)

    monkeypatch.setattr(torchvision.datasets, "MNIST", Broken)
    with pytest.raises(DataError, match="image 7: damaged"):
        load_small("torchvision:MNIST")


def test_an_unknown_name_gets_near_names() -> None:
    with pytest.raises(ArgumentError, match="did you mean CIFAR10"):
        load_small("torchvision:cifar11")
    with pytest.raises(ArgumentError, match="known are Caltech101"):
        load_small("torchvision:")


def test_case_and_separators_do_not_matter() -> None:
    assert find("fashion-mnist") == "FashionMNIST"
    assert find("EUROSAT") == "EuroSAT"


@pytest.mark.parametrize("name", SETS)
def test_every_listed_set_takes_the_arguments_it_is_given(name: str) -> None:
    signature = inspect.signature(getattr(torchvision.datasets, name))
    for arguments in SETS[name].values():
        signature.bind(Path("root"), download=True, **arguments)

"""Predictions equal those of the network on images prepared by hand; unusable files are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from finepruning import ArgumentError, DataError, ModelFileError, SparseModel
from finepruning.data import Preprocessing
from finepruning.predict import find_images, predict

PREPROCESSING = Preprocessing(16, 20, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 3)).eval()


@pytest.fixture(scope="module")
def model(network: nn.Module) -> SparseModel:
    return SparseModel.from_dense(
        network,
        torch.zeros(1, 3, 16, 16),
        preprocessing=PREPROCESSING.to_json(),
        classes=["ant", "bee", "cow"],
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("a.png", "sub/b.jpg", "sub/c.JPG", ".hidden.png", "notes.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if name == "notes.md":
            path.write_text("no image")
            continue
        pixels = generator.integers(0, 256, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path


def test_predictions_are_those_of_the_network(network: nn.Module, model: SparseModel, folder: Path) -> None:
    files = find_images([str(folder)])
    assert [file.name for file in files] == ["a.png", "b.jpg", "c.JPG"]
    for prediction in predict(model, files, top=9, batch_size=2):
        x = PREPROCESSING(Image.open(prediction.image)).unsqueeze(0)
        expected = network(x).softmax(1).squeeze(0)
        assert dict(prediction.top) == pytest.approx(
            dict(zip(["ant", "bee", "cow"], expected.tolist(), strict=True)), abs=1e-5
        )


def test_the_most_probable_class_comes_first(model: SparseModel, folder: Path) -> None:
    (prediction,) = predict(model, [folder / "a.png"], top=3)
    shares = [share for _, share in prediction.top]
    assert shares == sorted(shares, reverse=True)
    assert prediction.to_json()["class"] == prediction.top[0][0]
    (short,) = predict(model, [folder / "a.png"])
    assert short.top == prediction.top[:1]


def test_a_file_that_is_no_image_does_not_stop_the_others(model: SparseModel, folder: Path) -> None:
    broken = folder / "broken.png"
    broken.write_bytes((folder / "a.png").read_bytes()[:300])
    files = [folder / "a.png", folder / "notes.md", broken, folder / "gone.png", folder / "sub" / "b.jpg"]
    found = list(predict(model, files, batch_size=3))
    assert [prediction.error is None for prediction in found] == [True, False, False, False, True]
    assert found[1].error == "not an image"
    assert "cannot be read" in str(found[2].error)
    assert "No such file" in str(found[3].error)
    assert found[1].to_json() == {"image": str(folder / "notes.md"), "error": "not an image"}


def test_files_folders_and_patterns_name_images_once(folder: Path) -> None:
    named = [str(folder / "a.png"), str(folder), str(folder / "sub" / "*.jpg"), str(folder / "notes.md")]
    assert [file.name for file in find_images(named)] == ["a.png", "b.jpg", "c.JPG", "notes.md"]
    assert [f.name for f in find_images([str(folder / "**" / "*.jpg")])] == ["b.jpg"]


def test_what_names_no_image_is_refused(folder: Path) -> None:
    (folder / "empty").mkdir()
    for text, reason in (("nowhere", "no such"), ("empty", "no image files"), ("*.gif", "no file matches")):
        with pytest.raises(DataError, match=reason):
            find_images([str(folder / text)])


def test_a_model_must_say_how_images_are_prepared(network: nn.Module, folder: Path) -> None:
    example = torch.zeros(1, 3, 16, 16)
    for preprocessing, reason in (
        (None, "does not say how images are prepared"),
        ({"image_size": 16}, "preprocessing"),
        (Preprocessing(8, 8, (0.5,) * 3, (0.5,) * 3).to_json(), r"takes \[3, 16, 16\]"),
    ):
        model = SparseModel.from_dense(network, example, preprocessing=preprocessing)
        with pytest.raises(ModelFileError, match=reason):
            list(predict(model, [folder / "a.png"]))


def test_impossible_numbers_are_refused(model: SparseModel, folder: Path) -> None:
    for options in ({"top": 0}, {"batch_size": 0}):
        with pytest.raises(ArgumentError, match="at least 1"):
            list(predict(model, [folder / "a.png"], **options))


def test_without_class_names_outputs_are_numbered(network: nn.Module, folder: Path) -> None:
    model = SparseModel.from_dense(network, torch.zeros(1, 3, 16, 16), preprocessing=PREPROCESSING.to_json())
    (prediction,) = predict(model, [folder / "a.png"], top=3)
    assert sorted(name for name, _ in prediction.top) == ["0", "1", "2"]

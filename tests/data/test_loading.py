"""What a user's folder becomes: splits, classes, caching, and one clear error where it cannot be used."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import MakeFolder, write_image
from PIL import Image

from finepruning import ArgumentError, DataError
from finepruning.data import Images, Splits, load

UC_MERCED = Path(__file__).parents[2] / "../shared/data/ucmerced"


def load_small(data: Path | str, **options: object) -> Splits:
    settings = {"image_size": 16, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "seed": 0} | options
    return load(str(data), **settings)  # type: ignore[arg-type]


def fingerprints(images: Images) -> set[bytes]:
    return {image.numpy().tobytes() for batch, _ in images.batches(64) for image in batch}


def test_class_folders_are_split_by_class(make_folder: MakeFolder) -> None:
    splits = load_small(make_folder(cat=20, dog=40))
    assert splits.classes == ("cat", "dog")
    assert torch.bincount(splits.test.labels).tolist() == [4, 8]
    assert torch.bincount(splits.validation.labels).tolist() == [2, 4]
    assert torch.bincount(splits.train.labels).tolist() == [14, 28]
    parts = [fingerprints(part) for part in (splits.train, splits.validation, splits.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 60
    assert "12 for test and 6 for validation" in splits.messages[0]


def test_the_seed_alone_decides_the_split(make_folder: MakeFolder) -> None:
    root = make_folder(cat=20, dog=20)
    first, again, other = (fingerprints(load_small(root, seed=seed).test) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_given_splits_are_kept(make_folder: MakeFolder) -> None:
    splits = load_small(
        make_folder(train__a=5, train__b=4, val__a=2, val__b=3, test__a=1, test__b=1),
    )
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [9, 5, 2]
    assert splits.messages == ()


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        ({"train__a": 10, "train__b": 10, "test__a": 3, "test__b": 3}, [18, 2, 6]),
        ({"Training__a": 10, "Training__b": 10, "valid__a": 3, "valid__b": 3}, [16, 6, 4]),
        ({"train__a": 10, "train__b": 10}, [14, 2, 4]),
    ],
)
def test_missing_splits_are_taken_from_training(
    make_folder: MakeFolder, folders: dict[str, int], sizes: list[int]
) -> None:
    splits = load_small(make_folder(**folders))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == sizes
    assert "taken from the training images" in splits.messages[0]


def test_a_class_named_like_a_split_is_a_class(make_folder: MakeFolder) -> None:
    assert load_small(make_folder(test=6, bus=6, train=6)).classes == ("bus", "test", "train")


def test_identical_files_stay_in_one_split(make_folder: MakeFolder) -> None:
    root = make_folder(cat=12, dog=12)
    for folder in ("cat", "dog"):
        for number in range(12):
            for copy in range(2):
                shutil.copy(
                    root / folder / f"{number:03d}.png", root / folder / f"copy{copy}_{number:03d}.png"
                )
    splits = load_small(root)
    parts = [fingerprints(part) for part in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 24
    assert sum(len(part) for part in (splits.train, splits.validation, splits.test)) == 72


def test_training_copies_of_test_images_are_left_out(make_folder: MakeFolder) -> None:
    root = make_folder(train__a=10, train__b=10, test__a=3, test__b=3)
    shutil.copy(root / "test/a/001.png", root / "train/a/leak.png")
    splits = load_small(root)
    assert len(splits.train) + len(splits.validation) == 20
    assert not fingerprints(splits.test) & (fingerprints(splits.train) | fingerprints(splits.validation))
    assert "train/leak.png" in splits.messages[0]


def test_identical_files_of_two_classes_are_pointed_out(make_folder: MakeFolder) -> None:
    root = make_folder(a=6, b=6)
    shutil.copy(root / "a/000.png", root / "b/same.png")
    assert any(
        "b/same.png" in message and "different classes" in message for message in load_small(root).messages
    )


def test_hidden_and_system_files_are_ignored(make_folder: MakeFolder) -> None:
    root = make_folder(a=6, b=6)
    for name in ("a/Thumbs.db", "a/.DS_Store", "b/desktop.ini", "b/._000.png", ".git/config", "README.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"not an image")
    splits = load_small(root)
    assert splits.classes == ("a", "b")
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 12


def test_images_below_a_class_folder_belong_to_it(make_folder: MakeFolder) -> None:
    root = make_folder(a=6, b__deeper=6, b=1)
    assert load_small(root).classes == ("a", "b")


def test_cached_and_decoded_anew_give_the_same_batches(make_folder: MakeFolder) -> None:
    root = make_folder(a=10, b=10)
    cached = load_small(root, augmentation="crop")
    for workers in (0, 2):
        anew = load_small(root, augmentation="crop", cache_limit=0, workers=workers)
        assert cached.train.cached
        assert not anew.train.cached
        global_state = torch.random.get_rng_state()
        batches = zip(
            cached.train.batches(4, shuffle=7, augment=True),
            anew.train.batches(4, shuffle=7, augment=True),
            strict=True,
        )
        for (images, labels), (own_images, own_labels) in batches:
            torch.testing.assert_close(images, own_images, rtol=0, atol=0)
            assert labels.tolist() == own_labels.tolist()
        assert torch.equal(torch.random.get_rng_state(), global_state)


def test_an_image_damaged_after_loading_is_named(make_folder: MakeFolder) -> None:
    root = make_folder(a=6, b=6)
    splits = load_small(root, cache_limit=0)
    for path in root.rglob("*.png"):
        path.write_bytes(b"gone bad")
    with pytest.raises(DataError, match=r"images/[ab]/00\d\.png: not an image"):
        next(splits.train.batches(4))


def test_damaged_and_foreign_files_are_named_together(make_folder: MakeFolder) -> None:
    root = make_folder(a=8, b=8)
    whole = (root / "a/000.png").read_bytes()
    (root / "a/000.png").write_bytes(whole[: len(whole) // 2])
    (root / "a/001.png").write_bytes(b"")
    for number in range(6):
        (root / f"b/notes{number}.txt").write_text("no image")
    with pytest.raises(DataError) as caught:
        load_small(root)
    message = str(caught.value)
    assert "8 of 22 files cannot be used" in message
    assert "a/000.png: damaged image" in message
    assert "a/001.png: the file is empty" in message
    assert "b/notes0.txt: not an image" in message
    assert "and 3 more" in message


def test_a_truncated_jpeg_is_refused(make_folder: MakeFolder) -> None:
    root = make_folder(a=6, b=6)
    Image.open(root / "a/000.png").resize((200, 200)).save(root / "a/photo.jpg")
    content = (root / "a/photo.jpg").read_bytes()
    (root / "a/photo.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"a/photo\.jpg: damaged image"):
        load_small(root)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        load_small(tmp_path / "nowhere")


def test_a_file_is_no_data_set(tmp_path: Path) -> None:
    write_image(tmp_path / "one.png", 0)
    with pytest.raises(DataError, match=r"one\.png: not a folder"):
        load_small(tmp_path / "one.png")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the folder is empty"):
        load_small(tmp_path)


def test_empty_class_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(DataError, match="no image files"):
        load_small(tmp_path)


def test_images_without_class_folders(tmp_path: Path) -> None:
    write_image(tmp_path / "one.png", 0)
    with pytest.raises(DataError, match="lie directly in this folder"):
        load_small(tmp_path)


@pytest.mark.parametrize(
    ("folders", "complaint"),
    [
        ({"a": 9}, "only one class"),
        ({"a": 9, "b": 1}, r"b \(1\); each needs at least 3"),
        ({"a": 9, "b": 2}, r"b \(2\); each needs at least 3"),
        ({"train__a": 9, "train__b": 1, "test__a": 1, "test__b": 1}, r"b \(1\); each needs at least 2"),
        ({"train__a": 9, "train__b": 9, "test__a": 1}, r"test/ lacks b"),
        ({"train__a": 9, "train__b": 9, "test__a": 1, "test__c": 1}, r"test/ has c, which train/ lacks"),
        ({"val__a": 9, "test__a": 9}, "no train/"),
        ({"train__a": 9, "val__a": 9, "valid__a": 9}, "both name the validation split"),
    ],
)
def test_unusable_folders(make_folder: MakeFolder, folders: dict[str, int], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        load_small(make_folder(**folders))


def test_a_split_without_a_class_is_named(make_folder: MakeFolder) -> None:
    root = make_folder(train__a=5, train__b=5, test__a=2)
    (root / "test/b").mkdir()
    with pytest.raises(DataError, match="test/ class folders without images: b"):
        load_small(root)


def test_a_class_whose_images_are_all_copies_cannot_be_split(make_folder: MakeFolder) -> None:
    root = make_folder(a=9, b=1)
    for number in range(8):
        shutil.copy(root / "b/000.png", root / f"b/copy{number}.png")
    with pytest.raises(DataError, match=r"b \(1\)"):
        load_small(root)


def test_an_unreadable_folder_is_named(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: str) -> object:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    root = make_folder(a=4, b=4)
    monkeypatch.setattr(os, "scandir", refuse)  # chmod does not stop the superuser, who may run the tests
    with pytest.raises(DataError, match=r"images.*: no permission"):
        load_small(root)


@pytest.mark.parametrize(
    "options",
    [{"image_size": 4}, {"image_size": 100_000}, {"augmentation": "shear"}, {"std": (0.0, 1.0, 1.0)}],
)
def test_options_out_of_range(make_folder: MakeFolder, options: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        load_small(make_folder(a=4, b=4), **options)


@pytest.mark.skipif(not UC_MERCED.exists(), reason="needs the UC Merced images in ../shared/data")
def test_uc_merced() -> None:
    splits = load(str(UC_MERCED), image_size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), seed=0)
    assert len(splits.classes) == 21
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1512, 168, 420)
    assert torch.bincount(splits.validation.labels).tolist() == [8] * 21

"""Images of every mode and shape become the same kind of tensor, in training and in use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finepruning import ArgumentError
from finepruning.data import Preprocessing, load
from finepruning.data.preprocessing import decode, to_rgb

PLAIN = Preprocessing(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def flat(mode: str, color: object, size: tuple[int, int] = (12, 10)) -> Image.Image:
    return Image.new(mode, size, color)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "rgb"),
    [
        (flat("RGB", (200, 100, 50)), (200, 100, 50)),
        (flat("L", 77), (77, 77, 77)),
        (flat("1", 1), (255, 255, 255)),
        (flat("LA", (50, 255)), (50, 50, 50)),
        (flat("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        (flat("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
        (flat("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
        (flat("YCbCr", (128, 128, 128)), (128, 128, 128)),
        (flat("I;16", 65535 // 2), (127, 127, 127)),
        (flat("I", 65535), (255, 255, 255)),
        (flat("I", 200), (200, 200, 200)),
        (flat("F", 0.5), (128, 128, 128)),
        (flat("F", 90.0), (90, 90, 90)),
        (flat("RGB", (9, 8, 7)).quantize(4), (9, 8, 7)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_becomes_rgb(image: Image.Image, rgb: tuple[int, int, int]) -> None:
    pixels = decode(image, 8)
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - np.array(rgb)[:, None, None]).max() <= 1


def test_palette_transparency_lies_over_white() -> None:
    image = flat("P", 3)
    image.putpalette([0, 0, 0] * 256)
    image.info["transparency"] = 3
    assert np.asarray(to_rgb(image)).min() == 255


def test_16_bit_files_keep_their_range(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    pixels = decode(Image.open(tmp_path / "deep.png"), 64)
    assert np.abs(pixels[0] - ramp / 257).max() <= 0.51


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    upright = np.zeros((16, 16, 3), dtype=np.uint8)
    upright[:8] = 255
    image = Image.fromarray(upright).rotate(90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    image.save(tmp_path / "phone.png", exif=exif)
    pixels = decode(Image.open(tmp_path / "phone.png"), 16)
    assert (pixels[0] == upright[:, :, 0]).all()


def test_the_centre_square_is_kept_and_not_distorted() -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200
    assert (decode(Image.fromarray(wide), 10) == 200).all()


def test_normalisation_matches_its_formula() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    pixels = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    expected = (pixels.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    result = Preprocessing(5, 5, mean, std).normalize(pixels)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)


def test_one_image_is_prepared_as_in_the_batches(tmp_path: Path) -> None:
    for offset, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        for number in range(4):
            random = np.random.default_rng(4 * offset + number)
            noise = random.integers(0, 256, (90, 70, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / folder / f"{number}.jpg")
    splits = load(
        str(tmp_path), image_size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2), seed=0, augmentation="crop"
    )
    alone = [splits.preprocessing(Image.open(path)) for path in sorted(tmp_path.rglob("*.jpg"))]
    for batch, _ in splits.train.batches(2):
        for image in batch:
            assert any(torch.equal(image, own) for own in alone)


def test_json_round_trip() -> None:
    preprocessing = Preprocessing(224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing


@pytest.mark.parametrize(
    "change",
    [
        {"std": [1, 1]},
        {"std": [0, 1, 1]},
        {"mean": "abc"},
        {"image_size": 0},
        {"resize": 3},
        {"mean": [1, 2, None]},
    ],
)
def test_malformed_json_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match="preprocessing"):
        Preprocessing.from_json(PLAIN.to_json() | change)


def test_missing_json_field_is_refused() -> None:
    with pytest.raises(ArgumentError, match="preprocessing"):
        Preprocessing.from_json({"image_size": 8})

"""From an image of any mode and size to the tensor a network takes: the same steps in training and in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from finepruning.errors import ArgumentError


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes network input.

    The shorter side is resized to ``resize`` pixels (bilinear, antialiased), the centre square of
    ``image_size`` pixels is kept, and each RGB channel in 0..1 is normalised as (x - mean) / std.
    """

    image_size: int
    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.image_size < 1 or self.resize < self.image_size:
            raise ArgumentError(
                f"preprocessing: image_size must be at least 1 and resize at least image_size, "
                f"got image_size={self.image_size}, resize={self.resize}"
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(np.isfinite(values)):
                raise ArgumentError(f"preprocessing: {name} must be three finite numbers, got {values}")
        if min(self.std) <= 0:
            raise ArgumentError(f"preprocessing: std must be positive, got {self.std}")

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Turn one PIL image of any mode into float32 [3, image_size, image_size]."""
        pixels = torch.from_numpy(decode(image, self.resize)).unsqueeze(0)
        return self.normalize(self.center(pixels)).squeeze(0)

    def center(self, pixels: torch.Tensor) -> torch.Tensor:
        """Keep the centre square: [b, 3, resize, resize] -> [b, 3, image_size, image_size] (a view)."""
        offset = (pixels.shape[-1] - self.image_size) // 2
        return pixels[..., offset : offset + self.image_size, offset : offset + self.image_size]

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn values 0..255 (uint8 or float), [b, 3, h, w], into contiguous normalised float32."""
        std = torch.tensor(self.std).view(3, 1, 1)
        mean = torch.tensor(self.mean).view(3, 1, 1)
        values = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return values.mul(1 / (255 * std)).sub_(mean / std)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "image_size": self.image_size,
            "resize": self.resize,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_json`; raises ArgumentError where a field is missing or malformed."""
        try:
            return Preprocessing(
                int(values["image_size"]),
                int(values["resize"]),
                _triple(values["mean"]),
                _triple(values["std"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ArgumentError):
                raise
            raise ArgumentError(f"preprocessing: {error!r} in {dict(values)}") from error


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def decode(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """Decode a PIL image to uint8 RGB [3, side, side]: the centre square, resized."""
    # Lets the JPEG decoder skip resolution that the resize below would throw away; ignored by other formats.
    image.draft(None, (2 * side, 2 * side))
    image = to_rgb(ImageOps.exif_transpose(image))
    width, height = image.size
    edge = min(width, height)
    left, top = (width - edge) / 2, (height - edge) / 2
    box = (left, top, left + edge, top + edge)
    square = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any PIL mode to RGB: transparency over white, 16-bit and float images scaled to 8 bits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))
    peak = float(values.max(initial=0.0))
    if image.mode.startswith("I;16") or peak > 255:
        scale = 255 / 65535
    elif image.mode == "F" and peak <= 1:
        scale = 255.0
    else:
        scale = 1.0
    gray = np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)
    return Image.fromarray(gray).convert("RGB")

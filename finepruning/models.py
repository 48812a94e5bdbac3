"""Classifiers by name, with a head for the number of classes and weights from where the user says."""

from __future__ import annotations

import difflib
import importlib
import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from finepruning import weights as weight_files
from finepruning.errors import ArgumentError, ModelFileError
from finepruning.networks import TEXTURENET_WEIGHTS, TextureNet

BUILT_IN = "texturenet"

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_AUXILIARY = {"googlenet", "inception_v3"}
_POSITIONS = "encoder.pos_embedding"


@dataclass(frozen=True)
class InputSpec:
    """The input a network was made for: side of the square image in pixels, and channel statistics."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __iter__(self) -> Any:
        return iter((self.image_size, self.mean, self.std))


@dataclass
class Network:
    """A classifier ready for fine-tuning.

    Attributes:
        module: float32 [b, 3, image_size, image_size] -> logits [b, num_classes].
        name: as the command line takes it.
        image_size, mean, std: the input it expects.
        messages: what loading the weights left fresh or ignored.
    """

    module: nn.Module
    name: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    messages: list[str] = field(default_factory=list)


def names() -> list[str]:
    """Names that `create` takes, apart from ``timm:NAME``."""
    return [BUILT_IN, *torchvision.models.list_models(module=torchvision.models)]


def resolve(name: str | None) -> str:
    """The name in its usual spelling; ArgumentError with near names where there is no such model."""
    if name is None:
        return BUILT_IN
    if name.lower().startswith("timm:"):
        return _resolve_timm(name[len("timm:") :])
    key = name.strip().lower().replace("-", "_")
    if key in names():
        return key
    raise ArgumentError(f"model: unknown name {name!r}{_near(key, names())}")


def input_spec(name: str | None) -> InputSpec:
    """What input the named network was made for (it unpacks as image_size, mean, std)."""
    key = resolve(name)
    if key == BUILT_IN:
        return InputSpec(TextureNet.image_size, TextureNet.mean, TextureNet.std)
    if key.startswith("timm:"):
        settings = _timm().get_pretrained_cfg(key[len("timm:") :])
        if settings is None:
            return InputSpec(224, _IMAGENET_MEAN, _IMAGENET_STD)
        return InputSpec(settings.input_size[-1], tuple(settings.mean), tuple(settings.std))
    transform = torchvision.models.get_model_weights(key).DEFAULT.transforms()
    return InputSpec(transform.crop_size[0], tuple(transform.mean), tuple(transform.std))


def create(
    name: str | None, num_classes: int, weights: str = "default", seed: int = 0, image_size: int | None = None
) -> Network:
    """Build a classifier and load its weights.

    Args:
        name: a torchvision classifier, ``timm:NAME``, or None for the built-in network.
        num_classes: outputs of the new head.
        weights: "default" (the published weights), "none", or a safetensors or torch file.
        seed: fixes the values of whatever starts fresh.
        image_size: side of the input in pixels; None for the network's own.

    Raises:
        ArgumentError: unknown name, or an input size the network cannot take.
        ModelFileError: the weights cannot be had, read, or are another network's.
    """
    key = resolve(name)
    if num_classes < 1:
        raise ArgumentError(f"num_classes must be at least 1, got {num_classes}")
    spec = input_spec(key)
    size = spec.image_size if image_size is None else image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _build(key, num_classes, size, pretrained=weights != "none")
    messages = []
    if weights != "none":
        tensors, origin = _tensors(key, weights)
        if isinstance(module, VisionTransformer):
            tensors = _fit_positions(module, tensors, size)
        messages = weight_files.load_into(
            module, tensors, head=_head(module, num_classes), origin=origin, name=key
        )
    _check_size(module, key, size)
    return Network(module, key, size, spec.mean, spec.std, messages)


def _build(key: str, num_classes: int, image_size: int, *, pretrained: bool) -> nn.Module:
    if key == BUILT_IN:
        return TextureNet(num_classes)
    if key.startswith("timm:"):
        options: dict[str, Any] = {"pretrained": False, "num_classes": num_classes}
        module: nn.Module = _timm().create_model(key[len("timm:") :], **options)
        return module
    options = {"weights": None, "num_classes": num_classes}
    if key in _AUXILIARY:
        # The published weights of these two expect channels normalised in their own way.
        options |= {"aux_logits": False, "init_weights": not pretrained, "transform_input": pretrained}
    if key.startswith("vit_"):
        options["image_size"] = image_size
    try:
        module = torchvision.models.get_model(key, **options)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ArgumentError(
            f"image_size: {key} cannot be built for {image_size}x{image_size} images ({error})"
        ) from error
    return module


def _tensors(key: str, weights: str) -> tuple[dict[str, Tensor], str]:
    """The named weights, and what to call them in messages."""
    if weights != "default":
        return weight_files.read(weights), weights
    if key == BUILT_IN:
        return weight_files.read(str(TEXTURENET_WEIGHTS)), "the built-in weights"
    origin = f"the published weights of {key}"
    try:
        if key.startswith("timm:"):
            logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every retry
            full = _timm().create_model(key[len("timm:") :], pretrained=True)
        else:
            full = torchvision.models.get_model(key, weights="DEFAULT", progress=False)
    except Exception as error:  # network, disk and hash failures come in many types
        raise ModelFileError(
            f"{origin} could not be downloaded ({error}); give --weights none to start from random weights, "
            f"or --weights FILE with a safetensors or torch file"
        ) from error
    return full.state_dict(), origin


def _fit_positions(
    module: VisionTransformer, tensors: dict[str, Tensor], image_size: int
) -> dict[str, Tensor]:
    """Resample the position embeddings of a vision transformer made for another image size."""
    own, given = module.state_dict()[_POSITIONS], tensors.get(_POSITIONS)
    if given is None or given.shape == own.shape or given.dim() != 3 or given.shape[2] != own.shape[2]:
        return tensors
    try:
        fitted: dict[str, Tensor] = interpolate_embeddings(
            image_size, module.patch_size, OrderedDict(tensors)
        )
    except ValueError as error:
        raise ModelFileError(
            f"weights: {_POSITIONS} cannot be fitted to {image_size}x{image_size} images ({error})"
        ) from error
    return fitted


def _head(module: nn.Module, num_classes: int) -> str:
    """Name of the layer that puts out the logits: the last fully connected or convolution layer."""
    layers = [
        (name, layer.weight.shape[0])
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    fitting = [name for name, outputs in layers if outputs == num_classes]
    if not fitting:
        raise ArgumentError("model: it has no classification layer to replace")
    return str(fitting[-1])


def _check_size(module: nn.Module, key: str, size: int) -> None:
    """Run one black image through, so that an input too small or odd is refused before data is loaded."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            module(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        own = input_spec(key).image_size
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArgumentError(
            f"image_size: {key} cannot take {size}x{size} images ({reason}); its own size is {own}"
        ) from error
    finally:
        module.train(training)


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ArgumentError(
            "model: timm:NAME needs the package timm; install it with: pip install 'finepruning[timm]'"
        ) from error


def _resolve_timm(name: str) -> str:
    timm = _timm()
    if bool(timm.is_model(name)):
        return "timm:" + name
    raise ArgumentError(f"model: timm has no {name!r}{_near(name, timm.list_models())}")


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    if close:
        return f"; near names: {', '.join(close)}"
    return "; a torchvision classifier such as resnet50 or vgg16, timm:NAME, or none for the built-in network"

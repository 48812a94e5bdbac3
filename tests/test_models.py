"""Classifiers by name, heads for any number of classes, and weights from files that may not fit."""

from __future__ import annotations

import sys
import types
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from finepruning import ArgumentError, ModelFileError, models
from finepruning.networks import TEXTURENET_WEIGHTS, TextureNet

SQUEEZENET_TRUNK = (
    Path(__file__).parents[1] / "../shared/data/weights/squeezenet1_1_imagenet_trunk.safetensors"
)

# One of each family, the smallest, and the side of a square image it accepts.
FAMILIES = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_x_400mf": 32,
    "resnet18": 32,
    "resnext50_32x4d": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "swin_t": 64,
    "vgg11": 32,
    "vit_b_32": 64,
}


def squeezenet_tensors(num_classes: int = 4) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return dict(torchvision.models.squeezenet1_1(num_classes=num_classes).state_dict())


def created(weights: str | Path, num_classes: int = 4, name: str = "squeezenet1_1") -> models.Network:
    return models.create(name, num_classes, str(weights), seed=0, image_size=64)


@pytest.mark.parametrize(("name", "size"), FAMILIES.items())
def test_every_family_gets_a_head_of_the_right_size(name: str, size: int) -> None:
    network = models.create(name, 5, "none", seed=0, image_size=size)
    network.module.eval()
    with torch.no_grad():
        assert network.module(torch.randn(2, 3, size, size)).shape == (2, 5)
    assert network.image_size == size
    assert network.messages == []


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_off_in_training(name: str) -> None:
    network = models.create(name, 3, "none", seed=0, image_size=96)
    assert isinstance(network.module.train()(torch.randn(2, 3, 96, 96)), Tensor)


def test_the_seed_fixes_what_starts_fresh_and_leaves_the_global_generator() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (models.create(None, 4, "none", seed=seed).module for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.classifier[4].weight, again.classifier[4].weight)
    assert not torch.equal(first.classifier[4].weight, other.classifier[4].weight)


def test_input_spec_matches_the_published_weights() -> None:
    size, mean, std = models.input_spec("resnet50")
    assert size == 224
    assert mean == (0.485, 0.456, 0.406)
    assert std == (0.229, 0.224, 0.225)
    assert models.input_spec("inception_v3").image_size == 299
    assert models.input_spec(None).image_size == 64


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet5", "resnet50"), ("vgg", "vgg11"), ("alexnett", "alexnet"), ("texture-nett", "texturenet")],
)
def test_an_unknown_name_gets_near_names(name: str, near: str) -> None:
    with pytest.raises(ArgumentError, match=f"unknown name '{name}'; near names: .*{near}"):
        models.create(name, 3, "none", seed=0)


def test_a_far_off_name_gets_examples() -> None:
    with pytest.raises(ArgumentError, match="such as resnet50"):
        models.input_spec("qqqqqq")


def test_case_and_dashes_do_not_matter() -> None:
    assert models.resolve("ResNet50") == "resnet50"
    assert models.resolve("squeezenet1-1") == "squeezenet1_1"


def test_a_size_the_network_cannot_take_is_refused() -> None:
    with pytest.raises(
        ArgumentError, match=r"image_size: alexnet cannot take 32x32 images .*its own size is 224"
    ):
        models.create("alexnet", 3, "none", seed=0, image_size=32)
    with pytest.raises(ArgumentError, match="vit_b_32 cannot be built for 65x65 images"):
        models.create("vit_b_32", 3, "none", seed=0, image_size=65)


@pytest.mark.parametrize("kind", ["safetensors", "state_dict", "checkpoint", "parallel", "half", "auxiliary"])
def test_weights_files_of_every_kind(kind: str, tmp_path: Path) -> None:
    tensors = squeezenet_tensors()
    path = tmp_path / ("w.safetensors" if kind in ("safetensors", "half") else "w.pt")
    if kind == "safetensors":
        save_file(tensors, path)
    elif kind == "half":
        save_file({name: value.half() for name, value in tensors.items()}, path)
    elif kind == "checkpoint":
        torch.save({"epoch": 3, "state_dict": tensors}, path)
    elif kind == "parallel":
        torch.save({f"module.{name}": value for name, value in tensors.items()}, path)
    elif kind == "auxiliary":
        torch.save({**tensors, "aux1.fc.weight": torch.zeros(3)}, path)
    else:
        torch.save(tensors, path)
    network = created(path)
    tolerance = 1e-3 if kind == "half" else 0
    for name, value in network.module.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, tensors[name], rtol=tolerance, atol=tolerance)
    assert network.messages == []


def test_a_missing_head_starts_fresh_and_is_said(tmp_path: Path) -> None:
    tensors = squeezenet_tensors()
    save_file(
        {name: value for name, value in tensors.items() if "classifier" not in name},
        tmp_path / "w.safetensors",
    )
    network = created(tmp_path / "w.safetensors")
    assert network.messages == [f"classifier.1 was missing in {tmp_path / 'w.safetensors'} and starts fresh"]
    assert torch.equal(network.module.state_dict()["features.0.weight"], tensors["features.0.weight"])


def test_a_head_for_other_classes_starts_fresh_and_is_said(tmp_path: Path) -> None:
    save_file(squeezenet_tensors(num_classes=10), tmp_path / "w.safetensors")
    network = created(tmp_path / "w.safetensors")
    assert len(network.messages) == 1
    assert "classifier.1 has 10 outputs" in network.messages[0]
    assert "4 here" in network.messages[0]


def test_a_trunk_without_its_whole_classifier_is_accepted(tmp_path: Path) -> None:
    tensors = {
        name: value
        for name, value in torchvision.models.alexnet(num_classes=4).state_dict().items()
        if name.startswith("features.")
    }
    save_file(tensors, tmp_path / "w.safetensors")
    network = models.create("alexnet", 4, str(tmp_path / "w.safetensors"), seed=0, image_size=64)
    assert "classifier.1, classifier.4, classifier.6 were missing" in network.messages[0]
    assert network.messages[0].endswith("and start fresh")


def test_old_densenet_spelling_is_understood(tmp_path: Path) -> None:
    tensors = torchvision.models.densenet121(num_classes=4).state_dict()
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.")
        if "denselayer" in name
        else name: value
        for name, value in tensors.items()
    }
    assert old.keys() != tensors.keys()
    torch.save(old, tmp_path / "w.pth")
    network = models.create("densenet121", 4, str(tmp_path / "w.pth"), seed=0, image_size=32)
    assert network.messages == []
    assert all(torch.equal(value, tensors[name]) for name, value in network.module.state_dict().items())


def test_a_vision_transformer_takes_weights_made_for_another_image_size(tmp_path: Path) -> None:
    save_file(
        dict(models.create("vit_b_32", 4, "none", seed=1).module.state_dict()), tmp_path / "w.safetensors"
    )
    network = models.create("vit_b_32", 4, str(tmp_path / "w.safetensors"), seed=0, image_size=64)
    assert network.messages == []
    assert network.module.state_dict()["encoder.pos_embedding"].shape == (1, 5, 768)


def test_weights_of_another_network_are_refused_with_what_differs(tmp_path: Path) -> None:
    save_file(dict(torchvision.models.resnet18(num_classes=4).state_dict()), tmp_path / "w.safetensors")
    with pytest.raises(ModelFileError) as caught:
        created(tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "not weights of squeezenet1_1" in message
    assert "50 of the network's 52 tensors are missing (features.0.weight, " in message
    assert "of the file's 122 tensors are unknown" in message


def test_weights_of_another_width_are_refused_with_the_shape(tmp_path: Path) -> None:
    tensors = squeezenet_tensors()
    tensors["features.0.weight"] = torch.zeros(32, 3, 3, 3)
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(
        ModelFileError, match=r"features\.0\.weight: \(32, 3, 3, 3\) in the file, \(64, 3, 3, 3\)"
    ):
        created(tmp_path / "w.safetensors")


class Harmful:
    """Runs code when unpickled."""

    def __reduce__(self) -> Any:
        return print, ("code from a weights file was run",)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"features.0.weight": Harmful()}, tmp_path / "w.pt")
    with pytest.raises(ModelFileError, match="refused"):
        created(tmp_path / "w.pt")
    assert "was run" not in capsys.readouterr().out


def bad_file(kind: str, path: Path) -> None:
    tensors = squeezenet_tensors()
    if kind == "text":
        path.write_text("no weights at all")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "nan":
        tensors["features.0.bias"] = torch.full((64,), float("nan"))
        save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kind", ["text", "empty", "truncated", "nan"])
def test_bad_files_are_named(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"bad{suffix}"
    bad_file(kind, path)
    with pytest.raises(ModelFileError, match=rf"bad\{suffix}: .*"):
        created(path)


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"features.0.weight": 3}, torch.zeros(3), {1: torch.zeros(2)}]
)
def test_torch_files_of_something_else_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ModelFileError, match=r"w\.pt: (holds no tensors|entry .* is a|entry .* has no name)"):
        created(tmp_path / "w.pt")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"nothing\.pt: no such weights file"):
        created(tmp_path / "nothing.pt")
    with pytest.raises(ModelFileError, match="not a file"):
        created(tmp_path)


def test_published_weights_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nonexistent/hub")
    monkeypatch.setattr("os.makedirs", lambda *_, **__: None)
    with pytest.raises(ModelFileError, match=r"could not be downloaded .*--weights none .*--weights FILE"):
        created("default")


def test_published_weights_lose_only_their_head(monkeypatch: pytest.MonkeyPatch) -> None:
    published = torchvision.models.squeezenet1_1()
    get_model = torchvision.models.get_model

    def stand_in(name: str, **options: Any) -> nn.Module:
        return published if options.get("weights") == "DEFAULT" else get_model(name, **options)

    monkeypatch.setattr(torchvision.models, "get_model", stand_in)
    network = created("default")
    assert torch.equal(
        network.module.state_dict()["features.3.squeeze.bias"], published.features[3].squeeze.bias
    )
    assert "1000 outputs" in network.messages[0]


@pytest.mark.skipif(not SQUEEZENET_TRUNK.exists(), reason="needs the SqueezeNet trunk in ../shared/data")
def test_the_real_squeezenet_trunk() -> None:
    network = created(SQUEEZENET_TRUNK, num_classes=21)
    assert len(network.messages) == 1
    assert network.module.state_dict()["features.0.weight"].std() > 0.05


def test_the_built_in_network_comes_with_small_pretrained_weights() -> None:
    assert TEXTURENET_WEIGHTS.stat().st_size <= 2_000_000
    network = models.create(None, 9, "default", seed=0)
    fresh = models.create(None, 9, "none", seed=0)
    assert network.name == "texturenet"
    assert network.messages == ["classifier.4 was missing in the built-in weights and starts fresh"]
    own, other = network.module.state_dict(), fresh.module.state_dict()
    assert [name for name in own if torch.equal(own[name], other[name])] == [
        "classifier.4.weight",
        "classifier.4.bias",
    ]
    kinds = {type(layer) for layer in network.module.modules()}
    assert {nn.Conv2d, nn.Linear} <= kinds


def test_timm_models_when_timm_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ArgumentError, match=r"pip install 'finepruning\[timm\]'"):
        models.create("timm:resnet18", 3, "none", seed=0)


@pytest.fixture
def stand_in_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timm with one model."""
    timm = types.ModuleType("timm")

    def create_model(name: str, pretrained: bool = False, num_classes: int = 1000) -> nn.Module:
        return TextureNet(num_classes)

    settings = types.SimpleNamespace(input_size=(3, 96, 96), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    timm.is_model = lambda name: name == "tiny"  # type: ignore[attr-defined]
    timm.list_models = lambda: ["tiny"]  # type: ignore[attr-defined]
    timm.create_model = create_model  # type: ignore[attr-defined]
    timm.get_pretrained_cfg = lambda name: settings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)


@pytest.mark.usefixtures("stand_in_timm")
def test_timm_models_when_timm_is_installed() -> None:
    network = models.create("timm:tiny", 3, "default", seed=0)
    assert (network.name, network.image_size, network.mean) == ("timm:tiny", 96, (0.1, 0.2, 0.3))
    assert network.module(torch.zeros(1, 3, 96, 96)).shape == (1, 3)
    with pytest.raises(ArgumentError, match="timm has no 'tinyy'; near names: tiny"):
        models.create("timm:tinyy", 3, "none", seed=0)

"""Exported files give the model's outputs, for any batch, without this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from finepruning import ArgumentError, SparseModel
from finepruning import export as module
from finepruning.dense import DenseNetwork
from finepruning.export import ExportMismatchError, export
from finepruning.sparse.storage import load


class Branches(nn.Module):
    """Everything the graph has an operation for, and an ATen one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6())
        self.left = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)
        self.right = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16 * 2 * 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a = torch.sigmoid(self.left(x)) * x + self.right(x)
        b = nn.functional.avg_pool2d(a, 3, 1, 1)
        x = nn.functional.max_pool2d(torch.cat([a, b], 1), 2)
        x = torch.nn.functional.adaptive_avg_pool2d(x.roll(1, 2), 2)
        logits: Tensor = self.head(x.flatten(1))
        return logits


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = Branches().eval()
    with torch.no_grad():
        for layer in (network.left, network.right, network.head):
            layer.weight[:, ::2] = 0.0
    path = tmp_path_factory.mktemp("exported") / "model"
    example = torch.zeros(1, 3, 20, 20)
    SparseModel.from_dense(network, example, classes=list("abcde")).save_pretrained(path)
    return path


def test_the_dense_network_gives_the_models_outputs(model: Path) -> None:
    network, sparse = DenseNetwork(load(model)), SparseModel.from_pretrained(model)
    assert list(network.weights) == ["stem.0", "left", "right", "head"]
    for batch in (1, 3):
        x = torch.randn(batch, 3, 20, 20)
        torch.testing.assert_close(network(x), sparse(x), rtol=1e-4, atol=1e-5)
    network.weights["head"].zero_()
    assert network(x).std(0).max() < 1e-6


def test_a_vision_transformer_is_traced_for_any_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(16, 8, 1, 2, 16, 32, num_classes=4).eval()
    SparseModel.from_dense(network, torch.zeros(1, 3, 16, 16)).save_pretrained(tmp_path / "model")
    assert export(tmp_path / "model", "torch", tmp_path / "vit.pt2")["relative_error"] < 1e-5


def test_a_torch_program_runs_without_this_package(model: Path, tmp_path: Path) -> None:
    result = export(model, "torch", tmp_path / "net.pt2")
    assert result["relative_error"] < 1e-5
    assert result["bytes"] == (tmp_path / "net.pt2").stat().st_size
    code = (
        "import json, sys, torch\n"
        "files = {'finepruning.json': ''}\n"
        f"program = torch.export.load({str(tmp_path / 'net.pt2')!r}, extra_files=files).module()\n"
        "assert program(torch.zeros(7, 3, 20, 20)).shape == (7, 5)\n"
        "assert json.loads(files['finepruning.json'])['classes'] == list('abcde')\n"
        "assert 'finepruning' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_onnx_runs_in_its_own_runtime(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    result = export(model, "onnx", tmp_path / "net.onnx")
    assert result["relative_error"] < 1e-4
    assert result["checked"].startswith("ONNX Runtime")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(5, 3, 20, 20)
    (logits,) = session.run(["logits"], {"images": x.numpy()})
    expected = SparseModel.from_pretrained(model)(x)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-3, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list("abcde")


def test_a_state_dict_holds_the_zeros(model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    assert export(model, "state_dict", tmp_path / "net.safetensors")["checked"] is None
    weights = load_file(tmp_path / "net.safetensors")
    assert weights["head.weight"].shape == (5, 64)
    assert int(weights["head.weight"].count_nonzero()) == 5 * 32


def test_a_file_with_other_outputs_is_not_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_compare", lambda *_: 0.5)
    (tmp_path / "net.pt2").write_text("what was there before")
    with pytest.raises(ExportMismatchError, match="differ"):
        export(model, "torch", tmp_path / "net.pt2")
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt2"]
    assert (tmp_path / "net.pt2").read_text() == "what was there before"


def test_what_cannot_be_exported_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="torch, state_dict, onnx"):
        export(model, "tflite", tmp_path / "net")
    with pytest.raises(ArgumentError, match="does not exist"):
        export(model, "torch", tmp_path / "no" / "net.pt2")

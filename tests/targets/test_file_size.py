"""`--target-bytes`: what a run writes, against what it was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import tiny_config
from torch import nn

from finepruning import SparseModel
from finepruning.compress import Interrupted, compress, dry_run
from finepruning.config import CompressConfig
from finepruning.errors import ArgumentError
from finepruning.progress import NoProgress
from finepruning.pruning import prunable_layers
from finepruning.targets.file_size import FileModel, FileSizeTarget

pytestmark = pytest.mark.usefixtures("tiny")


def bytes_config(images: Path, out: Path, size: int, **options: Any) -> CompressConfig:
    return tiny_config(images, out, target_density=None, target_bytes=size, search="none", **options)


def directory_bytes(run: Path) -> int:
    return sum(file.stat().st_size for file in (run / "model").iterdir())


@pytest.mark.parametrize("options", [{}, {"splicing": False, "allocation": "erk"}, {"search": "random"}])
def test_the_directory_is_as_large_as_it_may_be(
    options: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    limit = 3300
    config = bytes_config(images, tmp_path / "run", limit, allocation="global")
    config = CompressConfig(**{**vars(config), **options})
    report = compress(config)
    size = directory_bytes(tmp_path / "run")
    assert limit - 24 < size <= limit  # the text of the header and of config.json is padded, weights are not
    assert report["target"] == {"name": "target_bytes", "asked": limit, "reached": size}
    assert report["bytes_sparse"] == size
    assert report["accuracy"] == report["sparse_accuracy"]
    assert f"{size} of at most {limit} bytes" in (tmp_path / "run" / "report.md").read_text()


def test_it_is_resumed_to_the_same_file(images: Path, tmp_path: Path) -> None:
    class Stop(NoProgress):
        left = 34

        def advance(self, units: int = 1, **_: float) -> None:
            self.left -= units
            if self.left < 0:
                raise KeyboardInterrupt

    compress(bytes_config(images, tmp_path / "a", 3300))
    with pytest.raises(Interrupted):
        compress(bytes_config(images, tmp_path / "b", 3300), progress=Stop())
    compress(CompressConfig(), resume=tmp_path / "b")
    first, second = ((tmp_path / run / "model" / "model.safetensors").read_bytes() for run in "ab")
    assert first == second


def test_too_few_bytes_are_refused_before_anything_is_written(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"target_bytes 1000 .* cannot be reached.* has (\d+) bytes"):
        compress(bytes_config(images, tmp_path / "run", 1000))
    assert list(tmp_path.iterdir()) == []


def test_more_than_the_network_needs_leaves_it_dense(images: Path, tmp_path: Path) -> None:
    report = compress(bytes_config(images, tmp_path / "run", 1_000_000, epochs=1))
    assert report["density"] == 1.0


def test_dry_run_knows_how_many_weights_fit(images: Path, tmp_path: Path) -> None:
    rounds = [
        dry_run(bytes_config(images, tmp_path / "run", size))["rounds"][-1]["weights"]
        for size in (3000, 3300)
    ]
    assert rounds[1] - rounds[0] == pytest.approx(50, abs=4)  # 300 bytes, 6 a weight


class TwoNorms(nn.Module):
    """A layer without and one with a norm, and more columns than 16 bits count."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.wide = nn.Linear(5 * 120 * 120, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.wide(self.norm(self.conv(x)).flatten(1))  # type: ignore[no-any-return]


def captured(module: nn.Module) -> Any:
    return SparseModel.from_dense(module, torch.zeros(1, 3, 120, 120)).stored


@pytest.mark.parametrize("density", [0.01, 0.5, 0.9])
def test_bytes_are_foreseen_exactly(density: float, tmp_path: Path) -> None:
    module = TwoNorms()
    layers = prunable_layers(module)
    files = FileModel(captured(module), list(layers))
    for weight in layers.values():
        weight.data *= torch.rand(weight.shape) < density
    SparseModel.from_dense(module, torch.zeros(1, 3, 120, 120)).save_pretrained(tmp_path / "model")
    assert files.exact([int(torch.count_nonzero(w)) for w in layers.values()]) == directory_bytes(tmp_path)


def test_a_norm_that_is_not_folded_after_all_costs_weights() -> None:
    """The norm's variance falls after the masks were chosen, so that it becomes a step of its own."""
    module = TwoNorms()
    layers = prunable_layers(module)
    size = FileModel(captured(module), list(layers)).exact([100, 1000])
    config = CompressConfig(target_bytes=size)
    target = FileSizeTarget(config, layers, captured(module), captured)
    for weight, keep in zip(layers.values(), (100, 1000), strict=True):
        weight.data.flatten()[keep:] = 0.0
    module.norm.running_var.fill_(1e-4)  # type: ignore[operator]
    target.trim(module)
    files = FileModel(captured(module), list(layers))
    counts = [int(torch.count_nonzero(weight)) for weight in layers.values()]
    assert size - 24 < files.exact(counts) <= size
    assert sum(counts) < 1100

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench.conftest import small_network

from finepruning.bench.networks import prune_uniform
from finepruning.bench.peers import PEERS, choose
from finepruning.bench.twin import dense_twin
from finepruning.errors import ArgumentError, DeviceError
from finepruning.sparse.storage import load


@pytest.mark.parametrize("batch", [1, 3])
def test_the_twin_computes_what_the_pruned_network_computes(
    model_dir: Path, tmp_path: Path, batch: int
) -> None:
    module = small_network()
    prune_uniform(module, 0.2)
    x = torch.randn(batch, 3, 24, 24)
    twin = dense_twin(load(model_dir), x, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(twin.module(x), module(x), rtol=1e-4, atol=1e-5)
    dense_floats = sum(p.numel() for p in module.parameters()) - 2 * 16  # the folded batch norm
    assert twin.weight_bytes == 4 * dense_floats


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if not peer.on_request])
def test_every_peer_gives_the_twins_outputs(model_dir: Path, tmp_path: Path, name: str) -> None:
    peer = PEERS[name]
    if not peer.installed:
        pytest.skip(f"{peer.package} is not installed")
    x = torch.randn(2, 3, 24, 24)
    twin = dense_twin(load(model_dir), x, tmp_path)
    with torch.inference_mode():
        expected = twin.module(x)
        call = peer.prepare(twin, 1)
        for _ in range(2):  # a runtime may hand out the same memory again
            torch.testing.assert_close(call(x), expected, rtol=1e-4, atol=1e-5)


def test_choosing_peers() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    names = [peer.name for peer in choose(None, cpu, torch.float32)]
    assert names[:2] == ["torch", "torch_channels_last"]
    assert "torch_compile" not in names
    assert [peer.name for peer in choose(["torch_compile", "torch"], cpu, torch.float32)] == [
        "torch_compile",
        "torch",
    ]
    assert choose((), cpu, torch.float32) == []
    with pytest.raises(ArgumentError, match=r"unknown peer 'torhc'.*torch_channels_last"):
        choose(["torhc"], cpu, torch.float32)
    if PEERS["onnxruntime"].installed:
        with pytest.raises(DeviceError, match="onnxruntime"):
            choose(["onnxruntime"], cuda, torch.float32)
        with pytest.raises(ArgumentError, match="float32 only"):
            choose(["onnxruntime"], cpu, torch.float16)


@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_uniform_pruning_keeps_exactly_its_share(density: float) -> None:
    module = small_network()
    prune_uniform(module, density)
    first, second, last = module[0].weight, module[3].weight, module[8].weight
    assert int(first.count_nonzero()) == round(max(0.5, density) * first.numel())
    assert int(second.count_nonzero()) == round(density * second.numel())
    assert int(last.count_nonzero()) == round(density * last.numel())

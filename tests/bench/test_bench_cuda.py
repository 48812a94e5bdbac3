"""Measuring on a GPU, with ordinary memory in place of one: what is compared with what, and failures."""

from __future__ import annotations

import itertools

import pytest
import torch
from engine.fake_gpu import FakeGpu
from torch import nn

from finepruning import SparseModel
from finepruning.bench import cuda
from finepruning.bench.cuda_linear import linear_rows
from finepruning.bench.networks import prune_uniform
from finepruning.bench.peers import PEERS, Peer
from finepruning.engine.cuda import CudaExecutor
from finepruning.engine.fuse import fuse
from finepruning.sparse.csr import CSR
from finepruning.sparse.storage import load

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for a GPU where there is none")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    monkeypatch.setattr(cuda, "FLUSH_BYTES", 64)
    return FakeGpu(monkeypatch, replays=1)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()
    prune_uniform(module, 0.2)
    path = tmp_path_factory.mktemp("cuda") / "model"
    SparseModel.from_dense(module, torch.zeros(1, 2, 4, 4)).save_pretrained(path)
    return path


def _rows(model_dir, peers, dtype=torch.float32):
    stored = load(model_dir)

    def make(batch):
        return CudaExecutor(fuse(stored.graph, stored.tensors, batch, dtype), CPU, measure=False)

    return cuda.network_rows(stored, make, 2, peers, dtype, CPU, 1e-3)


def test_every_contender_of_a_precision_is_there(model_dir):
    peers = [PEERS["torch"], PEERS["torch_channels_last"]]
    rows = _rows(model_dir, peers)
    assert [(row["peer"], row["precision"]) for row in rows] == [
        (name + suffix, precision)
        for (suffix, precision), name in itertools.product(
            (("", "float32"), ("_tf32", "tf32")), ("finepruning", "torch", "torch_channels_last")
        )
    ]
    for row in rows:
        assert row["relative_error"] < 1e-4
        assert row["peak_bytes"] == 2 << 20
        assert row["median_ms"] == row["cold_ms"] == 1.0
        assert row["weight_bytes"] > 0
        assert row["batch"] == 2
    assert [row.get("speedup") for row in rows] == [1.0, None, None] * 2
    assert rows[0]["kernels"]


def test_switches_for_tf32_hold_while_a_contender_is_made_and_are_put_back(model_dir):
    seen = []

    def prepare(twin, threads):
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return twin.module

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    _rows(model_dir, [Peer("torch", prepare)])
    assert seen == [(False, False), (True, True)]
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_a_peer_that_fails_or_differs_is_named_and_not_timed(model_dir):
    def broken(twin, threads):
        raise RuntimeError("no such kernel")

    peers = [Peer("broken", broken), Peer("wrong", lambda twin, threads: lambda x: twin.module(x) * 1.1)]
    rows = {row["peer"]: row for row in _rows(model_dir, peers)}
    assert rows["broken"]["error"] == "RuntimeError: no such kernel"
    assert "differ" in rows["wrong"]["skipped"]
    assert rows["broken"]["median_ms"] is rows["wrong"]["median_ms"] is None
    assert rows["finepruning"]["median_ms"] == 1.0
    assert "speedup" not in rows["finepruning"]


def test_16_bit_has_one_precision(model_dir):
    assert {row["precision"] for row in _rows(model_dir, [], torch.bfloat16)} == {"bfloat16"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_linear_layers_meet_the_libraries(dtype):
    torch.manual_seed(0)
    csr = CSR.from_dense(torch.randn(16, 64) * (torch.rand(16, 64) < 0.2))
    rows = {row["peer"]: row for row in linear_rows(csr, 1, dtype, CPU, 1e-3)}
    assert set(rows) >= {"finepruning", "cublas", "cusparse"}
    assert rows["finepruning"]["relative_error"] < 1e-3
    assert rows["finepruning"]["speedup"] == 1.0
    if dtype is torch.float16:
        assert "2:4" in rows  # what it needs is not on this machine: the row says so
        assert "error" in rows["2:4"]

"""Memory of whole networks at their real shapes: bytes are decided by sizes alone and need no GPU."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the first import of a kernel

from finepruning.bench.cuda_outline import Outline, shares, weighted
from finepruning.engine import cuda_choice, cuda_weights
from finepruning.engine.cuda_choice import Choice
from finepruning.sparse.csr import CSR

NETWORKS = ("alexnet", "vgg16", "resnet50")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BOUND = {0.10: 0.21, 0.05: 0.11}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def outlines():
    return {name: Outline(name) for name in NETWORKS}


def _sparsely(plan, method):
    """Every layer by ``method``, but those too dense for sparse storage."""
    return {
        layer.name: Choice(
            "dense" if layer.nnz > cuda_choice.MAX_DENSITY * layer.rows * layer.columns else method, {}
        )
        for layer in cuda_choice.layers(plan)
    }


@pytest.mark.parametrize("density", BOUND)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_take_few_bytes(outlines, name, dtype, density):
    """Columns in 16 bits and padding of a few entries a row: 4 bytes a weight of 2, 6 of 4."""
    plan = outlines[name].plan(density, 1, dtype)
    weights, _ = shares(plan, _sparsely(plan, "sparse"))
    assert weights <= BOUND[density]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_one_image_takes_a_quarter_of_the_dense_memory(outlines, name, dtype):
    """Weights, activations and scratch at density .05, whether layers run sparsely or are expanded."""
    plan = outlines[name].plan(0.05, 1, dtype)
    for method in ("sparse", "expand"):
        _, peak = shares(plan, _sparsely(plan, method))
        assert peak <= 0.25, method


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_counted_is_what_is_packed(outlines, dtype):
    generator = torch.Generator().manual_seed(0)
    for shape, density in (((30, 7, 3, 3), 0.2), ((200, 900), 0.1), ((13, 70000), 0.001)):
        dense = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)
        csr = CSR.from_dense(dense, dtype)
        assert cuda_weights.packed_bytes(csr, dtype) == cuda_weights.packed(csr, dtype, CPU).nbytes


def test_outlines_have_the_shapes_of_their_networks(outlines):
    steps = weighted(outlines["resnet50"].plan(0.1, 1, torch.float16))
    assert len(steps) == 54
    assert steps[0].weight.shape == (64, 3, 7, 7)
    assert steps[0].weight.density == pytest.approx(0.5, abs=0.02)
    assert sum(step.weight.nnz for step in steps) == pytest.approx(2.55e6, rel=0.01)

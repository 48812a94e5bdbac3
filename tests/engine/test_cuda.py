"""The CUDA executor on whole small networks: on a GPU, or under Triton's interpreter without one."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    # Before the first import of a kernel; see tests/kernels/conftest.py.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from finepruning.engine import cuda_choice
from finepruning.engine.capture import capture
from finepruning.engine.cuda import CudaExecutor
from finepruning.engine.fuse import fuse
from finepruning.engine.reference import ReferenceExecutor

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _pruned(network: nn.Module, density: float = 0.3) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn_like(parameter) * (torch.rand_like(parameter) < density) * 0.5
        else:
            parameter.data = torch.randn_like(parameter)
    return network.eval()


def _plan(network: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32):
    graph, tensors = capture(network, shape[1:], dtype)
    return fuse(graph, tensors, shape[0], dtype)


def _alexnet_like() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
        nn.Conv2d(12, 8, 3, padding=2, dilation=2, groups=2), nn.ReLU6(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(8 * 2 * 2, 20), nn.ReLU(), nn.Linear(20, 5),
    )  # fmt: skip


class _Residual(nn.Module):
    """A stride-2 bottleneck with projection, squeeze-and-excitation, concatenation and an ATen tail."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.reduce = nn.Conv2d(8, 4, 1)
        self.spatial = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4)
        self.extend = nn.Conv2d(4, 8, 1)
        self.project = nn.Conv2d(8, 8, 1, stride=2)
        self.gate = nn.Conv2d(8, 8, 1)
        self.side = nn.Conv2d(8, 3, 3, padding=1)
        self.head = nn.Linear(11, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = self.extend(torch.relu(self.spatial(torch.relu(self.reduce(x)))))
        x = torch.relu(y + self.project(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = torch.cat([x, self.side(x)], 1)
        x = torch.nn.functional.adaptive_avg_pool2d(x, 1)
        return torch.log_softmax(self.head(torch.flatten(x, 1)), 1)


NETWORKS = {"alexnet-like": (_alexnet_like, (3, 21, 19)), "residual": (_Residual, (3, 8, 7))}


def _names(plan):
    return [layer.name for layer in cuda_choice.layers(plan)]


def _compare(plan, methods, tolerance=1e-4):
    executor = CudaExecutor(plan, DEVICE, methods=methods)
    value = plan.values[plan.input]
    x = torch.randn(value.shape).to(value.dtype)
    expected = ReferenceExecutor(plan)(x)
    actual = executor(x.to(DEVICE)).cpu()
    assert actual.dtype == expected.dtype
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error <= tolerance, f"relative error {error:.2e}"
    return executor


@pytest.mark.parametrize(
    ("network", "batch", "method"),
    [
        *((network, batch, "sparse") for network in NETWORKS for batch in (1, 3)),
        *((network, 3, method) for network in NETWORKS for method in ("expand", "dense")),
        ("alexnet-like", 17, "sparse"),
    ],
)
def test_matches_the_reference(network, batch, method):
    make, shape = NETWORKS[network]
    plan = _plan(_pruned(make()), (batch, *shape))
    names = _names(plan)
    executor = _compare(plan, dict.fromkeys(names, method))
    kernels = {row.name: row.kernel for row in executor.report()}
    assert {"sparse": "triton sparse", "expand": "triton expand", "dense": "cu"}[method] in kernels[names[0]]


@pytest.mark.parametrize("batch", [2])
@pytest.mark.parametrize(
    "methods",
    [("sparse", "dense", "sparse", "expand", "sparse"), ("dense", "sparse", "expand", "sparse", "dense")],
)
def test_methods_may_be_mixed(batch, methods):
    make, shape = NETWORKS["alexnet-like"]
    plan = _plan(_pruned(make()), (batch, *shape))
    _compare(plan, dict(zip(_names(plan), methods, strict=True)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-2), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("method", ["sparse", "expand"])
def test_16_bit(dtype, tolerance, method):
    make, shape = NETWORKS["residual"]
    plan = _plan(_pruned(make()), (2, *shape), dtype)
    _compare(plan, dict.fromkeys(_names(plan), method), tolerance)
